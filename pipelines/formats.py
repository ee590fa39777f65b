"""What every source format offers, the record between a format and `sources`, and what formats share:
picking columns, batches of an even size, and turning Arrow columns or parsed rows into good rows and rejects.

Knows neither files nor specs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ..config.errors import SourceError, nearest
from .records import Input, Reject, Shard

DETAIL_CHARACTERS = 200  # of a bad value shown in a reject


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What is read from a source. `schema` has the source's own column names, the id column first if one is named."""

    schema: pa.Schema
    id: str  # "" is: no id column
    texts: tuple[str, ...]
    batch_rows: int
    batch_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Some consecutive rows of a shard as a format gives them; see `records.Rows`, which `sources` makes of it."""

    columns: list[pa.Array]  # of the good rows, one per field of Asked.schema and of exactly that type
    ordinals: np.ndarray  # int64
    positions: np.ndarray  # int64
    paths: list[str] | str
    bad: list[Reject]


class Format(Protocol):
    """One way rows are stored. Modules implement it: formats_parquet, formats_jsonl and their neighbours."""

    def schema(self, inputs: list[Input], names: list[str]) -> pa.Schema:
        """Types of the named columns, in that order. Raises SourceError: no such column, inputs disagree."""
        ...

    def cut(self, inputs: list[Input], shard_rows: int, limit: int) -> list[Shard]:
        """Shards of at most (JSONL: about) `shard_rows` rows that cover every row once, in reading order."""
        ...

    def read(self, inputs: list[Input], shard: Shard, asked: Asked) -> Iterator[Piece]:
        """The rows of one shard, each in exactly one Piece, good or bad. Raises ShardError, OSError, ArrowException."""
        ...


class Fault(Exception):
    """Why one row cannot be read: a reject's code and detail. Never leaves the formats."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def shown(value: object) -> str:
    """A value as a reject's detail shows it: cut to DETAIL_CHARACTERS."""
    text = repr(value[:DETAIL_CHARACTERS] if isinstance(value, str | bytes) else value)
    return text if len(text) <= DETAIL_CHARACTERS else text[:DETAIL_CHARACTERS] + "..."


def plain(type: pa.DataType) -> pa.DataType:
    """The type a column is handed on as: dictionaries decoded, every spelling of string is string."""
    if pa.types.is_dictionary(type):
        return plain(type.value_type)
    if pa.types.is_large_string(type) or pa.types.is_string_view(type):
        return pa.string()
    return type


def pick(schema: pa.Schema, names: Iterable[str], path: str) -> pa.Schema:
    """The named fields as plain types. Raises SourceError for a column that is missing or there twice."""
    fields: list[pa.Field] = []
    for name in names:
        places = schema.get_all_field_indices(name)
        if len(places) > 1:
            raise SourceError(f"{path} has {len(places)} columns named {name!r}; rename all but one")
        if not places:
            raise SourceError(f"{path} has no column {name!r}{nearest(name, schema.names)}")
        fields.append(pa.field(name, plain(schema.field(places[0]).type)))
    return pa.schema(fields)


def agreed(schemas: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """The one schema of all inputs, given as (path, schema). Raises SourceError where a type differs."""
    first: tuple[str, pa.Schema] = ("", pa.schema([]))
    for path, schema in schemas:
        first = first if first[0] else (path, schema)
        for was, now in zip(first[1], schema, strict=True):
            if was.type != now.type:
                raise SourceError(
                    f"column {now.name!r} is {now.type} in {path}, but {was.type} in {first[0]}; make them the same"
                )
    return first[1]


def even_ranges(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut [start, stop) into the fewest ranges of at most `most`, all about equally long."""
    parts = -(-(stop - start) // most)
    for part in range(parts):
        yield start + (stop - start) * part // parts, start + (stop - start) * (part + 1) // parts


def rebatch(batches: Iterable[pa.RecordBatch], rows: int, nbytes: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at most `rows` rows and, single larger rows aside, `nbytes` bytes."""
    held: list[pa.RecordBatch] = []
    held_rows = held_bytes = 0
    for batch in batches:
        for part in _parts(batch, rows, nbytes):
            if held and (held_rows + part.num_rows > rows or held_bytes + part.nbytes > nbytes):
                yield held[0] if len(held) == 1 else pa.concat_batches(held)
                held, held_rows, held_bytes = [], 0, 0
            held.append(part)
            held_rows += part.num_rows
            held_bytes += part.nbytes
    if held:
        yield held[0] if len(held) == 1 else pa.concat_batches(held)


def _parts(batch: pa.RecordBatch, rows: int, nbytes: int) -> Iterator[pa.RecordBatch]:
    if batch.num_rows <= 1 or (batch.num_rows <= rows and batch.nbytes <= nbytes):
        if batch.num_rows:
            yield batch
        return
    half = batch.num_rows // 2
    yield from _parts(batch.slice(0, half), rows, nbytes)
    yield from _parts(batch.slice(half), rows, nbytes)


def from_columns(batch: pa.RecordBatch, asked: Asked, shard: Shard, path: str, *, ordinal: int, position: int) -> Piece:
    """A batch as stored, cast to what was asked and checked: nothing that is not UTF-8 goes on."""
    columns: list[pa.Array] = []
    faults: dict[int, Fault] = {}
    for field in asked.schema:
        stored = batch.column(field.name)
        try:
            columns.append(_checked(stored, field))
        except pa.ArrowException:
            column, wrong = _one_by_one(stored, field)
            columns.append(column)
            faults = wrong | faults
    ordinals = np.arange(ordinal, ordinal + batch.num_rows)
    positions = np.arange(position, position + batch.num_rows)
    if not faults:
        return Piece(columns, ordinals, positions, path, [])
    ids = columns[0].to_pylist() if asked.id else [None] * batch.num_rows
    bad = [_reject(shard, path, ordinal + row, position + row, ids[row], faults[row]) for row in sorted(faults)]
    good = np.ones(batch.num_rows, bool)
    good[list(faults)] = False
    return Piece([column.filter(pa.array(good)) for column in columns], ordinals[good], positions[good], path, bad)


def _checked(stored: pa.Array, field: pa.Field) -> pa.Array:
    column = stored if stored.type == field.type else stored.cast(field.type)
    column.validate(full=True)  # readers do not look whether a string column holds UTF-8
    return column


def _one_by_one(stored: pa.Array, field: pa.Field) -> tuple[pa.Array, dict[int, Fault]]:
    """A column with rows that cannot be used: null in their place, and why."""
    rows: list[pa.Array] = []
    faults: dict[int, Fault] = {}
    for row in range(len(stored)):
        one = stored.take(pa.array([row]))
        try:
            rows.append(_checked(one, field))
        except pa.ArrowException as error:
            rows.append(pa.nulls(1, field.type))
            code = "invalid-utf8" if "UTF8" in str(error) else "invalid-row"
            faults[row] = Fault(code, f"column {field.name!r}: {shown(str(error))}")
    return pa.concat_arrays(rows), faults


def from_rows(
    records: Iterable[tuple[str, int, int, Any]],
    build: Callable[[list[Any]], list[pa.Array]],
    id_of: Callable[[Any], Any],
    asked: Asked,
    shard: Shard,
) -> Iterator[Piece]:
    """Pieces from parsed rows: (path, position, bytes, row or Fault).

    `build` gives one array per field for many rows or raises Fault; then each row is built alone, so that what
    a row becomes does not depend on its neighbours.
    """
    good: list[tuple[int, str, int, Any]] = []  # ordinal, path, position, row
    bad: list[Reject] = []
    held_bytes = 0
    for ordinal, (path, position, nbytes, row) in enumerate(records):
        if (good or bad) and (len(good) + len(bad) >= asked.batch_rows or held_bytes + nbytes > asked.batch_bytes):
            yield _built(good, bad, build, id_of, shard)
            good, bad, held_bytes = [], [], 0
        if isinstance(row, Fault):
            bad.append(_reject(shard, path, ordinal, position, None, row))
        else:
            good.append((ordinal, path, position, row))
        held_bytes += nbytes
    if good or bad:
        yield _built(good, bad, build, id_of, shard)


def _built(
    rows: list[tuple[int, str, int, Any]],
    bad: list[Reject],
    build: Callable[[list[Any]], list[pa.Array]],
    id_of: Callable[[Any], Any],
    shard: Shard,
) -> Piece:
    try:
        columns = build([row for _, _, _, row in rows])
    except Fault:
        kept: list[tuple[int, str, int, Any]] = []
        for ordinal, path, position, row in rows:
            try:
                build([row])
                kept.append((ordinal, path, position, row))
            except Fault as fault:
                bad.append(_reject(shard, path, ordinal, position, id_of(row), fault))
        rows = kept
        columns = build([row for _, _, _, row in rows])
    ordinals = np.fromiter((ordinal for ordinal, _, _, _ in rows), np.int64, len(rows))
    positions = np.fromiter((position for _, _, position, _ in rows), np.int64, len(rows))
    paths = [path for _, path, _, _ in rows]
    return Piece(columns, ordinals, positions, paths, sorted(bad, key=lambda reject: reject.ordinal))


def _reject(shard: Shard, path: str, ordinal: int, position: int, id: object, fault: Fault) -> Reject:
    known = id if isinstance(id, str | int) and not isinstance(id, bool) else None
    return Reject(shard.number, ordinal, path, position, known, fault.code, fault.detail)
