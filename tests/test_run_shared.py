"""Runs that stop before their end, or share a job with other processes: limits, void shards, and what is in view after."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.pipelines.job import draft, start
from lading.pipelines.manifest import Manifest, Work
from lading.pipelines.output import Folded
from lading.pipelines.records import Receipt, Reject
from lading.pipelines.sinks import open_sink
from lading.workers.run import run
from tests.test_run import SINKS, done, job_spec, table_of


@pytest.fixture(params=SINKS)
def to(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}://{tmp_path}/out/docs"


@pytest.fixture
def many_shards(tmp_path, monkeypatch) -> Path:
    """60 rows in as many shards (`shard_rows=1`), one in three blank; batches so small that none holds more than two."""
    monkeypatch.setenv("LADING_WINDOW_TOKENS", "8")
    path = tmp_path / "in.parquet"
    bodies = ["  " if n % 3 == 2 else "a cat" for n in range(60)]
    pq.write_table(pa.table({"key": [f"k{n:02d}" for n in range(60)], "body": bodies}), path)
    return path


def test_too_many_rejects_stop_a_process_between_two_folds(many_shards, tiny_encoder, to, monkeypatch):
    """A process counts its own rejects shard by shard: it does not wait for the next fold to see that they are too many."""
    monkeypatch.setenv("LADING_FOLD_INTERVAL_S", "1000")
    summary = done(job_spec(many_shards, tiny_encoder, to, shard_rows=1, max_rejects=3), batch_tokens=8)
    assert (summary.state, summary.exit_code) == ("stopped", 3)
    assert summary.remaining_shards > 20


def test_rejects_of_other_processes_count(many_shards, tiny_encoder, to, monkeypatch):
    """The limit is the job's, whoever works on it: what others publish stops this process, too, at its next fold."""
    monkeypatch.setenv("LADING_FOLD_INTERVAL_S", "0")
    drafted = draft(job_spec(many_shards, tiny_encoder, to, shard_rows=1, max_rejects=9))
    job = start(drafted)
    other = Manifest.open(job.sink.output, job.id)

    def publish(_: object) -> None:  # ten rejects, of the last shards that have one
        for shard in range(59, 29, -3):
            rejected = [Reject(shard, 0, str(many_shards), shard, f"k{shard}", "empty-text", "")]
            receipt = Receipt(job.id, shard, 0, "other", rows_in=1, rejected=1, rejects={"empty-text": 1})
            name = other.write_rejects(shard, 0, "other", rejected)
            other.publish(dataclasses.replace(receipt, rejects_file=name))

    summary = run(drafted, device="cpu", threads=1, batch_tokens=8, on_progress=publish)
    assert (summary.state, summary.exit_code) == ("stopped", 3)
    assert "more than max_rejects = 9" in summary.reason
    assert 10 <= summary.rejected < 20
    assert summary.remaining_shards > 0
    again = done(job_spec(many_shards, tiny_encoder, to, shard_rows=1, max_rejects=20))
    assert (again.state, again.rows_done, again.rejected) == ("finished", 40, 20)


def test_a_staged_file_that_is_gone_at_the_last_fold_is_made_again(many_shards, tiny_encoder, to, monkeypatch):
    """A shard whose staged rows someone removed is done again in the same run; its rejects count once against the limit."""
    monkeypatch.setenv("LADING_FOLD_INTERVAL_S", "1000")  # the only fold of the first pass is its last
    drafted = draft(job_spec(many_shards, tiny_encoder, to, shard_rows=3, max_rejects=20))
    job = start(drafted)
    other, removed = Manifest.open(job.sink.output, job.id), set()

    def remove(_: object) -> None:
        for receipt in [] if removed else other.receipts():
            job.sink.discard(receipt.files)
            removed.add(receipt.shard)

    summary = run(drafted, device="cpu", threads=1, batch_tokens=8, on_progress=remove)
    assert removed
    assert (summary.state, summary.exit_code, summary.rows_done, summary.rejected) == ("finished", 0, 40, 20)
    assert {one.shard for one in other.receipts() if one.generation == 1} == removed
    assert [row["id"] for row in table_of(job.spec).to_pylist()] == [f"k{n:02d}" for n in range(60) if n % 3 != 2]


def test_what_others_publish_during_the_last_fold_is_folded_too(many_shards, tiny_encoder, to, monkeypatch):
    """Another process does a void shard again and publishes it while this one folds for the last time: this one ends it all."""
    monkeypatch.setenv("LADING_FOLD_INTERVAL_S", "1000")
    drafted = draft(job_spec(many_shards, tiny_encoder, to, shard_rows=1))
    job = start(drafted)
    ours, other, others = job.sink, Manifest.open(job.sink.output, job.id), open_sink(to)
    others.register(job.id, job.schema, on_existing="refuse")
    again: list[Work] = []

    def reopen(_: object) -> None:
        if not again and (published := [one for one in other.receipts() if one.files]):
            ours.discard(published[0].files)
            other.reopen_void(others.fold(job.id, published[:1]).void)
            again.extend(work for work in other.work() if work.generation == 1)

    def publish_after(job_id: str, receipts: list[Receipt]) -> Folded:
        folded = fold(job_id, receipts)
        for work in again:
            row, number = work.shard.start, work.shard.number
            rejects = [Reject(number, 0, str(many_shards), row, f"k{row:02d}", "failed", "")]
            receipt = Receipt(job.id, number, 1, "other", rows_in=1, rejected=1, rejects={"failed": 1})
            name = other.write_rejects(number, 1, "other", rejects)
            other.publish(dataclasses.replace(receipt, rejects_file=name))
        return folded

    fold = ours.fold
    monkeypatch.setattr(ours, "fold", publish_after)
    summary = run(drafted, device="cpu", threads=1, batch_tokens=8, on_progress=reopen)
    assert len(again) == 1
    assert (summary.state, summary.exit_code, summary.rows_done, summary.rejected) == ("finished", 0, 39, 21)
    assert table_of(job.spec).num_rows == 39


def test_what_is_published_when_a_run_stops_is_in_the_output(tmp_path, tiny_encoder, to, monkeypatch):
    """A shard that the disk has no room for stops the run; those before it are brought into view, not only counted."""
    monkeypatch.setenv("LADING_FOLD_INTERVAL_S", "1000")
    monkeypatch.setenv("LADING_WINDOW_TOKENS", "8")
    bodies = ["a cat"] * 20 + [np.random.default_rng(0).bytes(1_000_000).hex()]
    pq.write_table(pa.table({"key": [f"k{n:02d}" for n in range(21)], "body": bodies}), tmp_path / "in.parquet")
    spec = job_spec(tmp_path / "in.parquet", tiny_encoder, to, shard_rows=4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        summary = done(spec, batch_tokens=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (summary.state, summary.exit_code, summary.rows_done, summary.remaining_shards) == ("stopped", 3, 17, 1)
    assert table_of(spec).num_rows == 17
    assert done(spec).state == "finished"
    assert table_of(spec).num_rows == 21
