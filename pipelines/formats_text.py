"""Text and Markdown files, each one row with the columns `path` (relative to the folder or glob given) and `text`."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from .formats import Asked, Fault, Piece, even_ranges, from_rows, pick
from .records import Input, Shard
from .snapshot import contents

COLUMNS = pa.schema([("path", pa.string()), ("text", pa.string())])


def schema(inputs: list[Input], names: list[str]) -> pa.Schema:
    """See `formats.Format`."""
    return pick(COLUMNS, names, inputs[0].path if inputs else "a text folder")


def cut(inputs: list[Input], shard_rows: int, limit: int) -> list[Shard]:
    """See `formats.Format`. A shard is a run of files."""
    files = min(len(inputs), limit or len(inputs))
    return [
        Shard(n, start, start, stop, rows=stop - start)
        for n, (start, stop) in enumerate(even_ranges(0, files, shard_rows))
    ]


def read(inputs: list[Input], shard: Shard, asked: Asked) -> Iterator[Piece]:
    """See `formats.Format`. Contents are handed on as they are, a byte order mark aside."""

    def build(rows: list[dict[str, str]]) -> list[pa.Array]:
        return [pa.array([row[name] for row in rows], pa.string()) for name in asked.schema.names]

    def records() -> Iterator[tuple[str, int, int, dict[str, str] | Fault]]:
        files = inputs[shard.start : shard.stop]
        for one, content in zip(files, contents(files), strict=True):
            try:
                row: dict[str, str] | Fault = {"path": one.name, "text": content.decode("utf-8-sig")}
            except UnicodeDecodeError as error:
                row = Fault("invalid-utf8", f"byte {error.start} of the file: {error.reason}")
            yield one.path, 0, len(content), row

    yield from from_rows(records(), build, lambda row: row.get(asked.id), asked, shard)
