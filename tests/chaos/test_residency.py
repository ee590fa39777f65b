"""Models that come and go at the worst moments: evicted at random under load, and workers killed while weights move."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

import pytest

from lading.config.failpoints import RESIDENCY_POINTS
from lading.pipelines import wire
from lading.pipelines.manifest import Manifest
from lading.pipelines.output import output_paths
from lading.workers.app import DEFECT
from lading.workers.residency import Tier
from tests.chaos.conftest import SEED, Rigs
from tests.chaos.rig import Tally
from tests.crash import jobs
from tests.swapping import (
    ALL_BYTES,
    Direct,
    Kind,
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
EVICTIONS, KILLS = 1000, 2  # of each point; a third death in loading fails a shard, as it should
TWO_OF_FIVE = 640_000  # bytes for their weights, and for what batches take


@pytest.mark.chaos
def test_evictions_at_random_cost_nothing(workers: Workers, kinds: list[Kind], direct: Direct, tmp_path: Path) -> None:
    """Any model, at any time, in a room for one or two: every request is answered once and rightly, every row is there once."""
    choose = random.Random(SEED)
    watched = workers.make(host_bytes=ALL_BYTES)
    one, two = (watched.measure(kinds, fitting=fitting) for fitting in (1, 2))
    corpus = texts(200, SEED)
    path = write_corpus(tmp_path / "corpus.parquet", corpus)
    submitted = [(kinds[n], submit(kinds[n].spec(path, to)), to) for n in JOBS for to in [f"parquet://{tmp_path}/{n}"]]
    asked: dict[str, tuple[Kind, str]] = {}
    watched.worker.start()
    changed = watched.residents._changed  # pyright: ignore[reportPrivateUsage]
    evicted = 0
    while evicted < EVICTIONS:
        if len(asked) - sum(watched.told.values()) < 20:
            asked |= watched.ask([(choose.choice(kinds), text) for text in texts(20, evicted)])
        with changed:
            there = [model for model in watched.policy.models.values() if model.tier == Tier.DEVICE]
            if choose.random() < 0.05:
                watched.policy.device_bytes = choose.choice([one, two])
            if there:
                choose.choice(there).leaving = choose.choice(["room", "memory", "idle"])
            changed.notify_all()
            changed.wait_for(lambda seen=evicted: sum(watched.policy.evictions.values()) > seen, 1.0)
            evicted = sum(watched.policy.evictions.values())
    watched.until_told(asked)
    until(lambda: all(ended(job) for _, job, _ in submitted), watched.residents.report)
    assert set(watched.told.values()) == {1}
    for id, (kind, text) in asked.items():
        assert_same(watched.found(id), direct.answer(kind, text))
    for kind, job, to in submitted:
        found, count = rows_of(to), totals(job, to)
        assert (count.done, count.rejected, count.shards_failed) == (len(corpus), 0, 0)
        assert found["id"].to_pylist() == [f"k{n:05d}" for n in range(len(corpus))]
        for ours, theirs in zip(found.drop(["id"]).columns, direct.batch(kind, corpus).columns, strict=True):
            assert_close(ours.to_pylist(), theirs.to_pylist())


@pytest.mark.chaos
@pytest.mark.parametrize("host_bytes", [ALL_BYTES, 0], ids=["host", "disk"])
@pytest.mark.parametrize("point", RESIDENCY_POINTS)
def test_kills_while_models_move_cost_nothing(
    point: str, host_bytes: int, rigs: Rigs, kinds: list[Kind], direct: Direct, tmp_path: Path
) -> None:
    """At each point of a model's way, at the nth time it is passed: others go on with the work, none is lost or doubled."""
    choose = random.Random(f"{SEED}{point}{host_bytes}")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/pools.yaml").write_text(
        f"cpu: {{device: cpu, memory_bytes: {TWO_OF_FIVE}, host_bytes: {host_bytes}, swap_patience_s: 0.05}}\n"
    )
    rig = rigs(workers=2, environment={"LADING_CONFIG_DIR": str(tmp_path / "config")})
    corpus = texts(96, SEED)
    path = write_corpus(tmp_path / "corpus.parquet", corpus)
    rig.fleet.arm(f"{point}=kill@{choose.randint(1, 4)}" for _ in range(KILLS))
    specs = [(kinds[n], kinds[n].spec(path, f"parquet://{rig.root}/out/{n}")) for n in JOBS]
    submitted = [(kind, spec, rig.submit(spec)) for kind, spec in specs]
    asked: dict[str, tuple[Kind, str]] = {}
    for _ in range(20):
        sent = {uuid.uuid4().hex: (choose.choice(kinds), text) for text in texts(20)}
        rig.requests.send([kind.message(text, id) for id, (kind, text) in sent.items()])
        asked |= sent
        rig.until(lambda sent=sent: all(map(rig.answer, sent)))
        if rig.fleet.deaths[point] == KILLS:
            break
    assert rig.fleet.deaths == {point: KILLS}
    rig.finish(*(job for _, _, job in submitted))
    for id, (kind, text) in asked.items():
        stored = rig.answer(id)
        assert stored is not None
        assert stored["status"] == "SUCCESS", stored
        assert_same(wire.read(stored["result"]), direct.answer(kind, text))
    tally = Tally(faults=KILLS)
    for kind, spec, job in submitted:
        count = Manifest.open(output_paths(spec.sink.to), job).totals()
        assert (count.done, count.rejected, count.shards_failed) == (len(corpus), 0, 0)
        found = rows_of(spec.sink.to)
        ids = found["id"].to_pylist()
        tally.add(Tally(len(corpus), len(corpus) - len(set(ids)), len(ids) - len(set(ids))))
        assert ids == [f"k{n:05d}" for n in range(len(corpus))]
        for ours, theirs in zip(found.drop(["id"]).columns, direct.batch(kind, corpus).columns, strict=True):
            assert_close(ours.to_pylist(), theirs.to_pylist())
    rig.tell(f"kill -9 at {point}", tally, f"{len(asked)} requests")
    rig.check_quiet()


def test_a_lost_device_ends_the_process_and_the_next_one_does_the_work(
    rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed, tmp_path: Path
) -> None:
    """It ends with 70 and says why in its last line; its leases are others' at once, nothing is suspect, no row is rejected for it."""
    mark = tmp_path / "poisoned"
    rig = rigs(workers=1, lease_s=120.0, poisons=str(mark))  # if a lease had to run out, the test would not end in time
    rig.fleet.endings = {DEFECT}
    spec = jobs.encode(corpus, tiny_encoder, f"lancedb://{rig.root}/out/docs")
    job = rig.submit(spec)
    asked = [rig.ask(tiny_encoder, f"request {n}") for n in range(5)]
    rig.until(lambda: rig.ended(job) and all(map(rig.answer, asked)))
    assert {rig.answer(id)["status"] for id in asked} == {"SUCCESS"}
    first, _ = rig.fleet.logs
    last = first.read_text().splitlines()[-1]
    assert '"event": "device lost"' in last
    assert "the device fails: " in last
    assert "CUDA error: device-side assert triggered" in last
    assert rig.fleet.deaths.total() == 1
    assert "runs alone" not in rig.fleet.said()
    rig.tell("a device that is lost", rig.check_rows(spec, job, corpus, undisturbed(corpus), faults=1))
    rig.check_quiet()
