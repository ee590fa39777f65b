"""The contract of every source format: each row once, the same ids, whatever the shards."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.config.errors import SourceChanged
from lading.pipelines import sources
from lading.pipelines.spec import SourceSpec
from tests.source_tables import FORMATS, TABLE, TEXTS, codes, collect, jsonl, write


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shard_rows", [1, 7, 1000])
def test_every_row_once_in_order_whatever_the_shards(tmp_path, format, shard_rows):
    """Shards cover every row once, in reading order, and ordinals count a shard's rows from 0."""
    column = "text" if format == "text" else "body"
    found = collect(SourceSpec(paths=(write(tmp_path, format),)), [column], shard_rows=shard_rows, batch_rows=3)
    assert [row[column] for row in found.rows] == TEXTS
    assert found.rejects == []
    assert all(ordinals == list(range(len(ordinals))) for ordinals in found.ordinals.values())
    if format != "jsonl":  # JSONL shards are ranges of bytes, so their rows are only about that many
        assert max(len(ordinals) for ordinals in found.ordinals.values()) <= shard_rows


@pytest.mark.parametrize("format", FORMATS)
def test_ids_and_positions_do_not_depend_on_shards(tmp_path, format):
    """A row made an id by hash has the same id and position in any plan, and no two rows share one."""
    column = "text" if format == "text" else "body"
    spec = SourceSpec(paths=(write(tmp_path, format),))
    small, large = (
        collect(spec, [column], shard_rows=rows, batch_rows=batch) for rows, batch in ((3, 2), (1000, 1024))
    )
    assert [row["id"] for row in small.rows] == [row["id"] for row in large.rows]
    assert small.positions == large.positions
    assert len({row["id"] for row in small.rows}) == len(set(small.positions)) == len(TEXTS)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("limit", [1, 10, 1000])
def test_limit_is_the_first_rows_of_the_full_reading(tmp_path, format, limit):
    """With a limit exactly that many rows are read, the first ones, with the same ids."""
    column = "text" if format == "text" else "body"
    spec = SourceSpec(paths=(write(tmp_path, format),))
    whole = collect(spec, [column])
    part = collect(dataclasses.replace(spec, limit=limit), [column], shard_rows=4)
    assert part.rows == whole.rows[:limit]


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "lance"])
def test_named_ids_and_carried_columns(tmp_path, format):
    """A named id and carried columns come as the source types them; in CSV all is string."""
    found = collect(
        SourceSpec(paths=(write(tmp_path, format),), id="key"), ["body", "rank", "key"], ["body"], shard_rows=5
    )
    rank = str if format == "csv" else int
    assert found.rows == [
        {"id": row["key"], "body": row["body"], "rank": rank(row["rank"]), "key": row["key"]}
        for row in TABLE.to_pylist()
    ]
    assert found.schema.field("id").type == pa.string()


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "lance"])
@pytest.mark.parametrize("shard_rows", [3, 1000])
def test_first_of_a_duplicate_id_wins(tmp_path, format, shard_rows):
    """Of rows with one id the first in reading order is kept; later ones, in its shard or another, are rejects."""
    keys = ["a", "b", "a", "c", "d", "e", "b", "a", "f", "f"]
    table = pa.table({"key": keys, "body": [f"text {n}" for n in range(10)]})
    spec = SourceSpec(paths=(write(tmp_path, format, table),), id="key")
    found = collect(spec, ["body"], shard_rows=shard_rows)
    assert [(row["id"], row["body"]) for row in found.rows] == [
        (k, f"text {n}") for k, n in (("a", 0), ("b", 1), ("c", 3), ("d", 4), ("e", 5), ("f", 8))
    ]
    assert [(reject.id, reject.code) for reject in found.rejects] == [(key, "duplicate-id") for key in "abaf"]
    unchecked = collect(dataclasses.replace(spec, check_ids=False), ["body"], shard_rows=shard_rows)
    assert len(unchecked.rows) == 10


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "lance"])
def test_a_source_without_rows_has_no_shards(tmp_path, format):
    """An empty corpus is a valid plan of zero shards."""
    spec = SourceSpec(paths=(write(tmp_path, format, TABLE.slice(0, 0)),), id="key")
    assert collect(spec, ["body"]).shards == []


def test_shards_inside_one_row_group_in_any_order(tmp_path):
    """A row group larger than a shard is cut by rows, and its shards can be read in any order, again and again."""
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE, path)
    spec = SourceSpec(paths=(str(path),))
    format, inputs = sources.snapshot(spec)
    schema = sources.check_columns(spec, format, inputs, ["body"], ["body"])
    shards, _ = sources.plan(spec, format, inputs, 10)
    assert [shard.rows for shard in shards] == [9, 10, 10, 10, 10]
    for number in (0, 1, 3, 2, 3, 4, 0):
        shard = shards[number]
        found = [
            text
            for rows in sources.read(spec, format, inputs, shard, schema, texts=["body"], batch_rows=4)
            for text in rows.batch["body"].to_pylist()
        ]
        assert found == TEXTS[shard.start : shard.stop]


def test_parquet_types(tmp_path):
    """Dictionaries and large strings come as string, integers of any width as int64 ids; one too large is a reject."""
    table = pa.table({
        "key": pa.array([1, 2**63, 3], pa.uint64()),
        "body": pa.array(["a", "b", "a"]).dictionary_encode(),
        "large": pa.array(["x", None, "z"], pa.large_string()),
        "vector": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2)),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    found = collect(
        SourceSpec(paths=(str(tmp_path / "a.parquet"),), id="key"), ["body", "large", "vector"], ["body", "large"]
    )
    assert found.schema.types[:3] == [pa.int64(), pa.string(), pa.string()]
    assert [(row["id"], row["body"], row["vector"]) for row in found.rows] == [
        (1, "a", [1.0, 2.0]),
        (3, "a", [1.0, 2.0]),
    ]
    assert codes(found) == [(1, "invalid-row")]


def test_batches_are_cut_by_bytes(tmp_path):
    """A batch stays below batch_bytes unless a single row is larger."""
    table = pa.table({"key": [str(n) for n in range(60)], "body": ["x" * 1000] * 60})
    for format in ("parquet", "jsonl", "lance", "csv"):
        spec = SourceSpec(paths=(write(tmp_path / format, format, table),))
        format, inputs = sources.snapshot(spec)
        schema = sources.check_columns(spec, format, inputs, ["body"], ["body"])
        (shard,) = sources.plan(spec, format, inputs, 100)[0]
        counts = [
            rows.count for rows in sources.read(spec, format, inputs, shard, schema, texts=["body"], batch_bytes=5500)
        ]
        assert sum(counts) == 60
        assert 2 <= max(counts) <= 5


def test_rows_are_known_or_estimated(tmp_path):
    """Rows of a plan are exact where planning knows them, and near where JSONL line lengths are sampled."""
    for format in ("parquet", "csv", "lance", "jsonl"):
        spec = SourceSpec(paths=(write(tmp_path, format),))
        format, inputs = sources.snapshot(spec)
        shards, _ = sources.plan(spec, format, inputs, 10)
        rows, exact = sources.estimate_rows(format, inputs, shards)
        assert exact == (format != "jsonl")
        assert abs(rows - len(TEXTS)) <= (0 if exact else 2)
    scanned, _ = sources.plan(dataclasses.replace(spec, id="key"), format, inputs, 10)
    assert sources.estimate_rows(format, inputs, scanned) == (len(TEXTS), True)


def test_memory_filesystem_is_read_like_a_local_one():
    """Any fsspec URL is a source: the same rows, and a change is noticed there too."""
    import fsspec

    fs = fsspec.filesystem("memory")
    try:
        fs.pipe("/corpus/a.jsonl", b'{"t": "one"}\n{"t": "two"}\n')
        fs.pipe("/corpus/b.jsonl", b'{"t": "three"}\n')
        spec = SourceSpec(paths=("memory://corpus/*.jsonl",))
        found = collect(spec, ["t"], shard_rows=1)
        assert [row["t"] for row in found.rows] == ["one", "two", "three"]
        assert found.positions[2] == ("memory:///corpus/b.jsonl", 0)
        sink = pa.BufferOutputStream()
        pq.write_table(TABLE, sink)
        fs.pipe("/tables/a.parquet", sink.getvalue().to_pybytes())
        assert [
            row["body"] for row in collect(SourceSpec(paths=("memory://tables",)), ["body"], shard_rows=9).rows
        ] == TEXTS
        format, inputs = sources.snapshot(spec)
        schema = sources.check_columns(spec, format, inputs, ["t"], ["t"])
        (shard, *_), _ = sources.plan(spec, format, inputs, 10)
        fs.pipe("/corpus/a.jsonl", b'{"t": "new"}\n{"t": "two"}\n')
        with pytest.raises(SourceChanged):
            list(sources.read(spec, format, inputs, shard, schema, texts=["t"]))
    finally:
        fs.rm("/corpus", recursive=True)
        fs.rm("/tables", recursive=True)


def test_ordinals_of_rejects_and_rows_meet(tmp_path):
    """Good rows and rejects of a shard together number its rows without a gap."""
    lines = [{"t": "ok"}, b"{", {"t": 1}] * 50
    found = collect(SourceSpec(paths=(jsonl(tmp_path, *lines),)), ["t"], shard_rows=20, batch_rows=7)
    assert all(ordinals == list(range(len(ordinals))) for ordinals in found.ordinals.values())
    assert (len(found.rows), len(found.rejects)) == (50, 100)
    assert np.all(np.diff([position for _, position in found.positions]) > 0)
