"""What the formats do with any input: byte ranges of JSONL, quoted newlines of CSV, row ranges and batches."""

import csv
import io
import itertools
import json

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lading.pipelines import formats, formats_csv, formats_jsonl, formats_parquet, sources
from lading.pipelines.spec import SourceSpec

any_texts = st.lists(st.text(max_size=12), max_size=12)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"{}", b'{"a": 1}', b"", b" ", b"x" * 9, b"\r"]),
            st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
        ),
        max_size=12,
    ),
    st.booleans(),
    st.sets(st.integers(0, 120), max_size=8),
)
def test_any_cut_of_lines_gives_each_once(pieces, ended, cuts):
    """Whatever bytes the ranges begin and end at, each line that is not blank is in exactly one, in order."""
    content = b"".join(line + newline for line, newline in pieces)
    content = content if ended else content.rstrip(b"\r\n")
    borders = [0, *sorted(cut for cut in cuts if 0 < cut < len(content)), len(content)]
    found = [pair for a, b in itertools.pairwise(borders) for pair in formats_jsonl.lines(io.BytesIO(content), a, b)]
    wanted = [line for line in content.split(b"\n") if line.strip()]
    assert [line.rstrip(b"\n") for _, line in found] == [line.rstrip(b"\n") for line in wanted]
    assert all(content[at : at + len(line)] == line for at, line in found)


def read_back(path, shard_rows, columns, **fields):
    spec = SourceSpec(paths=(str(path),), **fields)
    format, inputs = sources.snapshot(spec)
    schema = sources.check_columns(spec, format, inputs, columns, [])
    shards, _ = sources.plan(spec, format, inputs, shard_rows)
    found = []
    for shard in shards:
        for rows in sources.read(spec, format, inputs, shard, schema, texts=[], batch_rows=3):
            assert not rows.bad
            found += rows.batch.select(columns).to_pylist()
    return found


@quick
@given(
    texts=any_texts, bom=st.booleans(), newline=st.sampled_from(["\n", "\r\n", "\n \n"]), shard_rows=st.integers(1, 5)
)
def test_jsonl_gives_back_what_was_written(tmp_path, texts, bom, newline, shard_rows):
    """Any texts, however lines end and wherever shards are cut, come back as they were."""
    lines = "".join(json.dumps({"t": text}, ensure_ascii=False) + newline for text in texts)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" * bom + lines.encode())
    assert read_back(tmp_path / "a.jsonl", shard_rows, ["t"]) == [{"t": text} for text in texts]


csv_texts = st.lists(st.text(st.sampled_from('ab,"\n\r é'), max_size=8), max_size=12)


@quick
@given(
    texts=csv_texts,
    bom=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n"]),
    all_quoted=st.booleans(),
    shard_rows=st.integers(1, 5),
)
def test_csv_gives_back_what_was_written(tmp_path, texts, bom, newline, all_quoted, shard_rows):
    """Quotes, commas and newlines inside fields never cut a record, whatever the shards."""
    rows = [{"k": str(n), "t": text} for n, text in enumerate(texts)]
    all_quoted = all_quoted or any("\r" in text for text in texts)  # Python writes a lone \r unquoted otherwise
    out = io.StringIO(newline="")
    writer = csv.DictWriter(
        out, ["k", "t"], lineterminator=newline, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL
    )
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" * bom + out.getvalue().encode())
    assert read_back(tmp_path / "a.csv", shard_rows, ["k", "t"]) == rows


@quick
@given(content=st.text(st.sampled_from('a,"\n\r'), max_size=40), shard_rows=st.integers(1, 4))
def test_csv_shards_see_the_records_that_one_reading_sees(tmp_path, content, shard_rows):
    """Also in text that is hardly CSV, reading shard by shard finds the records of reading at once, at their bytes."""
    (tmp_path / "a.csv").write_bytes(b"h\n" + content.encode())
    _, inputs = sources.snapshot(SourceSpec(paths=(str(tmp_path / "a.csv"),)))

    def records(start, stop):
        with open(inputs[0].path, "rb") as file:
            return [(at, size, str(fields)) for at, size, fields in formats_csv.records(inputs[0], file, start, stop)]

    try:
        whole = records(2, inputs[0].size)
    except sources.SourceError:
        return  # a quote left open is refused by planning, too
    shards = formats_csv.cut(inputs, shard_rows, 0)
    assert [record for shard in shards for record in records(shard.start, shard.stop)] == whole
    assert all(shard.rows == len(records(shard.start, shard.stop)) for shard in shards)


def test_tsv_is_cut_at_tabs(tmp_path):
    """The ending .tsv means tabs between fields."""
    (tmp_path / "a.tsv").write_text("k\tt\n1\tx, y\n")
    assert read_back(tmp_path / "a.tsv", 5, ["k", "t"]) == [{"k": "1", "t": "x, y"}]


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 20))
def test_row_ranges_cover_and_keep_borders(groups, shard_rows):
    """Ranges follow each other, none is empty or above shard_rows, and none crosses into part of a row group."""
    ranges = list(formats_parquet.row_ranges(groups, shard_rows))
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(sum(groups)))
    assert all(0 < stop - start <= shard_rows for start, stop in ranges)
    borders = {sum(groups[:n]) for n in range(len(groups) + 1)}
    touched = {border for pair in ranges for border in pair}
    large = [range(sum(groups[:n]), sum(groups[: n + 1])) for n, rows in enumerate(groups) if rows > shard_rows]
    assert all(border in borders or any(border in rows for rows in large) for border in touched)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=10), st.integers(1, 9), st.integers(1, 300))
def test_rebatching_keeps_rows_and_bounds(sizes, rows, nbytes):
    """Batches come out in the same order, within both bounds unless a single row is larger."""
    every = list(range(sum(sizes)))
    batches = [
        pa.record_batch({"n": pa.array(every[sum(sizes[:k]) : sum(sizes[: k + 1])], pa.int64())})
        for k in range(len(sizes))
    ]
    found = list(formats.rebatch(batches, rows, nbytes))
    assert [n for batch in found for n in batch["n"].to_pylist()] == every
    assert all(batch.num_rows <= rows and (batch.nbytes <= nbytes or batch.num_rows == 1) for batch in found)
