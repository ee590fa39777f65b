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

if TYPE_CHECKING:
    import pyarrow as pa

    from ..config.recipe import Recipe

VERSION = 1
DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "|i1", "binary": "|u1"}
ItemError = tuple[int, str, str]  # the input's place in the request, a reject code, a detail for people


class BadResult(ValueError):
    """A result that this release cannot read; says what about it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """The results of one device batch as arrays, one row per item; made once, then cut for each request in it."""

    name: str  # vectors | scores | entities
    dtype: str  # as the wire names it; "" for entities
    main: np.ndarray  # (items, width) vectors, (items,) scores
    scale: np.ndarray | None = None  # float32 (items,): int8 and binary vectors
    entities: pa.Array | None = None  # extract: list<struct>
    tokens: np.ndarray | None = None  # int (items,): option token_columns
    truncated: np.ndarray | None = None  # bool (items,): the same


def columns(recipe: Recipe, batch: pa.RecordBatch) -> Columns:
    """A batch with the adapter's fields, in their order, ready for `answer`."""
    main = batch.column(0)
    if recipe.task == "extract":
        return Columns("entities", "", np.empty(0), entities=main)
    if recipe.task == "score":
        return Columns("scores", "float32", main.to_numpy(zero_copy_only=False))
    vectors = main.flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, main.type.list_size)
    scale = batch.column(1).to_numpy(zero_copy_only=False) if batch.num_columns > 1 else None
    return Columns("vectors", recipe.vector_type, vectors, scale)


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
        else:
            body = b', "%s": ' % first.name.encode("ascii") + _array(_gather(count, pieces, "main"), first.dtype)
            if first.scale is not None:
                body += b', "scale": ' + _array(_gather(count, pieces, "scale"), "float32")
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
    """A result read back: of the four, what the verb gives, and the counts that were asked for."""

    recipe: str
    errors: list[ItemError]
    vectors: np.ndarray | None = None
    scale: np.ndarray | None = None
    scores: np.ndarray | None = None
    entities: list[list[dict[str, Any]]] | None = None
    rows: int | None = None
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
            tokens=np.array(result["tokens"], np.int32) if "tokens" in result else None,
            truncated=np.array(result["truncated"], bool) if "truncated" in result else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadResult(f"a damaged result: {type(error).__name__}: {error}") from error


def _read_array(stored: dict[str, Any]) -> np.ndarray:
    """A writable array. Raises ValueError unless dtype, shape and data agree."""
    dtype, shape = np.dtype(DTYPES[stored["dtype"]]), tuple(stored["shape"])
    data = bytearray(binascii.a2b_base64(stored["data"]))
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for {stored['dtype']} of shape {shape}")
    return np.frombuffer(data, dtype).reshape(shape)
