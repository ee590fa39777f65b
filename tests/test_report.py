"""What status and rejects tell of shards that failed: their rows are in neither list, and nobody may overlook that."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.cli import main
from lading.pipelines.job import draft, start
from lading.pipelines.output import find_output
from lading.pipelines.report import failed_shards, status
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
from lading.workers.run import run

PLANNED_NS, TOUCHED_NS = 10**18, 2 * 10**18


@pytest.fixture
def spec(tiny_encoder: Path, tmp_path: Path) -> JobSpec:
    """Two files of 20 rows in shards of 10, each with one blank row."""
    for name in ("a", "b"):
        pq.write_table(pa.table({"text": [" ", *["a file"] * 19]}), tmp_path / f"{name}.parquet")
        os.utime(tmp_path / f"{name}.parquet", ns=(PLANNED_NS, PLANNED_NS))
    return JobSpec(
        source=SourceSpec(paths=(f"{tmp_path}/*.parquet",)),
        steps=(StepSpec(verb="encode", model=str(tiny_encoder), text=("text",)),),
        sink=SinkSpec(to=f"parquet://{tmp_path}/out"),
        policy=PolicySpec(shard_rows=10),
    )


@pytest.fixture
def output(spec: JobSpec, tmp_path: Path) -> str:
    """The output of the job, whose second file was touched after it was planned."""
    drafted = draft(spec)
    start(drafted)
    os.utime(tmp_path / "b.parquet", ns=(TOUCHED_NS, TOUCHED_NS))
    assert run(drafted, device="cpu", threads=1).state == "unfinished"
    return f"{tmp_path}/out"


def test_rejects_tells_of_failed_shards(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output lists rows; standard error says how many shards failed, of what, how many rows they have and why."""
    assert main(["rejects", output]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "2 shards failed, whose rows are neither in the output nor listed here" in err
    assert err.count("b.parquet (10 rows): ") == 2
    assert err.count("changed since the job was planned") == 2


def test_rejects_as_json_has_a_line_for_each_failed_shard(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One object per line, all with the same keys; `rows` adds up to all that is not in the output."""
    assert main(["rejects", output, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {tuple(sorted(line)) for line in lines} == {tuple(sorted(lines[0]))}
    assert [(line["code"], line["rows"]) for line in lines] == [
        ("empty-text", 1),
        ("failed-shard", 10),
        ("failed-shard", 10),
    ]
    assert all("changed since" in line["detail"] for line in lines[1:])


def test_a_shard_that_failed_once_and_was_done_is_not_failed(output: str, spec: JobSpec, tmp_path: Path) -> None:
    """A failed shard is listed for its job until the repeated command has done it."""
    failed = failed_shards(output)
    assert [(one.shard, one.rows) for one in failed] == [(2, 10), (3, 10)]
    assert failed_shards(output, failed[0].job) == failed
    os.utime(tmp_path / "b.parquet", ns=(PLANNED_NS, PLANNED_NS))
    assert run(draft(spec), device="cpu", threads=1).state == "finished"
    assert failed_shards(output) == []


def test_a_job_that_died_before_its_plan_is_none(output: str, spec: JobSpec) -> None:
    """A process may make a job's folder and die: the other jobs of the output are shown as if it had not been there."""
    before = status(output)
    folder = Path(find_output(output).manifest, "jobs", "0123456789ab", "check")
    folder.mkdir(parents=True)
    assert status(output) == before
    assert main(["rejects", output]) == 0
    assert main(["optimize", output]) == 0
