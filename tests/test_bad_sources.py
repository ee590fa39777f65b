"""What becomes of each kind of bad input: a reject with its reason, a failed shard, or a refusal."""

import dataclasses
import os

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.config.errors import ShardError, SourceChanged, SourceError
from lading.pipelines import sources
from lading.pipelines.spec import SourceSpec
from tests.source_tables import FORMATS, TABLE, TEXTS, codes, collect, jsonl, write


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "lance"])
def test_null_ids_are_rejects_and_null_texts_pass(tmp_path, format):
    """A row without an id is a reject, not a duplicate of the next; a null text is the adapter's to reject."""
    table = pa.table({"key": ["a", None, "b", None], "body": ["x", "y", None, "z"]})
    found = collect(SourceSpec(paths=(write(tmp_path, format, table),), id="key"), ["body"])
    assert [(row["id"], row["body"] or None) for row in found.rows] == [("a", "x"), ("b", None)]
    assert codes(found) == [(1, "null-id"), (3, "null-id")]


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


def test_an_input_that_vanishes_is_named(tmp_path):
    """A file that goes away between the snapshot and planning is refused by name."""
    spec = SourceSpec(paths=(jsonl(tmp_path, {"t": "x"}),))
    format, inputs = sources.snapshot(spec)
    os.remove(inputs[0].path)
    with pytest.raises(SourceError, match=r"in\.jsonl cannot be read: FileNotFoundError"):
        sources.check_columns(spec, format, inputs, ["t"], ["t"])
    with pytest.raises(SourceError, match=r"in\.jsonl cannot be read: FileNotFoundError"):
        sources.plan(spec, format, inputs, 10)
