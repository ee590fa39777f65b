"""Jobs that are killed, frozen, raced and disturbed end as an undisturbed run does, row for row, for every sink."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset
import pytest

from lading.config.failpoints import COMMIT_POINTS
from lading.pipelines.manifest import Manifest
from lading.pipelines.output import output_paths

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("crash_driver", Path(__file__).with_name("crash_driver.py"))
assert _spec is not None
assert _spec.loader is not None
driver = importlib.util.module_from_spec(_spec)
sys.modules["crash_driver"] = driver
_spec.loader.exec_module(driver)

SHARDS, ROWS = 4, 10
SINKS = ("lancedb", "parquet")


@pytest.fixture(scope="module")
def crew() -> Iterator[driver.Crew]:
    crew = driver.Crew()
    yield crew
    crew.close()


def url_of(kind: str, folder: Path) -> str:
    return f"lancedb://{folder}/docs" if kind == "lancedb" else f"parquet://{folder}/docs"


def read_rows(url: str) -> list[tuple[str, list[float]]]:
    output = output_paths(url)
    if output.kind == "lancedb":
        table = driver.lance.dataset(output.data).to_table(columns=["id", "vector"])
    else:
        table = pyarrow.dataset.dataset(output.data).to_table(columns=["id", "vector"])
    return sorted(zip(table["id"].to_pylist(), table["vector"].to_pylist(), strict=True))


def assert_complete(url: str, *, shards: int = SHARDS, rows: int = ROWS, foreign: int = 0) -> None:
    """Every row exactly once, every reject listed once, the counts balanced, the job closed and out of the ledger."""
    found = read_rows(url)
    own = [row for row in found if not row[0].startswith(driver.FOREIGN)]
    assert own == sorted(driver.expected(shards, rows).items())
    assert len(found) - len(own) == foreign
    manifest = Manifest.open(output_paths(url), "job")
    rejects = [(one.shard, one.ordinal) for one in manifest.rejects()]
    assert rejects == [
        (shard, place) for shard in range(shards) for place in range(rows) if driver.is_rejected(shard, place)
    ]
    totals = manifest.totals()
    assert (totals.rows_in, totals.done, totals.rejected) == (shards * rows, len(own), len(rejects))
    assert manifest.closed() is not None
    assert driver.open_sink(url).folded("job") == set() or output_paths(url).kind == "parquet"


def test_every_failpoint_in_the_code_is_listed() -> None:
    """A commit point that no crash test dies at is a promise nobody keeps."""
    named = {
        name
        for file in (ROOT / "pipelines").glob("*.py")
        for name in re.findall(r'failpoint\(\s*"([^"]+)"', file.read_text())
    }
    named |= {
        name
        for file in (ROOT / "pipelines").glob("*.py")
        for name in re.findall(r'else "([a-z]+\.[a-z-]+)"\)', file.read_text())
    }
    assert named == set(COMMIT_POINTS)


@pytest.mark.parametrize("point", COMMIT_POINTS)
@pytest.mark.parametrize("kind", SINKS)
def test_a_kill_at_any_commit_point_costs_nothing(kind: str, point: str, crew: driver.Crew, tmp_path: Path) -> None:
    """kill -9 at a commit point, then the same command again: the output equals an undisturbed run's."""
    url = url_of(kind, tmp_path)
    job = {"url": url, "shards": SHARDS, "rows": ROWS}
    assert crew.run("job", f"{point}=kill", **job) == -signal.SIGKILL
    assert crew.run("job", **job) == 0
    assert_complete(url)


@pytest.mark.parametrize("kind", SINKS)
def test_kills_again_and_again_cost_nothing(kind: str, crew: driver.Crew, tmp_path: Path) -> None:
    """A job killed at one seeded random commit point after the other still ends exactly right."""
    url, choose = url_of(kind, tmp_path), random.Random(5)
    for _ in range(10):
        point, count = (
            choose.choice([one for one in COMMIT_POINTS if one[:4] in ("stag", "publ", "fold")]),
            choose.randint(1, 2),
        )
        crew.run("job", f"{point}=kill@{count}", url=url, shards=8, rows=ROWS)
    assert crew.run("job", url=url, shards=8, rows=ROWS) == 0
    assert_complete(url, shards=8)


@pytest.mark.parametrize("kind", SINKS)
def test_kills_at_random_moments_cost_nothing(kind: str, crew: driver.Crew, tmp_path: Path) -> None:
    """kill -9 at a random moment, not only where we thought of it."""
    choose = random.Random()
    began = time.monotonic()
    assert crew.run("job", url=url_of(kind, tmp_path / "undisturbed"), shards=SHARDS, rows=ROWS) == 0
    took = time.monotonic() - began
    for attempt in range(10):
        url = url_of(kind, tmp_path / str(attempt))
        pid = crew.start("job", url=url, shards=SHARDS, rows=ROWS)
        time.sleep(choose.uniform(0, took))
        os.kill(pid, signal.SIGKILL)
        assert crew.wait(pid) in (0, -signal.SIGKILL)
        assert crew.run("job", url=url, shards=SHARDS, rows=ROWS) == 0
        assert_complete(url)


@pytest.mark.parametrize("kind", SINKS)
def test_a_race_with_a_frozen_process_and_strangers_ends_right(kind: str, crew: driver.Crew, tmp_path: Path) -> None:
    """Four processes on one job, one frozen before its fold and thawed after the end, a foreign writer and optimize
    in between: every row once, the foreign rows kept."""
    url = url_of(kind, tmp_path)
    job = {"url": url, "shards": 12, "rows": ROWS}
    frozen = crew.start("job", "fold.before-commit=stop@2", **job)
    assert crew.wait_stopped(frozen) == signal.SIGSTOP
    racers = [crew.start("job", **job) for _ in range(3)]
    strangers: list[int] = []
    if kind == "lancedb":
        strangers = [crew.start("foreign", url=url, start=number * 7, count=7) for number in range(5)]
    tidy = crew.start("optimize", output=url)
    assert [crew.wait(pid) for pid in racers] == [0, 0, 0]
    assert [crew.wait(pid) for pid in strangers] == [0] * len(strangers)
    assert crew.wait(tidy) == 0
    os.kill(frozen, signal.SIGCONT)
    assert crew.wait(frozen) == 0
    assert_complete(url, shards=12, foreign=7 * len(strangers))


@pytest.mark.parametrize(
    "point", ["plan.written", "register.before-commit", "publish.before", "fold.read", "close.before", "close.written"]
)
@pytest.mark.parametrize("kind", SINKS)
def test_a_process_thawed_after_the_job_is_closed_changes_nothing(
    kind: str, point: str, crew: driver.Crew, tmp_path: Path
) -> None:
    """Whatever a frozen process was about to do, the job that others finished meanwhile stays as it is."""
    url = url_of(kind, tmp_path)
    job = {"url": url, "shards": SHARDS, "rows": ROWS}
    frozen = crew.start("job", f"{point}=stop", **job)
    assert crew.wait_stopped(frozen) == signal.SIGSTOP
    assert crew.run("job", **job) == 0
    os.kill(frozen, signal.SIGCONT)
    assert crew.wait(frozen) == 0
    assert_complete(url)


@pytest.mark.parametrize("kind", SINKS)
def test_many_processes_may_begin_at_once(kind: str, crew: driver.Crew, tmp_path: Path) -> None:
    """Six processes that all find no output make one, and one job in it."""
    url = url_of(kind, tmp_path)
    racers = [crew.start("job", url=url, shards=SHARDS, rows=ROWS) for _ in range(6)]
    assert [crew.wait(pid) for pid in racers] == [0] * 6
    assert_complete(url)


def test_replacing_rows_survives_kills(crew: driver.Crew, tmp_path: Path) -> None:
    """A replace job killed at every commit point leaves each id once, with the new vector, and no row of its rejects."""
    for point in COMMIT_POINTS:
        url = url_of("lancedb", tmp_path / point)
        assert crew.run("foreign", url=url, start=0, count=3) == 0
        assert crew.run("job", url=url, shards=SHARDS, rows=ROWS, job="first", on_existing="append", salt=5) == 0
        job = {"url": url, "shards": SHARDS, "rows": ROWS, "on_existing": "replace"}
        assert crew.run("job", f"{point}=kill", **job) == -signal.SIGKILL
        assert crew.run("job", **job) == 0
        assert_complete(url, foreign=3)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", SINKS)
def test_chaos(kind: str, crew: driver.Crew, tmp_path: Path) -> None:
    """A thousand shards under kills, freezes, foreign writers and optimize: nothing lost, nothing doubled."""
    url, choose = url_of(kind, tmp_path), random.Random(int(os.environ.get("LADING_CHAOS_SEED", "0")))
    job = {"url": url, "shards": 1000, "rows": 20}
    running, frozen = [crew.start("job", **job) for _ in range(4)], []
    foreign = kills = freezes = 0
    while (manifest := Manifest.find(output_paths(url), "job")) is None or manifest.closed() is None:
        time.sleep(choose.uniform(0.02, 0.2))
        event = choose.random()
        if event < 0.2 or not kills:  # first of all: the job may be done before chance has it
            pid = running.pop(choose.randrange(len(running)))
            os.kill(pid, signal.SIGKILL)
            kills += crew.wait(pid) == -signal.SIGKILL
            running.append(crew.start("job", **job))
        elif event < 0.4 or not freezes:
            pid = running.pop(choose.randrange(len(running)))
            os.kill(pid, signal.SIGSTOP)
            if crew.wait_stopped(pid) == signal.SIGSTOP:
                freezes += 1
                frozen.append(pid)
            running.append(crew.start("job", **job))
        elif event < 0.6 and frozen:
            pid = frozen.pop(0)
            os.kill(pid, signal.SIGCONT)
            running.append(pid)
        elif event < 0.8 and kind == "lancedb" and os.path.exists(output_paths(url).data + "/_versions"):
            # An append that loses again and again gives up, having written nothing.
            foreign += 7 * (crew.run("foreign", url=url, start=foreign, count=7) == 0)
        elif event < 0.9 and os.path.exists(output_paths(url).data):
            crew.run("optimize", output=url)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    assert {crew.wait(pid) for pid in running + frozen} == {0}
    assert crew.run("job", **job) == 0
    print(f"{kind}: {kills} kills, {freezes} freezes, {foreign} foreign rows")
    assert_complete(url, shards=1000, rows=20, foreign=foreign)
    assert kills, "no process died: this run showed nothing"
    assert freezes, "no process froze: this run showed nothing"
