"""Sources for the tests: one logical table in every format, and reading a whole source back."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq

from lading.pipelines import sources

FORMATS = ("parquet", "jsonl", "csv", "lance", "text")
TEXTS = ["plain", "two\nlines", 'a "quoted", word', "naïve ☃ 𝄞", "", "  ", "tab\there", "plain", "x" * 3000] + [
    f"row {n}" for n in range(40)
]
TABLE = pa.table({"key": [f"k{n:02d}" for n in range(len(TEXTS))], "body": TEXTS, "rank": range(len(TEXTS))})


def write(folder: Path, format, table=TABLE):
    """The table in this format; the path to name in a spec. Text folders hold `body` only, in files named by `key`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows.{format}"
    if format == "parquet":
        pq.write_table(table, path, row_group_size=11)
    elif format == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif format == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(table.column_names)
            writer.writerows(row.values() for row in table.to_pylist())
    elif format == "lance":
        lance.write_dataset(table, str(path), max_rows_per_file=9)
    else:
        for row in table.to_pylist():
            place = path / row["key"][:2]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{row['key']}.md").write_bytes(row["body"].encode())
    return str(path)


@dataclasses.dataclass
class Found:
    rows: list[dict]
    rejects: list
    ordinals: dict[int, list[int]]  # shard -> of good and bad rows, sorted
    positions: list[tuple[str, int]]
    schema: pa.Schema
    shards: list


def collect(spec, columns, texts=None, *, shard_rows=4096, **batching):
    """Plans and reads a whole source."""
    texts = columns[:1] if texts is None else texts
    format, inputs = sources.snapshot(spec)
    schema = sources.check_columns(spec, format, inputs, columns, texts)
    shards, duplicates = sources.plan(spec, format, inputs, shard_rows)
    found = Found([], [], {}, [], schema, shards)
    for shard in shards:
        ordinals = []
        for rows in sources.read(
            spec, format, inputs, shard, schema, texts=texts, duplicates=duplicates.get(shard.number), **batching
        ):
            assert rows.batch.schema == schema
            assert rows.count <= batching.get("batch_rows", 1024)
            assert len(rows.ordinals) == len(rows.positions) == rows.batch.num_rows
            found.rows += rows.batch.to_pylist()
            found.rejects += rows.bad
            ordinals += [*rows.ordinals.tolist(), *(reject.ordinal for reject in rows.bad)]
            paths = [rows.paths] * rows.batch.num_rows if isinstance(rows.paths, str) else rows.paths
            found.positions += zip(paths, rows.positions.tolist(), strict=True)
        found.ordinals[shard.number] = sorted(ordinals)
        assert shard.rows is None or shard.rows == len(ordinals)
    return found


def jsonl(folder, *lines, name="in.jsonl"):
    path = folder / name
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return str(path)


def codes(found):
    return [(reject.ordinal, reject.code) for reject in found.rejects]
