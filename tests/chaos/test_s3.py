"""Workers with a bucket as storage: the job's files, the registry and the table all lie there; what holds on a disk holds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.conftest import SEED, Rigs
from tests.chaos.rig import Rig, Tally
from tests.chaos.test_kills import POINTS
from tests.crash import jobs
from tests.s3_server import Server

SHORT = ("publish.linked", "fold.before-commit", "fold.committed")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.write_corpus(tmp_path_factory.mktemp("few") / "docs", shards=8)


@pytest.fixture
def rig(rigs: Rigs, s3: str, s3_server: Server) -> Rig:
    return rigs(root=s3, environment=s3_server.environment)


@pytest.mark.parametrize(
    ("kind", "points"),
    [("lancedb", SHORT), *(pytest.param(kind, POINTS, marks=pytest.mark.chaos) for kind in jobs.SINKS)],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} points",
)
def test_kills_at_commit_points_cost_nothing(
    kind: str, points: tuple[str, ...], rig: Rig, few: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Workers that die at one point after the other, in job after job from bucket to bucket."""
    whole, tally, done = undisturbed(few), Tally(), 0
    rig.fleet.arm(f"{point}=kill" for point in points)
    rig.fleet.tend()
    while set(points) - rig.fleet.deaths.keys() and done < 30:
        spec = jobs.encode(few, tiny_encoder, f"{kind}://{rig.root}/out/{done}")
        job = rig.submit(spec)
        asked = [rig.ask(tiny_encoder, f"request {n}") for n in range(4)]
        rig.until(lambda job=job, asked=asked: rig.ended(job) and all(map(rig.answer, asked)))
        rig.fleet.tend()
        tally.add(rig.check_rows(spec, job, few, whole))
        done += 1
    assert set(rig.fleet.deaths) == set(points)
    tally.faults, tally.repeated = len(points), rig.repeats(done * (whole.table.num_rows + 4))
    rig.tell(f"S3, {kind}: kill -9 at commit points", tally, f"{len(points)} points in {done} jobs")
    rig.check_quiet()


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        ("parquet", "fold.before-commit"),
        pytest.param("lancedb", "fold.before-commit", marks=pytest.mark.chaos),
        pytest.param("parquet", "publish.before", marks=pytest.mark.chaos),
        pytest.param("lancedb", "publish.before", marks=pytest.mark.chaos),
    ],
)
def test_a_thawed_worker_races_its_successors_and_harms_nothing(
    kind: str, point: str, rig: Rig, few: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Frozen until others are half through what it held, or have ended the job; then it goes on beside them."""
    spec = jobs.encode(few, tiny_encoder, f"{kind}://{rig.root}/out/docs")
    job = rig.submit(spec)
    frozen = rig.fleet.start(f"{point}=stop")
    assert frozen.child.wait_stopped(), frozen.child.log()
    rig.fleet.workers.clear()
    some = random.Random(f"{SEED}{kind}").randrange(2, 9)
    rig.until(lambda: rig.published(spec, job) >= some)
    frozen.child.thaw()
    rig.fleet.workers.append(frozen)
    rig.fleet.size += 1
    rig.finish(job)
    tally = rig.check_rows(spec, job, few, undisturbed(few), faults=1)
    tally.repeated = rig.repeats(undisturbed(few).table.num_rows)
    rig.tell(f"S3, {kind}: frozen at {point}", tally)
    rig.check_quiet()
