"""What a run says of itself at its end, to people: how much of how much, in words that fit the numbers."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.config.words import counted
from lading.pipelines.job import draft
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
from lading.workers.run import run
from lading.workers.summary import Summary

ROWS = 40


def spec(source: Path, model: Path, to: Path) -> JobSpec:
    return JobSpec(
        source=SourceSpec(paths=(str(source),)),
        steps=(StepSpec(verb="encode", model=str(model), text=("text",)),),
        sink=SinkSpec(to=f"parquet://{to}"),
        policy=PolicySpec(shard_rows=10),
    )


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": [f"file {n}" for n in range(ROWS)]}), path)
    return path


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    """Cut into shards by bytes: nobody has counted its lines."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"file {n}"}) + "\n" for n in range(ROWS)))
    return path


def stopped(job: JobSpec) -> Summary:
    stop = threading.Event()
    stop.set()
    return run(draft(job), device="cpu", threads=1, stop=stop)


def test_an_interrupted_job_is_measured_by_all_of_its_rows(parquet: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    """`N of M rows`: M is what the plan knows of the whole job, however little of it was read."""
    summary = stopped(spec(parquet, tiny_encoder, tmp_path / "out"))
    assert (summary.state, summary.rows_in, summary.rows_total) == ("interrupted", 0, ROWS)
    assert f"interrupted: 0 of {ROWS} rows in" in summary.lines()[0]


def test_a_total_that_nobody_knows_is_not_made_up(jsonl: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    """Where the source does not say how many rows there are, the summary says so, until all of them were read."""
    job = spec(jsonl, tiny_encoder, tmp_path / "out")
    summary = stopped(job)
    assert summary.rows_total is None
    assert "of how many is not known" in summary.lines()[0]
    summary = run(draft(job), device="cpu", threads=1)
    assert summary.rows_total == ROWS
    assert f"finished: {ROWS} of {ROWS} rows in" in summary.lines()[0]


def test_what_is_counted_is_named_in_the_right_number() -> None:
    """One is singular, all else plural; of several counts, the noun goes by the last."""
    assert [counted(count, "row") for count in (0, 1, 12_000)] == ["0 rows", "1 row", "12,000 rows"]
    assert [counted(1, "row", of=2), counted(1, "row", of=1)] == ["1 of 2 rows", "1 of 1 row"]
    one = Summary(
        job="j", output="out", state="unfinished", rows_total=1, rows_in=1, failed=1, remaining_shards=1,
        rows_out=1, truncated=1, rows_run=1, elapsed_s=1.0, folds=1, conflicts=1,
    )  # fmt: skip
    said = "\n".join(one.lines())
    for words in ("0 of 1 row ", "1 shard to do, 1 row in", "1 text truncated", "1 commit, 1 conflict;"):
        assert words in said
