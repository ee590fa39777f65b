"""Where rows come from: the snapshot of a source, its columns, its shards, and reading one shard.

Formats differ behind one interface (formats.Format). Knows no model and no sink.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator
from types import ModuleType
from typing import cast

import numpy as np
import pyarrow as pa

from ..config.errors import ShardError, SourceError
from . import formats_csv, formats_jsonl, formats_lance, formats_parquet, formats_text, ids
from .failures import reason
from .formats import Asked, Format, Piece
from .records import Input, Reject, Rows, Shard
from .snapshot import find, is_read_error, verify_all
from .spec import SourceSpec

_MODULES: dict[str, ModuleType] = {
    "parquet": formats_parquet,
    "jsonl": formats_jsonl,
    "csv": formats_csv,
    "lance": formats_lance,
    "text": formats_text,
}
FORMATS = {name: cast(Format, module) for name, module in _MODULES.items()}
BATCH_ROWS = 1024
BATCH_BYTES = 16 << 20
SCAN_ROWS = 16384  # a batch of the duplicate scan, which reads ids only


def snapshot(spec: SourceSpec) -> tuple[str, list[Input]]:
    """The source's format and its inputs as they are now: globs, folders and URLs expanded, sorted by path, each once.

    Raises SourceError: nothing there (with the nearest names that are), formats mixed, unknown or compressed.
    """
    return find(spec)


def check_columns(
    spec: SourceSpec, format: str, inputs: list[Input], columns: list[str], texts: list[str]
) -> pa.Schema:
    """What `read` will yield: `id` (string or int64), then the columns asked for. `texts` are those that must be strings.

    Parquet and Lance know their types; JSONL is looked at in its first rows; CSV and text have strings only.
    Raises SourceError: no such column (names file, column and the nearest), another type than needed, files disagree.
    """
    names = list(dict.fromkeys(columns))
    if "id" in names:
        raise SourceError(
            "a column named 'id' cannot be carried or encoded: the output's id has that name; name it as the source's id"
        )
    with _refusing(inputs):
        found = FORMATS[format].schema(inputs, list(dict.fromkeys([*([spec.id] if spec.id else []), *names])))
    where = inputs[0].path if inputs else "the source"
    for name in texts:
        if not pa.types.is_string(found.field(name).type):
            raise SourceError(f"{where}: column {name!r} is {found.field(name).type}; a text column must be string")
    id_type = found.field(spec.id).type if spec.id else pa.string()
    if pa.types.is_integer(id_type):
        id_type = pa.int64()
    elif not pa.types.is_string(id_type):
        raise SourceError(f"{where}: column {spec.id!r} is {id_type}; an id must be string or integer")
    carried = [pa.field(name, id_type) if name == spec.id else found.field(name) for name in names]
    return pa.schema([pa.field("id", id_type), *carried])


def plan(
    spec: SourceSpec, format: str, inputs: list[Input], shard_rows: int
) -> tuple[list[Shard], dict[int, np.ndarray]]:
    """Shards that cover the first `spec.limit` rows (all, without one), each once, in reading order; and the duplicates.

    Duplicates: shard number -> ordinals (int64) of rows whose id an earlier row has. Empty unless an id column
    is named and `spec.check_ids`. Raises SourceError: an unreadable input.
    """
    with _refusing(inputs):
        shards = FORMATS[format].cut(inputs, shard_rows, spec.limit)
    if not (spec.id and spec.check_ids):
        return shards, {}
    schema = check_columns(spec, format, inputs, [], [])
    rows: dict[int, int] = {}

    def id_batches(shard: Shard) -> Iterator[ids.IdBatch]:
        rows[shard.number] = 0
        for some in read(spec, format, inputs, shard, schema, texts=[], batch_rows=SCAN_ROWS):
            rows[shard.number] += some.count
            yield some.batch.column(0), some.ordinals

    try:
        duplicates = ids.find_duplicates(shards, id_batches)
    except ShardError as error:
        raise SourceError(f"looking for duplicate ids: {error}") from error
    return [dataclasses.replace(shard, rows=rows[shard.number]) for shard in shards], duplicates


@contextlib.contextmanager
def _refusing(inputs: list[Input]) -> Generator[None]:
    """Before any work, an input that cannot be read is the user's to mend."""
    try:
        yield
    except Exception as error:
        if not inputs or not is_read_error(error, inputs[0].path):
            raise
        where = getattr(error, "filename", None) or inputs[0].path
        raise SourceError(f"{where} cannot be read: {type(error).__name__}: {reason(error)}") from error


def estimate_rows(format: str, inputs: list[Input], shards: list[Shard]) -> tuple[int, bool]:
    """Rows of these shards, and whether that is exact; else estimated from the length of the first lines."""
    known = sum(shard.rows for shard in shards if shard.rows is not None)
    unknown = sum(shard.stop - shard.start for shard in shards if shard.rows is None)
    if not unknown:
        return known, True
    assert format == "jsonl", format
    return known + round(unknown / formats_jsonl.mean_line_bytes(inputs)), False


def read(
    spec: SourceSpec,
    format: str,
    inputs: list[Input],
    shard: Shard,
    schema: pa.Schema,
    *,
    texts: list[str],
    duplicates: np.ndarray | None = None,
    batch_rows: int = BATCH_ROWS,
    batch_bytes: int = BATCH_BYTES,
) -> Iterator[Rows]:
    """The rows of one shard in reading order, each exactly once, good or bad.

    `schema` is what `check_columns` returned when the job was planned; `duplicates` this shard's entry from `plan`.
    Raises SourceChanged if an input is not what the snapshot saw, before or after reading; ShardError (file
    and place) for what cannot be decoded. Reading a Parquet shard is cheapest right after the one before it.
    """
    names = [field.name for field in schema][1:]
    id_field = [pa.field(spec.id, schema.field(0).type)] if spec.id else []
    source = pa.schema([*id_field, *(schema.field(name) for name in names if name != spec.id)])
    asked = Asked(source, spec.id, tuple(texts), batch_rows, batch_bytes)
    used = inputs[shard.start : shard.stop] if format == "text" else [inputs[shard.input]]
    verify_all(used, format)
    count = 0
    try:
        for piece in FORMATS[format].read(inputs, shard, asked):
            rows = _finish(piece, shard, schema, source, asked, duplicates)
            count += rows.count
            yield rows
    except ShardError:
        verify_all(used, format)  # a change explains more than the error it led to
        raise
    except Exception as error:
        if not is_read_error(error, used[0].path):
            raise
        verify_all(used, format)
        raise ShardError(f"{used[0].path} cannot be read: {type(error).__name__}: {reason(error)}") from error
    verify_all(used, format)
    if shard.rows is not None and count != shard.rows:
        raise ShardError(f"{used[0].path}: shard {shard.number} was planned with {shard.rows} rows, but has {count}")


def _finish(
    piece: Piece, shard: Shard, schema: pa.Schema, source: pa.Schema, asked: Asked, duplicates: np.ndarray | None
) -> Rows:
    """Rows from a Piece: ids made or checked, rows without one or with another row's rejected."""
    by_name = dict(zip(source.names, piece.columns, strict=True))
    if asked.id:
        id_column = by_name[asked.id]
    else:
        id_column = ids.row_ids(piece.paths, piece.positions, [by_name[name] for name in asked.texts])
    batch = pa.RecordBatch.from_arrays([id_column, *(by_name[name] for name in schema.names[1:])], schema=schema)
    if not asked.id:
        return Rows(batch, piece.ordinals, piece.positions, piece.paths, piece.bad)
    null = np.asarray(id_column.is_null()) if id_column.null_count else np.zeros(len(id_column), bool)
    again = np.isin(piece.ordinals, duplicates) & ~null if duplicates is not None else np.zeros(len(id_column), bool)
    lost = null | again
    if not lost.any():
        return Rows(batch, piece.ordinals, piece.positions, piece.paths, piece.bad)
    bad = list(piece.bad)
    for row in np.flatnonzero(lost).tolist():
        path = piece.paths if isinstance(piece.paths, str) else piece.paths[row]
        why = (
            ("null-id", f"column {asked.id!r} is null") if null[row] else ("duplicate-id", "an earlier row has this id")
        )
        bad.append(
            Reject(
                shard.number, int(piece.ordinals[row]), path, int(piece.positions[row]), id_column[row].as_py(), *why
            )
        )
    bad.sort(key=lambda reject: reject.ordinal)
    kept = np.flatnonzero(~lost)
    paths = piece.paths if isinstance(piece.paths, str) else [piece.paths[row] for row in kept]
    return Rows(batch.take(pa.array(kept)), piece.ordinals[kept], piece.positions[kept], paths, bad)
