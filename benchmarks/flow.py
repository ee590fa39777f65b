"""A million short rows through the real command: memory stays flat, and what surrounds the model costs little.

    python benchmarks/flow.py [--rows 1000000] [--source parquet|jsonl|csv] [--to lancedb|parquet] [--quick] [--json]

`lading encode` runs as a child process on one thread with a tiny random model, over a tenth of the rows and over all
of them. Peak memory is the kernel's figure for the child. "Everything around the model" is the child's whole CPU time
less what the tokenizer and the forward pass took (both measured inside, on threads of their own): interpreter, imports,
loading, planning, reading, packing, writing, committing. It is given for the whole command and, by the difference
of the two runs, per row without what is paid once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import passages
from benchmarks.report import Report
from tests.models import tiny_encoder

CHUNK = 50_000  # rows made at once
MEMORY_BOUND_MB = 300
SHARE_BOUND = 25.0
ONE_THREAD = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS", "LANCE_CPU_THREADS", "LADING_THREADS")


@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """One command: what the kernel says of the process, and its own summary."""

    rows: int
    peak_mb: float
    cpu_s: float
    wall_s: float
    tokenising_s: float
    forward_s: float
    stages: dict[str, float]

    @property
    def around_s(self) -> float:
        return self.cpu_s - self.tokenising_s - self.forward_s


def rows(count: int) -> Iterator[pa.Table]:
    """`count` different rows: an id and three to twelve words of real text."""
    words = " ".join(passages(2000)).split()
    draw = random.Random(0)
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        places = [(draw.randrange(len(words) - 12), draw.randint(3, 12)) for _ in numbers]
        texts = [" ".join(words[place : place + size]) for place, size in places]
        yield pa.table({"doc_id": [f"doc-{number:08d}" for number in numbers], "text": texts})


def write(path: Path, count: int) -> None:
    """The rows as Parquet (row groups of CHUNK), JSON lines or CSV, by the path's ending."""
    tables = rows(count)
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, pa.schema({"doc_id": pa.string(), "text": pa.string()})) as writer:
            for table in tables:
                writer.write_table(table)
    elif path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for table in tables for row in table.to_pylist())
    else:
        pyarrow.csv.write_csv(pa.concat_tables(tables), path)


def encode(source: Path, count: int, model: Path, to: str, extra: list[str]) -> Ran:
    """Run the command on one thread; its rows, CPU seconds and peak memory."""
    command = [sys.executable, "-m", "lading.cli", "encode", str(source), "--id", "doc_id", "--model", str(model)]
    environment = os.environ | dict.fromkeys(ONE_THREAD, "1") | {"TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        [*command, "--to", to, "--threads", "1", "--json", *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    summary = json.loads(said)
    if summary["rows_done"] != count:
        sys.exit(f"{summary['rows_done']} of {count} rows came through: {summary}")
    peak = usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    stages = summary["cpu_seconds"]
    return Ran(
        count,
        peak,
        usage.ru_utime + usage.ru_stime,
        summary["elapsed_s"],
        stages["prepare"],
        stages["run"],
        stages,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--source", choices=("parquet", "jsonl", "csv"), default="parquet")
    parser.add_argument("--to", choices=("lancedb", "parquet"), action="append", help="default: both")
    parser.add_argument("--quick", action="store_true", help="50,000 rows: to try the script, not for figures")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("options", nargs="*", help="after --: further options of `lading encode`")
    wanted = parser.parse_args()
    total = 50_000 if wanted.quick else wanted.rows
    report = Report(wanted.json)
    with tempfile.TemporaryDirectory(dir=wanted.folder) as place:
        folder = Path(place)
        model = tiny_encoder(folder / "model")
        sources: dict[int, Path] = {}
        for count in (total // 10, total):
            sources[count] = folder / f"rows-{count}.{wanted.source}"
            write(sources[count], count)
        for sink in wanted.to or ("lancedb", "parquet"):
            report.title(f"{wanted.source} to {sink}, one thread, a tiny random model")
            small, large = (
                encode(path, count, model, f"{sink}://{folder}/{sink}-{count}/rows", wanted.options)
                for count, path in sources.items()
            )
            show(report, f"{wanted.source} to {sink}", small, large)


def show(report: Report, name: str, small: Ran, large: Ran) -> None:
    """The figures of one source and sink."""
    grown = large.peak_mb - small.peak_mb
    report.line(f"{name}: peak memory at {small.rows:,} rows", small.peak_mb, "MB")
    report.line(f"{name}: peak memory at {large.rows:,} rows", large.peak_mb, "MB")
    report.line(f"{name}: growth", grown, "MB", MEMORY_BOUND_MB, verdict(grown <= MEMORY_BOUND_MB))
    report.line(f"{name}: rows per second", large.rows / large.wall_s, "rows/s")
    share = 100 * large.around_s / large.cpu_s
    report.line(
        f"{name}: around the model, start-up included", share, "% of CPU", SHARE_BOUND, verdict(share < SHARE_BOUND)
    )
    more = large.rows - small.rows
    report.line(f"{name}: CPU per row, all", 1e6 * (large.cpu_s - small.cpu_s) / more, "µs/row")
    report.line(f"{name}: CPU per row, tokenising", 1e6 * (large.tokenising_s - small.tokenising_s) / more, "µs/row")
    report.line(f"{name}: CPU per row, forward", 1e6 * (large.forward_s - small.forward_s) / more, "µs/row")
    around = 1e6 * (large.around_s - small.around_s) / more
    report.line(f"{name}: CPU per row, around the model", around, "µs/row")
    report.line(f"{name}: CPU at start-up and end", small.around_s - around * small.rows / 1e6, "s")
    for stage in ("read", "hand out", "write", "fold"):
        report.line(f"{name}: of that, {stage} (its own thread)", 1e6 * large.stages[stage] / large.rows, "µs/row")


def verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


if __name__ == "__main__":
    main()
