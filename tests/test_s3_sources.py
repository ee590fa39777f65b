"""Sources on an S3 server: the same rows as from a disk, and what a snapshot knows of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import fsspec
import lance
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from lading.config.errors import ShardError, SourceChanged, SourceError
from lading.pipelines import sources
from lading.pipelines.spec import SourceSpec

ROWS = 20
TABLE = pa.table({"key": [f"k{n}" for n in range(ROWS)], "body": [f"text {n}, with\na line" for n in range(ROWS)]})


def write(place: str, format: str) -> None:
    """TABLE in two files (Lance: one table) at a local path or a URL."""
    if format == "lance":
        lance.write_dataset(TABLE, f"{place}/docs.lance")
        return
    filesystem, root = fsspec.core.url_to_fs(place)
    filesystem.makedirs(root, exist_ok=True)
    for number, part in enumerate((TABLE.slice(0, 12), TABLE.slice(12))):
        if format == "text":
            for row in part.to_pylist():
                filesystem.pipe_file(f"{root}/{row['key']}.txt", row["body"].encode())
            continue
        file = io.BytesIO()
        if format == "parquet":
            pq.write_table(part, file, row_group_size=5)
        elif format == "csv":
            pyarrow.csv.write_csv(part, file)
        else:
            file.write("".join(json.dumps(row) + "\n" for row in part.to_pylist()).encode())
        # What a URL would need quotes for, a store's names have all the same.
        filesystem.pipe_file(f"{root}/ä #{number} +.{format}", file.getvalue())


def rows_of(path: str, format: str) -> tuple[list[list[dict]], int]:
    """The rows of each shard, and how many rows were duplicates."""
    spec = SourceSpec(paths=(path,), id="path" if format == "text" else "key")
    text = "text" if format == "text" else "body"
    found, inputs = sources.snapshot(spec)
    assert found == format
    schema = sources.check_columns(spec, format, inputs, [text], [text])
    shards, duplicates = sources.plan(spec, format, inputs, 8)
    read = [
        [
            row
            for rows in sources.read(spec, format, inputs, shard, schema, texts=[text])
            for row in rows.batch.to_pylist()
        ]
        for shard in shards
    ]
    return read, sum(map(len, duplicates.values()))


@pytest.mark.parametrize("format", sorted(sources.FORMATS))
def test_a_bucket_gives_the_rows_of_a_disk(format: str, s3: str, tmp_path: Path) -> None:
    """Every format is cut and read from a store as from a disk, row for row, names with blanks and umlauts included."""
    write(str(tmp_path / "in"), format)
    write(f"{s3}/in", format)
    there, again = rows_of(f"{s3}/in", format)
    assert sum(map(len, there)) == ROWS
    assert (there, again) == rows_of(str(tmp_path / "in"), format)
    if format != "lance":
        ending = "txt" if format == "text" else format
        assert rows_of(f"{s3}/in/*.{ending}", format)[0] == there


@pytest.mark.parametrize("format", ["jsonl", "parquet", "text"])
def test_an_object_that_changed_is_noticed(format: str, s3: str) -> None:
    """The ETag tells another object of the same name and size, also to a process that has just read the first."""
    write(f"{s3}/in", format)
    spec = SourceSpec(paths=(f"{s3}/in",), id="path" if format == "text" else "key")
    text = "text" if format == "text" else "body"
    _, inputs = sources.snapshot(spec)
    schema = sources.check_columns(spec, format, inputs, [text], [text])
    shards, _ = sources.plan(spec, format, inputs, 8)
    store = fsspec.filesystem("s3")
    content = store.cat_file(inputs[-1].path)
    store.pipe_file(inputs[-1].path, content.replace(b"text", b"TEXT"))
    with pytest.raises(SourceChanged, match="changed since the job was planned"):
        list(sources.read(spec, format, inputs, shards[-1], schema, texts=[text]))
    assert sources.snapshot(spec)[1] != inputs
    store.rm_file(inputs[-1].path)
    with pytest.raises(SourceChanged, match="is gone since"):
        list(sources.read(spec, format, inputs, shards[-1], schema, texts=[text]))


def test_what_is_not_in_the_bucket_is_refused(s3: str) -> None:
    """A name that matches nothing is refused with those that are there, and so is a bucket that does not exist."""
    write(f"{s3}/in", "jsonl")
    with pytest.raises(SourceError, match=r"nothing matches .*/in/x\.jsonl; in .*/in there is ä #. \+\.jsonl"):
        sources.snapshot(SourceSpec(paths=(f"{s3}/in/x.jsonl",)))
    with pytest.raises(SourceError, match="nothing matches s3://dosc/in; in / there is docs"):
        sources.snapshot(SourceSpec(paths=("s3://dosc/in",)))


def test_a_store_that_is_gone_fails_the_shard(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is no change: the shard fails with the client's reason and may be tried again."""
    write(f"{s3}/in", "jsonl")
    spec = SourceSpec(paths=(f"{s3}/in",), id="key")
    _, inputs = sources.snapshot(spec)
    schema = sources.check_columns(spec, "jsonl", inputs, ["body"], ["body"])
    shards, _ = sources.plan(spec, "jsonl", inputs, 8)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(ShardError, match="cannot be looked up: EndpointConnectionError"):
        list(sources.read(spec, "jsonl", inputs, shards[0], schema, texts=["body"]))
    fsspec.filesystem("s3").clear_instance_cache()
