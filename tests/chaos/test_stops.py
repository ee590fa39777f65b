"""SIGTERM under load: what is begun is finished or given back at once, the process ends with 0, and nobody is under suspicion."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.conftest import Rigs
from tests.chaos.rig import Rig
from tests.crash import jobs


@pytest.mark.parametrize("grace_s", ["20", "0"], ids=["graceful", "at once"])
def test_ten_stops_under_load_cost_nothing(
    grace_s: str, rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Ten workers stopped one after the other, others started: no lease runs out, no shard runs alone."""
    whole, rig = undisturbed(corpus), rigs(lease_s=120.0, environment={"LADING_GRACE_S": grace_s})
    spec = jobs.encode(corpus, tiny_encoder, f"lancedb://{rig.root}/out/docs")
    choose, job = random.Random(grace_s), rig.submit(spec)
    for shards in sorted(choose.sample(range(20), 10)):
        rig.until(lambda shards=shards: rig.published(spec, job) >= shards)
        asked = [rig.ask(tiny_encoder, f"request {n}") for n in range(5)]
        rig.fleet.tend()
        rig.fleet.retire(choose.choice(rig.fleet.workers))
        assert suspects(rig) == 0
        rig.until(lambda asked=asked: all(map(rig.answer, asked)))
    rig.finish(job)
    assert "runs alone" not in rig.fleet.said()
    tally = rig.check_rows(spec, job, corpus, whole, faults=10)
    tally.repeated = rig.repeats(whole.table.num_rows + 50)
    print("stopped:", tally)
    rig.check_quiet()


def suspects(rig: Rig) -> int:
    return sum(rig.broker.client.hlen(f"strikes:{queue.name}") for queue in (rig.shards, rig.requests))
