"""The result of a request on the wire, made by workers from an adapter's columns and turned back by clients.

A vector is bytes in base64, little-endian, not JSON numbers: 2 KB instead of 8 for 384 dimensions, and nothing to parse.
Knows numpy; Arrow values come in, none is made. docs/message-format.md describes the format for other languages.
"""

from __future__ import annotations

import binascii
import dataclasses
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.columns import output_columns

if TYPE_CHECKING:
    import pyarrow as pa

    from ..config.recipe import Recipe

VERSION = 1
DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "|i1", "binary": "|u1", "int32": "<i4"}
ItemError = tuple[int, str, str]  # the input's place in the request, a reject code, a detail for people


class BadResult(ValueError):
    """A result that this release cannot read; says what about it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """The results of one device batch as arrays, one row per item; made once, then cut for each request in it."""

    name: str  # vectors | scores | entities, "" without any of them
    dtype: str  # as the wire names it; "" for entities
    main: np.ndarray  # (items, width) vectors, (items,) scores
    scale: np.ndarray | None = None  # float32 (items,): int8 and binary vectors
    entities: pa.Array | None = None  # extract: list<struct>
    lists: dict[str, Lists] = dataclasses.field(default_factory=dict)  # sparse | multi_vectors
    tokens: np.ndarray | None = None  # int (items,): option token_columns
    truncated: np.ndarray | None = None  # bool (items,): the same


@dataclasses.dataclass(frozen=True, slots=True)
class Lists:
    """For each item some values, end to end: item i has `starts[i]:starts[i + 1]` of every array."""

    starts: np.ndarray  # int64 (items + 1,)
    arrays: dict[str, tuple[str, np.ndarray]]  # name -> dtype as the wire names it, and the values


def _lists(column: pa.Array, name: str, dtype: str) -> Lists:
    """One list column; of a multi-vector (values, dims)."""
    values = column.flatten()
    starts = column.offsets.to_numpy() - column.offsets[0].as_py()
    if dtype == "int32" or name == "values":
        return Lists(starts.astype(np.int64), {name: (dtype, values.to_numpy(zero_copy_only=False))})
    flat = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), values.type.list_size)
    return Lists(starts.astype(np.int64), {name: (dtype, flat)})


def columns(recipe: Recipe, batch: pa.RecordBatch) -> Columns:
    """A batch with the adapter's fields, in their order, ready for `answer`."""
    main = batch.column(0)
    if recipe.task == "extract":
        return Columns("entities", "", np.empty(0), entities=main)
    if recipe.task == "score":
        return Columns("scores", "float32", main.to_numpy(zero_copy_only=False))
    named = output_columns(recipe)
    lists: dict[str, Lists] = {}
    if "sparse" in named:
        column = batch.column(named["sparse"])
        indices = _lists(column.field("indices"), "indices", "int32")
        lists["sparse"] = Lists(
            indices.starts, indices.arrays | _lists(column.field("values"), "values", "float32").arrays
        )
    if "multi_vector" in named:
        lists["multi_vectors"] = _lists(batch.column(named["multi_vector"]), "vectors", recipe.vector_type)
    if "dense" not in named:
        return Columns("", "", np.empty(0), lists=lists)
    vectors = main.flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, main.type.list_size)
    scaled = f"{named['dense']}_scale"
    scale = batch.column(scaled).to_numpy(zero_copy_only=False) if scaled in batch.schema.names else None
    return Columns("vectors", recipe.vector_type, vectors, scale, lists=lists)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Where some of a request's inputs have their results: `places` (ints) in the request, `rows` of the columns."""

    columns: Columns
    places: Sequence[int] | np.ndarray
    rows: Sequence[int] | np.ndarray


def answer(recipe_hash: str, count: int, pieces: Sequence[Piece], errors: Sequence[ItemError] = ()) -> bytes:
    """The JSON object that is the result of a request with `count` inputs.

    Inputs in no piece are zeros (entities: none) and should be in `errors`. With no piece at all, the result has the
    errors alone.
    """
    head = b'{"version": %d, "recipe": "%s"' % (VERSION, recipe_hash.encode("ascii"))
    body = b""
    if pieces:
        first = pieces[0].columns
        if first.name == "entities":
            body = b', "entities": ' + json.dumps(_entities(count, pieces)).encode("ascii")
        elif first.name:
            body = b', "%s": ' % first.name.encode("ascii") + _array(_gather(count, pieces, "main"), first.dtype)
            if first.scale is not None:
                body += b', "scale": ' + _array(_gather(count, pieces, "scale"), "float32")
        for name in first.lists:
            body += b', "%s": ' % name.encode("ascii") + _gather_lists(count, pieces, name)
        for name in ("tokens", "truncated"):
            if getattr(first, name) is not None:
                body += b', "%s": ' % name.encode("ascii") + json.dumps(_gather(count, pieces, name).tolist()).encode()
    told = (
        b', "errors": ' + json.dumps([list(error) for error in errors]).encode("ascii") if errors else b', "errors": []'
    )
    return head + body + told + b"}"


def stored(recipe_hash: str, rows: int, errors: Sequence[ItemError] = ()) -> bytes:
    """The result of a request whose rows went into a table: how many did."""
    told: dict[str, Any] = {"version": VERSION, "recipe": recipe_hash, "rows": rows}
    told["errors"] = [list(error) for error in errors]
    return json.dumps(told).encode("ascii")


def _gather(count: int, pieces: Sequence[Piece], field: str) -> np.ndarray:
    first: np.ndarray = getattr(pieces[0].columns, field)
    whole = np.zeros((count, *first.shape[1:]), first.dtype)
    for piece in pieces:
        whole[piece.places] = getattr(piece.columns, field)[piece.rows]
    return whole


def _gather_lists(count: int, pieces: Sequence[Piece], name: str) -> bytes:
    """How many values each input has, and the values end to end."""
    lengths = np.zeros(count, np.int32)
    cut: list[tuple[int, Lists, int, int]] = []  # place, where from, first, past the last
    for piece in pieces:
        lists = piece.columns.lists[name]
        for place, row in zip(piece.places, piece.rows, strict=True):
            first, last = int(lists.starts[row]), int(lists.starts[row + 1])
            lengths[place] = last - first
            cut.append((int(place), lists, first, last))
    cut.sort(key=lambda one: one[0])
    body = b'{"lengths": ' + _array(lengths, "int32")
    for array, (dtype, like) in pieces[0].columns.lists[name].arrays.items():
        parts = [lists.arrays[array][1][first:last] for _, lists, first, last in cut]
        body += b', "%s": ' % array.encode("ascii") + _array(np.concatenate(parts) if parts else like[:0], dtype)
    return body + b"}"


def _array(values: np.ndarray, dtype: str) -> bytes:
    data = binascii.b2a_base64(values.astype(DTYPES[dtype], copy=False).tobytes(), newline=False)
    shape = b", ".join(b"%d" % size for size in values.shape)
    return b'{"dtype": "%s", "shape": [%s], "data": "%s"}' % (dtype.encode("ascii"), shape, data)


def _entities(count: int, pieces: Sequence[Piece]) -> list[list[dict[str, Any]]]:
    whole: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for piece in pieces:
        assert piece.columns.entities is not None
        for place, row in zip(piece.places, piece.rows, strict=True):
            whole[place] = piece.columns.entities[int(row)].as_py() or []
    return whole


# -- the client's side


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A result read back: what the verb gives, of encode each output that was asked for, and the counts that were asked for.

    sparse: for each input its token ids (int32) and their weights (float32); multi_vectors: for each its vectors (tokens, dims).
    """

    recipe: str
    errors: list[ItemError]
    vectors: np.ndarray | None = None
    scale: np.ndarray | None = None
    scores: np.ndarray | None = None
    entities: list[list[dict[str, Any]]] | None = None
    rows: int | None = None
    sparse: list[tuple[np.ndarray, np.ndarray]] | None = None
    multi_vectors: list[np.ndarray] | None = None
    tokens: np.ndarray | None = None  # int32 (inputs,)
    truncated: np.ndarray | None = None  # bool (inputs,)


def read(result: dict[str, Any]) -> Answer:
    """The inverse of `answer` and `stored`. Raises BadResult."""
    if result.get("version") != VERSION:
        raise BadResult(f"result version {result.get('version')!r} is not {VERSION}, the one this release reads")
    try:
        return Answer(
            recipe=result["recipe"],
            errors=[(int(place), str(code), str(detail)) for place, code, detail in result["errors"]],
            vectors=_read_array(result["vectors"]) if "vectors" in result else None,
            scale=_read_array(result["scale"]) if "scale" in result else None,
            scores=_read_array(result["scores"]) if "scores" in result else None,
            entities=result.get("entities"),
            rows=result.get("rows"),
            sparse=_read_sparse(result["sparse"]) if "sparse" in result else None,
            multi_vectors=_read_lists(result["multi_vectors"], "vectors") if "multi_vectors" in result else None,
            tokens=np.array(result["tokens"], np.int32) if "tokens" in result else None,
            truncated=np.array(result["truncated"], bool) if "truncated" in result else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadResult(f"a damaged result: {type(error).__name__}: {error}") from error


def _read_sparse(stored: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(_read_lists(stored, "indices"), _read_lists(stored, "values"), strict=True))


def _read_lists(stored: dict[str, Any], name: str) -> list[np.ndarray]:
    """Raises ValueError unless the lengths are those of the values."""
    lengths, values = _read_array(stored["lengths"]), _read_array(stored[name])
    if lengths.dtype != np.int32 or lengths.min(initial=0) < 0 or lengths.sum() != len(values):
        raise ValueError(f"{name}: lengths that do not make up {len(values)}")
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _read_array(stored: dict[str, Any]) -> np.ndarray:
    """A writable array. Raises ValueError unless dtype, shape and data agree."""
    dtype, shape = np.dtype(DTYPES[stored["dtype"]]), tuple(stored["shape"])
    data = bytearray(binascii.a2b_base64(stored["data"]))
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for {stored['dtype']} of shape {shape}")
    return np.frombuffer(data, dtype).reshape(shape)
