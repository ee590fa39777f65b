"""The contract of every source format, and what becomes of each kind of bad input."""

import csv
import dataclasses
import json
import os

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.config.errors import ShardError, SourceChanged, SourceError
from lading.pipelines import sources
from lading.pipelines.spec import SourceSpec

FORMATS = ("parquet", "jsonl", "csv", "lance", "text")
TEXTS = ["plain", "two\nlines", 'a "quoted", word', "naïve ☃ 𝄞", "", "  ", "tab\there", "plain", "x" * 3000] + [
    f"row {n}" for n in range(40)
]
TABLE = pa.table({"key": [f"k{n:02d}" for n in range(len(TEXTS))], "body": TEXTS, "rank": range(len(TEXTS))})


def write(folder, format, table=TABLE):
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
def test_null_ids_are_rejects_and_null_texts_pass(tmp_path, format):
    """A row without an id is a reject, not a duplicate of the next; a null text is the adapter's to reject."""
    table = pa.table({"key": ["a", None, "b", None], "body": ["x", "y", None, "z"]})
    found = collect(SourceSpec(paths=(write(tmp_path, format, table),), id="key"), ["body"])
    assert [(row["id"], row["body"] or None) for row in found.rows] == [("a", "x"), ("b", None)]
    assert codes(found) == [(1, "null-id"), (3, "null-id")]


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "lance"])
def test_a_source_without_rows_has_no_shards(tmp_path, format):
    """An empty corpus is a valid plan of zero shards."""
    spec = SourceSpec(paths=(write(tmp_path, format, TABLE.slice(0, 0)),), id="key")
    assert collect(spec, ["body"]).shards == []


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "lance", "text"])
def test_a_missing_column_names_file_column_and_nearest(tmp_path, format):
    """A column that is not there is refused before any work, with the spelling it may have meant."""
    wrong, right = ("texx", "text") if format == "text" else ("bdoy", "body")
    with pytest.raises(SourceError, match=rf"rows\.{format}.* no column '{wrong}'.*; did you mean '{right}'"):
        collect(SourceSpec(paths=(write(tmp_path, format),)), [wrong])


@pytest.mark.parametrize("format", FORMATS)
def test_a_changed_input_fails_its_shard(tmp_path, format):
    """An input that is no longer what the snapshot saw is SourceChanged, before reading and after it."""
    path = write(tmp_path, format)
    column = "text" if format == "text" else "body"
    spec = SourceSpec(paths=(path,))
    format, inputs = sources.snapshot(spec)
    schema = sources.check_columns(spec, format, inputs, [column], [column])
    shards, _ = sources.plan(spec, format, inputs, 1000)
    reading = sources.read(spec, format, inputs, shards[0], schema, texts=[column], batch_rows=5)
    next(reading)
    if format == "lance":  # a newer version changes nothing; a table made again does
        lance.write_dataset(TABLE, path, mode="append")
        assert sum(rows.count for rows in reading) == len(TEXTS) - 5
        (tmp_path / "rows.lance").rename(tmp_path / "old.lance")
        lance.write_dataset(TABLE.slice(1), path)
    else:
        file = inputs[0].path
        os.utime(file, ns=(1, 1))
        with pytest.raises(SourceChanged, match="changed since"):
            list(reading)
        os.remove(file)
    with pytest.raises(SourceChanged, match=r"changed since|gone since"):
        list(sources.read(spec, format, inputs, shards[0], schema, texts=[column]))


def test_broken_lines_are_rejects(tmp_path):
    """Each line of a JSONL file that cannot be used is one reject with its reason; its neighbours are read."""
    path = jsonl(
        tmp_path,
        {"k": 1, "t": "good"},
        b'{"k": 2, "t": "cut off',
        b'{"k": 3, "t": "\xff\xfe"}',
        b"[1, 2]",
        b"null",
        {"k": 4},
        {"k": 5, "t": 5},
        {"k": "6", "t": "id of another type"},
        {"t": "no id"},
        {"k": None, "t": "null id"},
        b"",
        b"   ",
        b'{"k": 10, "t": "\\ud800"}',
        b"[" * 100_000,
        {"k": 2**70, "t": "id too large"},
        {"k": True, "t": "not a number"},
        b'{"k": 11, "k": 12, "t": "last key counts", "x": NaN}',
    )
    found = collect(SourceSpec(paths=(path,), id="k"), ["t"])
    assert [(row["id"], row["t"]) for row in found.rows] == [(1, "good"), (12, "last key counts")]
    wanted = "invalid-json invalid-utf8 invalid-row invalid-row invalid-row invalid-row invalid-row invalid-row null-id invalid-utf8 invalid-json invalid-row invalid-row"
    assert codes(found) == list(enumerate(wanted.split(), start=1))
    assert found.rejects[5].detail == "column 't' should be string, but is a whole number: 5"
    assert found.rejects[4].id == 4


def test_a_row_becomes_the_same_beside_any_neighbour(tmp_path):
    """Carried JSON values keep type and value whether or not another row of the batch is broken."""
    rows = [
        {"t": "a", "f": 1, "l": ["x"], "o": {"a": [1]}, "s": "s"},
        {"t": "b", "f": 1.5, "l": None, "o": None},
        {"t": "c", "o": {}},
    ]
    alone = collect(SourceSpec(paths=(jsonl(tmp_path, *rows),)), ["t", "f", "l", "o", "s"], ["t"])
    beside = collect(
        SourceSpec(paths=(jsonl(tmp_path, *rows, {"t": "d", "l": "xy"}, {"t": "e", "l": [1]}, name="b.jsonl"),)),
        ["t", "f", "l", "o", "s"],
        ["t"],
    )
    plain = [{key: value for key, value in row.items() if key != "id"} for row in alone.rows]
    assert plain == [
        {"t": "a", "f": 1.0, "l": ["x"], "o": '{"a": [1]}', "s": "s"},
        {"t": "b", "f": 1.5, "l": None, "o": None, "s": None},
        {"t": "c", "f": None, "l": None, "o": "{}", "s": None},
    ]
    assert [{key: value for key, value in row.items() if key != "id"} for row in beside.rows] == plain
    assert codes(beside) == [(3, "invalid-row"), (4, "invalid-row")]


def test_a_later_fraction_is_not_cut_to_a_whole_number(tmp_path):
    """A value the column's type cannot hold is a reject, never silently another value."""
    rows = [{"t": "x", "n": 1}] * sources.formats_jsonl.SAMPLE_ROWS + [{"t": "x", "n": 1.5}]
    found = collect(SourceSpec(paths=(jsonl(tmp_path, *rows),)), ["t", "n"], ["t"])
    assert [(reject.code, reject.detail) for reject in found.rejects] == [
        ("invalid-row", "column 'n' should be int64, but is a number: 1.5")
    ]
    assert len(found.rows) == len(rows) - 1


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_a_ten_megabyte_text_is_a_row(tmp_path, format):
    """One huge row passes whole, between small ones, whatever shard borders fall inside it."""
    texts = ["before", "long " * 2_000_000, "after"]
    table = pa.table({"key": ["a", "b", "c"], "body": texts})
    found = collect(SourceSpec(paths=(write(tmp_path, format, table),), id="key"), ["body"], shard_rows=1)
    assert [row["body"] for row in found.rows] == texts


def test_invalid_utf8_in_parquet_and_csv_is_a_reject(tmp_path):
    """Bytes that are not UTF-8 in a column asked for are a reject naming the column; in others they do not matter."""
    raw = pa.array([b"fine", b"\xff\xfe", b"also fine", "é".encode("latin-1")], pa.binary())
    sloppy = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    pq.write_table(
        pa.table({"key": range(4), "body": sloppy, "other": sloppy, "tags": pa.array([["a"]] * 4)}),
        tmp_path / "a.parquet",
    )
    (tmp_path / "a.csv").write_bytes(b"key,body,other\n0,fine,x\n1,\xff\xfe,x\n2,also fine,\xff\n3,\xe9,x\n")
    for name in ("a.parquet", "a.csv"):
        found = collect(SourceSpec(paths=(str(tmp_path / name),), id="key"), ["body"])
        assert [(str(row["id"]), row["body"]) for row in found.rows] == [("0", "fine"), ("2", "also fine")]
        assert codes(found) == [(1, "invalid-utf8"), (3, "invalid-utf8")]
        assert str(found.rejects[0].id) == "1"


def test_text_files_that_are_not_utf8_are_rejects(tmp_path):
    """A file of a text folder that is not UTF-8 is a reject under its own path; the rest is read."""
    (tmp_path / "a.md").write_text("\ufeffgood")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    found = collect(SourceSpec(paths=(str(tmp_path),), id="path"), ["text"])
    assert [(row["id"], row["text"]) for row in found.rows] == [("a.md", "good")]
    assert [(reject.input, reject.code) for reject in found.rejects] == [(str(tmp_path / "b.txt"), "invalid-utf8")]


def test_csv_rows_with_the_wrong_number_of_fields_are_rejects(tmp_path):
    """A record with too few or too many fields is a reject; blank lines are not rows."""
    (tmp_path / "a.csv").write_text("key,body\na,x\n\nb\nc,y,z\nd,w\n")
    found = collect(SourceSpec(paths=(str(tmp_path / "a.csv"),), id="key"), ["body"])
    assert [row["id"] for row in found.rows] == ["a", "d"]
    assert [(reject.ordinal, reject.detail) for reject in found.rejects] == [
        (1, "1 fields where the header has 2"),
        (2, "3 fields where the header has 2"),
    ]


def test_an_open_quote_in_csv_is_refused(tmp_path):
    """A quote that is never closed would swallow the rest of the file: refused, naming the byte."""
    (tmp_path / "a.csv").write_text('key,body\na,x\nb,"never closed\nc,y\n')
    with pytest.raises(SourceError, match="record at byte 13 opens a quote"):
        collect(SourceSpec(paths=(str(tmp_path / "a.csv"),)), ["body"])


@pytest.mark.parametrize("keep", [0, 3, 200])
def test_a_truncated_parquet_file_is_refused_at_planning(tmp_path, keep):
    """A Parquet file without a readable footer is refused by name before any work."""
    path = write(tmp_path, "parquet")
    with open(path, "r+b") as file:
        file.truncate(keep)
    with pytest.raises(SourceError, match=r"rows\.parquet is not a whole Parquet file"):
        collect(SourceSpec(paths=(path,)), ["body"])


def test_a_damaged_page_fails_the_shard_by_row_group(tmp_path):
    """A page that does not match its checksum is a ShardError naming file and row group; other row groups are read."""
    path = str(tmp_path / "a.parquet")
    pq.write_table(TABLE, path, row_group_size=20, write_page_checksum=True, use_dictionary=False, compression=None)
    place = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    with open(path, "r+b") as file:
        file.seek(place + 80)
        file.write(b"\0\0\0\0\0\0\0\0")
    spec = SourceSpec(paths=(path,))
    format, inputs = sources.snapshot(spec)
    schema = sources.check_columns(spec, format, inputs, ["body"], ["body"])
    first, second, third = sources.plan(spec, format, inputs, 20)[0]

    def texts(shard):
        return [
            text
            for rows in sources.read(spec, format, inputs, shard, schema, texts=["body"])
            for text in rows.batch["body"].to_pylist()
        ]

    assert texts(first) == TEXTS[:20]
    with pytest.raises(ShardError, match=r"a\.parquet: row group 1 cannot be read"):
        texts(second)
    assert texts(third) == TEXTS[40:]


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


def test_columns_of_the_wrong_type_are_refused(tmp_path):
    """A text column that is not string, an id that is neither string nor integer, and files that disagree are refused."""
    pq.write_table(pa.table({"key": [1.5], "body": [b"x"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"key": [1.5], "body": ["x"], "n": [1]}), tmp_path / "b.parquet")
    spec = SourceSpec(paths=(str(tmp_path / "a.parquet"),))
    with pytest.raises(SourceError, match=r"column 'body' is binary; a text column must be string"):
        collect(spec, ["body"])
    with pytest.raises(SourceError, match=r"column 'key' is double; an id must be string or integer"):
        collect(dataclasses.replace(spec, id="key"), ["n"], [])
    with pytest.raises(SourceError, match=r"column 'body' is string in .*b\.parquet, but binary in .*a\.parquet"):
        collect(SourceSpec(paths=(str(tmp_path / "*.parquet"),)), ["body"])


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


def test_an_input_that_vanishes_is_named(tmp_path):
    """A file that goes away between the snapshot and planning is refused by name."""
    spec = SourceSpec(paths=(jsonl(tmp_path, {"t": "x"}),))
    format, inputs = sources.snapshot(spec)
    os.remove(inputs[0].path)
    with pytest.raises(SourceError, match=r"in\.jsonl cannot be read: FileNotFoundError"):
        sources.check_columns(spec, format, inputs, ["t"], ["t"])
    with pytest.raises(SourceError, match=r"in\.jsonl cannot be read: FileNotFoundError"):
        sources.plan(spec, format, inputs, 10)


def test_ordinals_of_rejects_and_rows_meet(tmp_path):
    """Good rows and rejects of a shard together number its rows without a gap."""
    lines = [{"t": "ok"}, b"{", {"t": 1}] * 50
    found = collect(SourceSpec(paths=(jsonl(tmp_path, *lines),)), ["t"], shard_rows=20, batch_rows=7)
    assert all(ordinals == list(range(len(ordinals))) for ordinals in found.ordinals.values())
    assert (len(found.rows), len(found.rejects)) == (50, 100)
    assert np.all(np.diff([position for _, position in found.positions]) > 0)
