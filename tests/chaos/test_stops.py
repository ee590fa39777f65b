"""SIGTERM under load: what is begun is finished or given back at once, the process ends with 0, and nobody is under suspicion."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.conftest import Rigs
from tests.chaos.rig import Rig
from tests.crash import jobs

LONG_S = 120.0  # a lease: if one ran out, the test would not end in time


@pytest.mark.parametrize("stops", [4, pytest.param(10, marks=pytest.mark.chaos)])
def test_stops_under_load_cost_nothing(
    stops: int, rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Workers stopped one after the other, others started: no lease runs out, no shard runs alone."""
    whole, rig = undisturbed(corpus), rigs(lease_s=LONG_S)
    spec = jobs.encode(corpus, tiny_encoder, f"lancedb://{rig.root}/out/docs")
    choose, job = random.Random(stops), rig.submit(spec)
    asked: list[str] = []
    for shards in sorted(choose.sample(range(1, 20), stops)):
        rig.until(lambda shards=shards: rig.published(spec, job) >= shards)
        asked += [rig.ask(tiny_encoder, f"request {n}") for n in range(5)]
        rig.fleet.tend()
        rig.fleet.retire(choose.choice(rig.fleet.workers))
        assert suspects(rig) == 0
    rig.until(lambda: rig.ended(job) and all(map(rig.answer, asked)))
    assert "runs alone" not in rig.fleet.said()
    tally = rig.check_rows(spec, job, corpus, whole, faults=stops)
    tally.repeated = rig.repeats(whole.table.num_rows + len(asked))
    rig.tell("SIGTERM under load", tally)
    assert tally.repeated == 0
    rig.check_quiet()


def test_a_stop_in_a_batch_that_does_not_end_gives_everything_back(
    rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed, tmp_path: Path
) -> None:
    """The grace ends before the batch: the process ends with 0 all the same, its shards are others' at once, not suspect."""
    hung = tmp_path / "hung"
    rig = rigs(workers=1, lease_s=LONG_S, hangs="", hung=str(hung), environment={"LADING_GRACE_S": "1"})
    spec = jobs.encode(corpus, tiny_encoder, f"lancedb://{rig.root}/out/docs")
    job = rig.submit(spec)
    rig.until(hung.exists)
    assert rig.shards.counts().in_flight > 0
    rig.fleet.retire(rig.fleet.workers[0])
    assert (rig.shards.counts().in_flight, suspects(rig)) == (0, 0)
    rig.fleet.size = 3
    rig.finish(job)
    assert "runs alone" not in rig.fleet.said()
    rig.check_rows(spec, job, corpus, undisturbed(corpus))
    rig.check_quiet()


def suspects(rig: Rig) -> int:
    return sum(rig.broker.client.hlen(f"strikes:{queue.name}") for queue in (rig.shards, rig.requests))
