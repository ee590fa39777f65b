"""CSV and TSV with a header line. Newlines may be inside quotes, so planning reads every record once and notes where
shards begin; planning and reading use the same parser, Python's own. Every column is a string: CSV knows no types.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from ..config.errors import SourceError
from .formats import Asked, Fault, Piece, from_rows, pick
from .records import Input, Shard
from .snapshot import open_input

FIELD_BYTES = 64 << 20  # a longer field is taken for a quote that was never closed
BOM = b"\xef\xbb\xbf"


class _Lines:
    """Feeds a csv.reader line by line and knows how many bytes it has taken."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file = file
        self.position = start
        self.ended = False
        file.seek(start)

    def __iter__(self) -> Iterator[str]:
        for line in self.file:
            first = self.position == 0
            self.position += len(line)
            # Bytes that are not UTF-8 pass as lone surrogates: only a row whose asked columns hold one is a reject.
            yield (line.removeprefix(BOM) if first else line).decode("utf-8", "surrogateescape")
        self.ended = True


def records(one: Input, file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, int, list[str] | Fault]]:
    """(offset, bytes, fields) of the records that begin in [start, stop); `start` must begin one. Blank lines are none."""
    csv.field_size_limit(FIELD_BYTES)
    lines = _Lines(file, start)
    reader = csv.reader(lines, delimiter="\t" if one.path.lower().endswith(".tsv") else ",")
    while (position := lines.position) < stop:
        try:
            fields: list[str] | Fault = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fields = Fault("invalid-row", str(error).partition(" - ")[0])
        else:
            if lines.ended:  # the parser asked for another line inside a record: only an open quote does that
                raise SourceError(f"{one.path}: the record at byte {position} opens a quote that is never closed")
            if not fields:
                continue
        yield position, lines.position - position, fields


def _header(one: Input, file: BinaryIO) -> tuple[list[str], int]:
    """Column names and the offset of the first record; no names for an empty file."""
    for position, nbytes, fields in records(one, file, 0, sys.maxsize):
        if isinstance(fields, Fault):
            raise SourceError(f"{one.path}: the header line cannot be read: {fields.detail}")
        return fields, position + nbytes
    return [], 0


def schema(inputs: list[Input], names: list[str]) -> pa.Schema:
    """See `formats.Format`."""
    for one in inputs:
        with open_input(one) as file:
            header, _ = _header(one, file)
        if header:
            pick(pa.schema([(column, pa.string()) for column in header]), names, one.path)
    return pa.schema([(name, pa.string()) for name in names])


def cut(inputs: list[Input], shard_rows: int, limit: int) -> list[Shard]:
    """See `formats.Format`. Ranges are bytes, each beginning with a record. Raises SourceError for an open quote."""
    shards: list[Shard] = []
    left = limit or sys.maxsize
    for place, one in enumerate(inputs):
        with open_input(one) as file:
            _, start = _header(one, file)
            stop, rows = start, 0
            for position, nbytes, _ in records(one, file, start, one.size):
                if not left:
                    break
                if rows == shard_rows:
                    shards.append(Shard(len(shards), place, start, stop, rows=rows))
                    start, rows = position, 0
                stop, rows, left = position + nbytes, rows + 1, left - 1
        if rows:
            shards.append(Shard(len(shards), place, start, stop, rows=rows))
    return shards


def read(inputs: list[Input], shard: Shard, asked: Asked) -> Iterator[Piece]:
    """See `formats.Format`. An empty id is null; any other empty field is the empty string."""
    one = inputs[shard.input]
    with open_input(one) as file:
        header, _ = _header(one, file)
        places = [header.index(name) for name in asked.schema.names]

        def build(rows: list[list[str]]) -> list[pa.Array]:
            try:
                columns: list[list[str | None]] = [[row[place] for row in rows] for place in places]
                if asked.id:
                    columns[0] = [value or None for value in columns[0]]
                return [pa.array(column, pa.string()) for column in columns]
            except UnicodeEncodeError as error:
                raise Fault("invalid-utf8", f"{error.object[error.start : error.end]!a} is not UTF-8") from error

        def checked() -> Iterator[tuple[str, int, int, list[str] | Fault]]:
            for position, nbytes, fields in records(one, file, shard.start, shard.stop):
                if isinstance(fields, list) and len(fields) != len(header):
                    fields = Fault("invalid-row", f"{len(fields)} fields where the header has {len(header)}")
                yield one.path, position, nbytes, fields

        id_place = places[0] if asked.id else 0
        yield from from_rows(checked(), build, lambda row: row[id_place] if asked.id else None, asked, shard)
