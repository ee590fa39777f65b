"""A worker whose device is short of memory, or whose models come late or never: each row lands once, and nobody else notices."""

from __future__ import annotations

import errno
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lading.adapters import memory
from lading.adapters.encode import Encoder
from lading.adapters.extract import TokenClassifier
from lading.adapters.holdings import Holdings
from lading.pipelines.output import output_paths
from lading.pipelines.report import rejects
from lading.pipelines.sweep import Sweeper
from lading.workers import limits, residency
from lading.workers.residents import BLIPS, SHORT_TRIES
from tests.swapping import (
    ALL_BYTES,
    Direct,
    Kind,
    Workers,
    assert_same,
    ended,
    rows_of,
    submit,
    texts,
    totals,
    until,
    write_corpus,
)

BUDGET = 128  # tokens of a batch, as Workers has it
LIMIT = 40  # that the device has memory for
ROWS = 32


class Short:
    """A device whose memory is short at random, and always for more tokens than `limit`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self.limit, self.often, self.failures, self._in_a_row = LIMIT, 0.04, 0, 0
        self._choose = random.Random(seed)
        for one in (Encoder, TokenClassifier):
            monkeypatch.setattr(one, "_run", self._around(one._run, self._batch))  # pyright: ignore
            monkeypatch.setattr(one, "_load", self._around(one._load, self._load))  # pyright: ignore
        monkeypatch.setattr(Holdings, "come_back", self._around(Holdings.come_back, self._load))
        monkeypatch.setattr(residency, "BACKOFF_S", 0.01)
        monkeypatch.setattr(memory, "give_back", lambda: None)  # nothing is to be had by it here, and it takes a while

    def _around(self, call: Any, check: Callable[..., bool]) -> Any:
        def wrapped(*given: Any, **named: Any) -> Any:
            if check(*given):
                self.failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return call(*given, **named)

        return wrapped

    def _batch(self, _model: Any, parts: Any) -> bool:
        if "lading-residents" in threading.current_thread().name:
            return False  # that measures what batches take
        cost = sum(int(prepared.costs[items].sum()) for prepared, items in parts)
        return cost > self.limit or self._choose.random() < self.often

    def _load(self, *_: Any) -> bool:
        """Never so often, one after the other, that the model is given up."""
        short = self._in_a_row < SHORT_TRIES - 1 and self._choose.random() < 6 * self.often
        self._in_a_row = self._in_a_row + 1 if short else 0
        return short


@pytest.mark.parametrize("host_bytes", [ALL_BYTES, 0], ids=["host", "disk"])
def test_rows_land_once_however_short_memory_is(
    host_bytes: int,
    workers: Workers,
    kinds: list[Kind],
    direct: Direct,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A result, or a reject that says why; batches become small enough, and large again when there is memory."""
    some = [kinds[0], kinds[1], kinds[4]]
    watched = workers.make(host_bytes=host_bytes)
    watched.measure(some, fitting=1)
    monkeypatch.setattr(limits, "GROW_AFTER", 1_000_000)
    corpus = [f"{text} {'and more ' * 25 if n % 16 == 5 else ''}" for n, text in enumerate(texts(ROWS, seed=4))]
    path = write_corpus(tmp_path / "corpus.parquet", corpus)
    expected = {(kind, text): direct.answer(kind, text) for kind in some for text in corpus[:16]}
    short = Short(monkeypatch, seed=3)
    jobs = [(submit(kind.spec(path, to)), to) for kind in some for to in [f"parquet://{tmp_path}/{kind.name}"]]
    asked = watched.ask([(kind, text) for text in corpus[:16] for kind in some])
    watched.worker.start()
    watched.until_told(asked)
    until(lambda: all(ended(job) for job, _ in jobs), watched.residents.report)
    assert short.failures > 20
    long = {f"k{n:05d}" for n in range(5, ROWS, 16)}
    for job, to in jobs:
        refused = list(rejects(to))
        assert {one.code for one in refused} == {"out-of-memory"}
        assert long <= {str(one.id) for one in refused}
        assert sorted([*rows_of(to)["id"].to_pylist(), *(one.id for one in refused)]) == [
            f"k{n:05d}" for n in range(ROWS)
        ]
        count = totals(job, to)
        assert (count.rows_in, count.done, count.rejected, count.shards_failed) == (
            ROWS,
            ROWS - len(refused),
            len(refused),
            0,
        )
    assert set(watched.told.values()) == {1}
    for id, (kind, text) in asked.items():
        found = watched.found(id)
        if found.errors:
            assert [code for _, code, _ in found.errors] == ["out-of-memory"]
        else:
            assert_same(found, expected[kind, text])
    found_limits = watched.worker.engine.limits
    adapters = [watched.residents.at_hand(kind.recipe) for kind in some]
    assert max(found_limits.of(one.weights) for one in adapters) <= LIMIT

    short.limit, short.often = BUDGET, 0.0
    monkeypatch.setattr(limits, "GROW_AFTER", 1)
    for _ in range(100):
        more = watched.ask([(kind, text) for text in texts(24) for kind in some])
        watched.until_told(more)
        assert not any(watched.found(id).errors for id in more)
        if min(found_limits.of(one.weights) for one in adapters) == BUDGET:
            break
    assert min(found_limits.of(one.weights) for one in adapters) == BUDGET


def copied(kind: Kind, folder: Path) -> Kind:
    """The same model in a folder that may be harmed, and so of weights of its own."""
    shutil.copytree(kind.folder, folder)
    return Kind(kind.name, kind.verb, folder)


def delete_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50_000])


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "new"])
@pytest.mark.parametrize("harm", [delete_weights, truncate_weights, break_config])
def test_a_model_whose_files_are_harmed_fails_its_own_work_once(
    harm: Callable[[Path], None], seen: bool, workers: Workers, kinds: list[Kind], direct: Direct, tmp_path: Path
) -> None:
    """Its shards with the reason, its requests with the same; others are served."""
    bad, good = copied(kinds[2], tmp_path / "bad"), kinds[0]
    watched = workers.make()
    path = write_corpus(tmp_path / "corpus.parquet", corpus := texts(24))
    lost, kept = f"parquet://{tmp_path}/lost", f"parquet://{tmp_path}/kept"
    failing, fine = submit(bad.spec(path, lost)), submit(good.spec(path, kept))
    if seen:
        watched.measure([bad])
        watched.leave(bad)
    harm(bad.folder)
    asked = watched.ask([(kind, "a row") for kind in (bad, good, bad, good)])
    watched.worker.start()
    watched.until_told(asked)
    for id, (kind, text) in asked.items():
        if kind is good:
            assert_same(watched.found(id), direct.answer(good, text))
        else:
            stored = watched.answer(id)
            assert stored is not None
            assert (stored["status"], str(bad.folder) in stored["traceback"]) == ("FAILURE", True), stored
    until(lambda: totals(failing, lost).shards_failed == 3 and ended(fine), watched.residents.report)
    assert rows_of(kept).num_rows == len(corpus)
    count = totals(failing, lost)
    assert (count.done, count.rejected, count.shards_failed) == (0, 0, 3)
    assert str(bad.folder) in count.failure or "the checkpoint that this worker finds" in count.failure
    until(lambda: watched.worker.shards.counts().in_flight == watched.worker.shards.counts().waiting == 0)
    assert len(output_paths(lost).job(failing.job).names("markers")) == 3
    watched.until_told(watched.ask([(good, "still there")]))


def test_a_full_disk_is_waited_for_and_others_are_answered_meanwhile(
    workers: Workers, kinds: list[Kind], direct: Direct, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third try, which succeeds, begins only when another model's requests have been answered."""
    late, other = kinds[0], kinds[1]
    watched = workers.make()
    watched.measure([other])
    load, tries, failed, answered = Encoder._load, [0], threading.Event(), threading.Event()  # pyright: ignore

    def loading(self: Encoder) -> Any:
        if self.weights == late.recipe.weights:
            tries[0] += 1
            if tries[0] <= 2:
                failed.set()
                raise OSError(errno.ENOSPC, "No space left on device")
            assert answered.wait(60)
        return load(self)

    monkeypatch.setattr(Encoder, "_load", loading)
    monkeypatch.setattr(residency, "BACKOFF_S", 0.01)
    path = write_corpus(tmp_path / "corpus.parquet", corpus := texts(16))
    job = submit(late.spec(path, to := f"parquet://{tmp_path}/out"))
    waits = watched.ask([(late, "a row")])
    watched.worker.start()
    assert failed.wait(60)
    watched.until_told(watched.ask([(other, text) for text in corpus]))
    assert not ended(job)
    assert not any(map(watched.told.__getitem__, waits))
    answered.set()
    watched.until_told(waits)
    until(lambda: ended(job), watched.residents.report)
    assert tries == [3]
    assert rows_of(to).num_rows == len(corpus)
    for id in waits:
        assert_same(watched.found(id), direct.answer(late, "a row"))


@pytest.mark.parametrize("seen", [False, True], ids=["at first", "later"])
def test_a_model_that_may_come_some_day_keeps_no_other_job_from_its_end(
    seen: bool, workers: Workers, kinds: list[Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shards are given back after a few tries, neither failed nor done, also where it had been there before; once it comes, they end."""
    late, other = kinds[0], kinds[1]
    monkeypatch.setenv("LADING_LEASE_S", "2")  # so long its shards are left alone
    watched = workers.make()
    watched.measure([late, other] if seen else [other])
    if seen:
        watched.residents.let_go(late.recipe.weights)
    load, away, tries = Encoder._load, [True], [0]  # pyright: ignore

    def loading(self: Encoder) -> Any:
        if self.weights == late.recipe.weights and away[0]:
            tries[0] += 1
            raise OSError(errno.EIO, "Input/output error")
        return load(self)

    monkeypatch.setattr(Encoder, "_load", loading)
    monkeypatch.setattr(residency, "BACKOFF_S", 0.2)
    path = write_corpus(tmp_path / "corpus.parquet", corpus := texts(64))
    stuck, fine = (
        (submit(kind.spec(path, to)), to)
        for kind, to in ((late, f"parquet://{tmp_path}/a"), (other, f"parquet://{tmp_path}/b"))
    )
    watched.worker.start()
    worker = watched.worker

    def swept() -> bool:
        """What was given back is sent again; by itself a worker would wait ever longer before that."""
        Sweeper(worker.broker, worker.registry, {"cpu": worker.pool}, lease_s=2.0).sweep(thorough=True)
        return True

    until(lambda: ended(fine[0]), watched.residents.report)
    until(lambda: swept() and tries[0] >= BLIPS + 2, watched.residents.report)
    assert not ended(stuck[0])
    assert (totals(*stuck).shards_done, totals(*stuck).shards_failed) == (0, 0)
    away[0] = False
    until(lambda: swept() and ended(stuck[0]), watched.residents.report)
    assert rows_of(stuck[1]).num_rows == rows_of(fine[1]).num_rows == len(corpus)
    assert totals(*stuck).shards_failed == 0


def test_a_slow_first_load_holds_up_nobody_whose_model_is_there(
    workers: Workers, kinds: list[Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither requests nor a shard that was read before; and what waits for the slow one ends when it has come."""
    slow, there = kinds[0], kinds[4]
    watched = workers.make()
    watched.measure([there])
    load, loading, go_on = Encoder._load, threading.Event(), threading.Event()  # pyright: ignore

    def blocked(self: Encoder) -> Any:
        loading.set()
        assert go_on.wait(120)
        return load(self)

    monkeypatch.setattr(Encoder, "_load", blocked)
    path = write_corpus(tmp_path / "corpus.parquet", corpus := texts(8))
    first, second = (
        (submit(kind.spec(path, to)), to)
        for kind, to in ((there, f"parquet://{tmp_path}/a"), (slow, f"parquet://{tmp_path}/b"))
    )
    waits = watched.ask([(slow, "a row")])
    watched.worker.start()
    assert loading.wait(60)
    watched.until_told(watched.ask([(there, text) for text in corpus]))
    until(lambda: ended(first[0]), watched.residents.report)
    watched.until_told(watched.ask([(there, text) for text in corpus]))
    assert not any(map(watched.told.__getitem__, waits))
    assert totals(*second).shards_done == 0
    go_on.set()
    watched.until_told(waits)
    until(lambda: ended(second[0]), watched.residents.report)
    assert rows_of(first[1]).num_rows == rows_of(second[1]).num_rows == len(corpus)
    assert {watched.answer(id)["status"] for id in waits} == {"SUCCESS"}  # pyright: ignore
