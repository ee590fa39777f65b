"""A worker with more models than its device has room for: every request is answered once and rightly, every row is there once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lading.schedulers import pools
from lading.workers.residency import Tier
from tests.swapping import (
    ALL_BYTES,
    Direct,
    Kind,
    Watched,
    Workers,
    assert_close,
    assert_same,
    ended,
    rows_of,
    submit,
    texts,
    totals,
    until,
    write_corpus,
)

JOBS = (0, 1, 4)  # of the five: dense, sparse, entities


class Mixed:
    """Requests for all models in any order, and some jobs, all outstanding at once."""

    def __init__(self, watched: Watched, kinds: list[Kind], folder: Path, requests: int, rows: int, seed: int) -> None:
        self.watched, self.corpus = watched, texts(rows, seed)
        path = write_corpus(folder / "corpus.parquet", self.corpus)
        self.jobs = {kinds[n]: (submit(kinds[n].spec(path, to)), to) for n, to in _outputs(folder)}
        asked = [(kinds[n % len(kinds)], text) for n, text in enumerate(texts(requests, seed + 1))]
        random.Random(seed).shuffle(asked)
        self.asked = watched.ask(asked)

    def finish(self) -> None:
        """Wait for all of it."""
        until(
            lambda: (
                all(map(self.watched.told.__getitem__, self.asked)) and all(ended(job) for job, _ in self.jobs.values())
            ),
            lambda: self.watched.residents.report(),
        )

    def check(self, direct: Direct) -> None:
        """Each answered once, as the model alone answers; each row there once."""
        assert set(self.watched.told.values()) == {1}
        for id, (kind, text) in self.asked.items():
            assert_same(self.watched.found(id), direct.answer(kind, text))
        for kind, (job, to) in self.jobs.items():
            count, found = totals(job, to), rows_of(to)
            assert (count.rows_in, count.done, count.rejected, count.failed) == (
                len(self.corpus),
                len(self.corpus),
                0,
                0,
            )
            assert found["id"].to_pylist() == [f"k{n:05d}" for n in range(len(self.corpus))]
            expected = direct.batch(kind, self.corpus)
            for ours, theirs in zip(found.drop(["id"]).columns, expected.columns, strict=True):
                assert_close(ours.to_pylist(), theirs.to_pylist())


def _outputs(folder: Path) -> list[tuple[int, str]]:
    return [(n, f"parquet://{folder}/out{n}") for n in JOBS]


@pytest.mark.parametrize("host_bytes", [ALL_BYTES, 0], ids=["host", "disk"])
def test_a_mixed_stream_through_room_for_two_of_five_ends_as_if_all_were_there(
    host_bytes: int, workers: Workers, kinds: list[Kind], direct: Direct, tmp_path: Path
) -> None:
    """The device never has more than its budget, at any move; models come back from where they were put."""
    watched = workers.make(host_bytes=host_bytes)
    budget = watched.measure(kinds, fitting=2)
    mixed = Mixed(watched, kinds, tmp_path, requests=240, rows=48, seed=1)
    watched.worker.start()
    mixed.finish()
    mixed.check(direct)
    assert {step.to for step, _, _ in watched.moves} == {Tier.DEVICE, Tier.HOST if host_bytes else Tier.DISK}
    assert len([step for step, _, _ in watched.moves if step.to == Tier.DEVICE]) >= 3
    assert max(held for _, held, _ in watched.moves) <= budget
    if not host_bytes:
        assert max(copied for _, _, copied in watched.moves) == 0


def test_a_pinned_model_stays_while_the_others_take_turns(
    workers: Workers, kinds: list[Kind], direct: Direct, tmp_path: Path
) -> None:
    """In the room that it leaves."""
    watched = workers.make(host_bytes=ALL_BYTES)
    budget = watched.measure(kinds, fitting=2)
    pinned = kinds[0].recipe.weights
    watched.measure(kinds[:1])
    with watched.still():
        watched.policy.models[pinned].pinned = True
        watched.policy.device_bytes = budget
    watched.until_quiet()
    watched.moves.clear()
    mixed = Mixed(watched, kinds, tmp_path, requests=100, rows=24, seed=2)
    watched.worker.start()
    mixed.finish()
    mixed.check(direct)
    assert pinned in watched.there()
    assert pinned not in {step.key for step, _, _ in watched.moves}
    assert max(held for _, held, _ in watched.moves) <= budget


def test_idle_models_leave_and_come_back_when_asked_for(workers: Workers, kinds: list[Kind], direct: Direct) -> None:
    """With room for all of them."""
    watched = workers.make(host_bytes=ALL_BYTES, idle_unload_s=0.2)
    watched.worker.start()
    for _ in range(2):
        asked = watched.ask([(kind, "a row") for kind in kinds[:2]])
        watched.until_told(asked)
        until(lambda: not watched.there())
        for id, (kind, text) in asked.items():
            assert_same(watched.found(id), direct.answer(kind, text))
    assert {step.reason for step, _, _ in watched.moves if step.to < Tier.DEVICE} == {"idle"}
    assert watched.policy.resident_bytes == 0


def test_what_pools_yaml_preloads_is_there_before_anybody_asks(
    workers: Workers,
    kinds: list[Kind],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In its order; one that is missing and one that is damaged are told, and keep no other from it."""
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in kinds[0].folder.rglob("*"):
        target = damaged / file.relative_to(kinds[0].folder)
        target.mkdir(exist_ok=True) if file.is_dir() else target.write_bytes(file.read_bytes())
    (damaged / "tokenizer.json").write_text("{")
    (tmp_path / "pools.yaml").write_text(
        f"""
cpu:
  device: cpu
  memory_bytes: 4_000_000_000
  preload:
    - {{verb: encode, model: {kinds[0].folder}, pin: true}}
    - {{verb: encode, model: {tmp_path}/missing}}
    - {{verb: encode, model: {damaged}}}
    - {{verb: score, model: {kinds[3].folder}}}
"""
    )
    monkeypatch.setenv("LADING_CONFIG_DIR", str(tmp_path))
    found = pools.find(pools.load(), "cpu")
    watched = workers.make(preload=found.preload)
    watched.worker.start()
    keys = {kinds[n].recipe.weights for n in (0, 3)}
    until(lambda: watched.there() == keys)
    assert [watched.policy.models[kinds[n].recipe.weights].pinned for n in (0, 3)] == [True, False]
    assert f"preload failed: model={tmp_path}/missing" in caplog.text
    assert f"preload failed: model={damaged}" in caplog.text
    watched.until_told(watched.ask([(kinds[3], "a row")]))
    assert watched.policy.misses == 2
