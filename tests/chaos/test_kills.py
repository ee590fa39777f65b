"""kill -9 of workers: at every named point where the order of steps matters, and at moments that nobody chose."""

from __future__ import annotations

import random
from pathlib import Path

from lading.config.failpoints import COMMIT_POINTS, QUEUE_POINTS
from tests.chaos.conftest import Rigs
from tests.chaos.rig import Tally
from tests.crash import jobs

# A job is planned and registered by whoever submits it.
POINTS = (*(point for point in COMMIT_POINTS if not point.startswith(("plan.", "register."))), *QUEUE_POINTS)


def test_kills_at_every_commit_point_cost_nothing(
    kind: str, rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Three workers; one dies at each point a worker passes, one job after the other: every job as if undisturbed."""
    whole, rig, tally, done = undisturbed(corpus), rigs(), Tally(), 0
    rig.fleet.arm(f"{point}=kill" for point in POINTS)
    rig.fleet.tend()
    while done < 2 or (set(POINTS) - rig.fleet.deaths.keys() and done < 12):
        spec = jobs.encode(corpus, tiny_encoder, f"{kind}://{rig.root}/out/{done}")
        job = rig.submit(spec)
        asked = [rig.ask(tiny_encoder, f"request {n}") for n in range(6)]
        rig.until(lambda job=job, asked=asked: rig.ended(job) and all(map(rig.answer, asked)))
        tally.add(rig.check_rows(spec, job, corpus, whole))
        done += 1
    rig.fleet.tend()
    assert set(rig.fleet.deaths) == set(POINTS)
    tally.faults, tally.repeated = len(POINTS), rig.repeats(done * (whole.table.num_rows + 6))
    print(kind, done, "jobs:", tally)
    assert (tally.lost, tally.doubled) == (0, 0)
    rig.check_quiet()


def test_kills_at_random_moments_cost_nothing(
    kind: str, rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Six kills of any worker, after any number of shards."""
    whole, rig, choose = undisturbed(corpus), rigs(), random.Random(kind)
    spec = jobs.encode(corpus, tiny_encoder, f"{kind}://{rig.root}/out/docs")
    job = rig.submit(spec)
    for shards in sorted(choose.sample(range(20), 6)):
        rig.until(lambda shards=shards: rig.published(spec, job) >= shards)
        rig.fleet.tend()
        rig.fleet.kill(choose.choice(rig.fleet.alive()))
    rig.finish(job)
    tally = rig.check_rows(spec, job, corpus, whole, faults=rig.fleet.deaths.total())
    tally.repeated = rig.repeats(whole.table.num_rows)
    print(kind, tally)
    rig.check_quiet()
