"""kill -9 of workers: at every named point where the order of steps matters, and at moments that nobody chose."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from lading.config import failpoints
from lading.config.failpoints import COMMIT_POINTS, QUEUE_POINTS, RESIDENCY_POINTS
from tests.chaos.conftest import SEED, Rigs
from tests.chaos.rig import Tally
from tests.crash import jobs

# A job is planned and registered by whoever submits it. The last come first: a job passes each of them once.
POINTS = tuple(point for point in reversed(COMMIT_POINTS) if not point.startswith(("plan.", "register.")))
POINTS += QUEUE_POINTS


def test_every_point_of_the_queue_is_died_at() -> None:
    """A point that no crash test dies at is a promise nobody keeps."""
    files = Path(failpoints.__file__).parents[1].glob("workers/*.py")
    named = {name for file in files for name in re.findall(r'failpoint\("([^"]+)"', file.read_text())}
    assert named == {*QUEUE_POINTS, *RESIDENCY_POINTS}  # of these test_residency.py dies


@pytest.mark.parametrize("kind", ["lancedb", pytest.param("parquet", marks=pytest.mark.chaos)])
def test_kills_at_every_commit_point_cost_nothing(
    kind: str, rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Three workers; one dies at each point a worker passes, one job after the other: every job as if undisturbed."""
    whole, rig, tally, done = undisturbed(corpus), rigs(), Tally(), 0
    rig.fleet.arm(f"{point}=kill" for point in POINTS)
    rig.fleet.tend()
    while done < 2 or (set(POINTS) - rig.fleet.deaths.keys() and done < 30):
        spec = jobs.encode(corpus, tiny_encoder, f"{kind}://{rig.root}/out/{done}")
        job = rig.submit(spec)
        asked = [rig.ask(tiny_encoder, f"request {n}") for n in range(6)]
        rig.until(lambda job=job, asked=asked: rig.ended(job) and all(map(rig.answer, asked)))
        tally.add(rig.check_rows(spec, job, corpus, whole))
        done += 1
    rig.fleet.tend()
    assert set(rig.fleet.deaths) == set(POINTS)
    tally.faults, tally.repeated = len(POINTS), rig.repeats(done * (whole.table.num_rows + 6))
    rig.tell(f"{kind}: kill -9 at every commit point", tally, f"{len(POINTS)} points in {done} jobs")
    rig.check_quiet()


@pytest.mark.parametrize(
    ("kind", "kills"), [("parquet", 6), *(pytest.param(one, 25, marks=pytest.mark.chaos) for one in jobs.SINKS)]
)
def test_kills_at_random_moments_cost_nothing(
    kind: str, kills: int, rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Any worker, after any number of shards, in job after job."""
    whole, rig, choose, tally, done = undisturbed(corpus), rigs(), random.Random(f"{kind}{SEED}"), Tally(), 0
    while tally.faults < kills:
        spec = jobs.encode(corpus, tiny_encoder, f"{kind}://{rig.root}/out/{done}")
        job = rig.submit(spec)
        moments = choose.sample(range(20), min(6, kills - tally.faults))
        for shards in sorted(moments):
            rig.until(lambda shards=shards, spec=spec, job=job: rig.published(spec, job) >= shards)
            rig.fleet.tend()
            rig.fleet.kill(choose.choice(rig.fleet.alive()))
        rig.finish(job)
        tally.add(rig.check_rows(spec, job, corpus, whole, faults=len(moments)))
        done += 1
    tally.repeated = rig.repeats(done * whole.table.num_rows)
    rig.tell(f"{kind}: kill -9 at random moments", tally)
    rig.check_quiet()
