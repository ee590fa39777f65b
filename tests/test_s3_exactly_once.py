"""Sinks on an S3 server under kills, freezes and races: what holds on a disk holds where a rename is a copy."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lading.config.failpoints import COMMIT_POINTS
from lading.pipelines.folder import Folder
from lading.pipelines.records import Receipt
from lading.pipelines.sinks import Sink, open_sink
from tests.s3_server import Server
from tests.test_exactly_once import ROWS, SHARDS, SINKS, assert_complete, driver, read_rows


@pytest.fixture(scope="module")
def crew(s3_server: Server) -> Iterator[driver.Crew]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        crew = driver.Crew()
    yield crew
    crew.close()


@pytest.mark.parametrize("kind", SINKS)
def test_a_kill_at_every_commit_point_costs_nothing(kind: str, crew: driver.Crew, s3: str) -> None:
    """A job killed at one commit point after the other, in their order, ends as an undisturbed one."""
    job = {"url": f"{kind}://{s3}/docs", "shards": 2, "rows": ROWS}
    points = [point for point in COMMIT_POINTS if point != "register.before-commit"]
    # A job that makes its table is in its ledger from the first version on: the point is passed when it leaves.
    points.insert(1 if kind == "parquet" else -1, "register.before-commit")
    for point in points:
        assert crew.run("job", f"{point}=kill", **job) == -signal.SIGKILL, point
    assert crew.run("job", **job) == 0
    assert_complete(job["url"], shards=2)


@pytest.mark.parametrize("kind", SINKS)
def test_a_race_with_a_frozen_process_ends_right(kind: str, crew: driver.Crew, s3: str) -> None:
    """Two processes on one job, one more frozen before its fold and thawed after the end: every row once."""
    job = {"url": f"{kind}://{s3}/docs", "shards": SHARDS, "rows": ROWS}
    frozen = crew.start("job", "fold.before-commit=stop@2", **job)
    assert crew.wait_stopped(frozen) == signal.SIGSTOP
    racers = [crew.start("job", **job) for _ in range(2)]
    assert [crew.wait(pid) for pid in racers] == [0, 0]
    os.kill(frozen, signal.SIGCONT)
    assert crew.wait(frozen) == 0
    assert_complete(job["url"])


@pytest.mark.parametrize("kind", SINKS)
def test_many_processes_may_begin_at_once(kind: str, crew: driver.Crew, s3: str) -> None:
    """Four processes that all find no output make one, and one job in it."""
    job = {"url": f"{kind}://{s3}/docs", "shards": 2, "rows": ROWS}
    racers = [crew.start("job", **job) for _ in range(4)]
    assert [crew.wait(pid) for pid in racers] == [0] * 4
    assert_complete(job["url"], shards=2)


@pytest.mark.parametrize("bucket", ["lost-answer", "contended"])
def test_answers_that_are_lost_or_ask_to_try_again_cost_nothing(bucket: str, crew: driver.Crew, s3: str) -> None:
    """Every first conditional put fails, done or not done, those of the table's versions included: each row is there once."""
    job = {"url": f"lancedb://{s3.replace('/docs/', f'/{bucket}/')}/docs", "shards": 1, "rows": ROWS}
    assert crew.run("job", **job) == 0
    assert_complete(job["url"], shards=1)


# -- a rename is a copy: what is between it and its record


class Halting:
    """A job's folder in which one step of a fold does not happen, as if the process had died before it."""

    def __init__(self, folder: Folder, step: str) -> None:
        self._folder, self._step = folder, step

    def __getattr__(self, name: str) -> Any:
        if name == self._step:
            raise Died(name)
        return getattr(self._folder, name)


class Died(Exception):
    pass


@pytest.mark.parametrize("step", ["put", "delete"])
def test_a_part_that_was_copied_and_not_recorded_is_no_second_part(step: str, s3: str) -> None:
    """Dead after the copy, or after its record: the staged file is still there, and folding again shows the rows once."""
    sink = open_sink(f"parquet://{s3}/docs")
    sink.register("job", driver.SCHEMA, on_existing="refuse")
    receipt = staged(sink, ["a", "b"])
    folder = sink.output.job("job")
    with pytest.raises(Died):
        sink._fold_one(Halting(folder, step), "job", receipt)
    assert ids_in(sink) == ["a", "b"]
    assert folder.exists(receipt.files[0]["staged"])
    other = open_sink(sink.output)
    other.register("job", driver.SCHEMA, on_existing="refuse")
    other.fold("job", [receipt])
    assert (ids_in(sink), other.folded("job"), other.void("job")) == (["a", "b"], {(0, 0)}, set())


def test_racers_that_copy_the_same_parts_show_them_once(s3: str) -> None:
    """Four folds of the same receipts at once, each of which may copy and delete: nothing doubled, nothing lost, nothing void."""
    sinks = [open_sink(f"parquet://{s3}/docs") for _ in range(4)]
    for sink in sinks:
        sink.register("job", driver.SCHEMA, on_existing="refuse")
    receipts = [staged(sinks[0], [f"{shard}-{n}" for n in range(3)], shard) for shard in range(6)]
    barrier = threading.Barrier(len(sinks))

    def fold(sink: Sink) -> tuple:
        barrier.wait()
        return sink.fold("job", receipts).void

    with ThreadPoolExecutor(len(sinks)) as pool:
        assert list(pool.map(fold, sinks)) == [()] * len(sinks)
    assert ids_in(sinks[0]) == sorted(f"{shard}-{n}" for shard in range(6) for n in range(3))
    assert sinks[0].folded("job") == {(shard, 0) for shard in range(6)}
    assert sinks[0].output.job("job").names("staging") == []


def staged(sink: Sink, ids: list[str], shard: int = 0) -> Receipt:
    files = sink.stage("job", shard, 0, "attempt", driver.rows_of(ids))
    rows = len(ids)
    return Receipt(
        job="job",
        shard=shard,
        generation=0,
        attempt="attempt",
        rows_in=rows,
        rows_done=rows,
        rows_out=rows,
        files=files,
    )


def ids_in(sink: Sink) -> list[str]:
    return [id for id, _ in read_rows(sink.output.url)]
