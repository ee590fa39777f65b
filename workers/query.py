"""Asks an output a question: embeds the text by the recipe stored with the table, and searches. For trying out
results; applications query the table with lancedb, pyarrow, DuckDB or Polars as it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .. import adapters
from ..config.checkpoint import locate, resolve
from ..config.columns import output_columns
from ..config.errors import ModelError, OutputError, UsageError, nearest
from ..config.lora import locate_adapter
from ..config.recipe import Recipe
from ..pipelines.provenance import RECIPES
from ..pipelines.reading import Reading, open_reading


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """One row found: `score` is the cosine similarity; for binary vectors, of the signs; for sparse ones the dot product;
    for multi-vectors MaxSim."""

    id: str | int
    score: float
    text: str
    columns: dict[str, Any]  # the other columns, vectors left out


def query(
    output: str, text: str, *, top: int = 5, column: str = "", device: str = "auto", instruction: str = ""
) -> list[Hit]:
    """The `top` rows whose vectors are nearest to `text`, best first.

    Raises OutputError (no such table, no vectors in it), ModelError (the model is gone, or is another now).
    """
    return Searcher(output, column=column, device=device, instruction=instruction).search([text], top=top)[0]


class Searcher:
    """An output and its model, loaded once for many queries."""

    def __init__(self, output: str, *, column: str = "", device: str = "auto", instruction: str = "") -> None:
        """`instruction`: for the query prompt of an instruct embedder, "" for the checkpoint's own."""
        self.reading: Reading = open_reading(output)
        recipes = json.loads((self.reading.schema.metadata or {}).get(RECIPES.encode(), b"{}"))
        vectors = {name: entry for name, entry in recipes.items() if entry["recipe"]["task"] == "encode"}
        if not vectors:
            raise OutputError(f"{output} has no vector column made by lading encode")
        if column and column not in vectors:
            raise OutputError(f"{output} has no vector column {column!r}{nearest(column, vectors)}")
        self.column = column or min(vectors, key=lambda name: "output" in vectors[name])  # a dense one, if there is one
        entry = vectors[self.column]
        self.output: str = entry.get("output", "dense")
        self._results = {*vectors, *(f"{name}_scale" for name in vectors)}
        self.text_column: str = entry["text"][0]
        self.recipe, folder = query_recipe(entry, instruction)
        adapter = locate_adapter(entry.get("adapter", ""))
        self.adapter = adapters.load(self.recipe, folder, adapter=adapter, device=device)

    def embed(self, texts: list[str]) -> pa.Array:
        """The queries' results, as `encode` stores them. Raises OutputError for an empty text."""
        prepared = self.adapter.prepare([pa.array(texts, pa.string())])
        for row, (code, detail) in prepared.bad.items():
            raise OutputError(f"query {texts[row][:60]!r}: {code}: {detail}")
        batch = self.adapter.run([(prepared, np.arange(len(texts), dtype=np.int64))]).batch
        return batch.column(output_columns(self.recipe)[self.output])

    def search(self, texts: list[str], *, top: int = 5) -> list[list[Hit]]:
        """For each text its nearest rows, best first, by an exact scan in one pass over the table."""
        if top < 1:
            raise UsageError(f"top must be at least 1, not {top}")
        scores_of = _SCORES[self.output](self.embed(texts))
        best_scores = np.full((len(texts), 0), 0.0, np.float32)
        best_places = np.zeros((len(texts), 0), np.int64)
        start = 0
        for batch in self._batches():
            found = scores_of(self.stored_type, *batch.columns)
            scores = np.concatenate([best_scores, found], axis=1)
            places = np.concatenate(
                [best_places, np.broadcast_to(np.arange(start, start + batch.num_rows), found.shape)], axis=1
            )
            keep = np.argsort(-scores, axis=1, kind="stable")[:, :top]
            best_scores, best_places = np.take_along_axis(scores, keep, 1), np.take_along_axis(places, keep, 1)
            start += batch.num_rows
        rows = self.reading.take(np.unique(best_places))
        by_place = dict(zip(np.unique(best_places).tolist(), rows.to_pylist(), strict=True))
        return [
            [self._hit(by_place[place], score) for place, score in zip(places, scores, strict=True) if score == score]
            for places, scores in zip(best_places.tolist(), best_scores.tolist(), strict=True)
        ]

    def _batches(self) -> Iterator[pa.RecordBatch]:
        scale = f"{self.column}_scale"
        names = [self.column, scale] if scale in self.reading.schema.names else [self.column]
        return iter(self.reading.to_batches(columns=names))

    def _hit(self, row: dict[str, Any], score: float) -> Hit:
        hidden = {*self._results, "id", self.text_column}
        columns = {name: value for name, value in row.items() if name not in hidden}
        return Hit(id=row["id"], score=score, text=row.get(self.text_column) or "", columns=columns)

    @property
    def stored_type(self) -> str:
        recipes = json.loads((self.reading.schema.metadata or {})[RECIPES.encode()])
        return recipes[self.column]["recipe"].get("vector_type", "float32")


def query_recipe(entry: dict[str, Any], instruction: str = "") -> tuple[Recipe, Path]:
    """The stored recipe turned to queries: the query prompt (none if the documents were made without), float32 vectors, no chunks; and the model's folder.

    Raises ModelError if the checkpoint found now is not the one the rows were made with.
    """
    stored = Recipe.from_dict(entry["recipe"])
    where = entry["folder"] if entry["origin"] == "folder" else entry["model"]
    checkpoint = locate(where, entry["revision"])
    recipe = resolve(
        checkpoint,
        task="encode",
        max_tokens=0 if stored.outputs == ("multi_vector",) else stored.max_tokens,  # theirs say how long a query is
        precision=stored.precision,
        outputs=stored.outputs,
        dims=stored.dims or stored.token_dims,
        truncation_side=stored.truncation_side,
        pooling=stored.pooling if "dense" in stored.outputs else "",
        normalize=stored.normalize if "dense" in stored.outputs else None,
        known_as=entry.get("known_as", ""),
        # Of other outputs, it is the prompt that says which side of the model a text is on.
        prompt="none" if entry["prompt"] == "none" and "dense" in stored.outputs else "query",
        instruction=instruction,
        adapter=entry.get("adapter", ""),
    )
    if recipe.adapter != stored.adapter:
        raise ModelError(f"{entry['adapter']} is not the adapter that the table was made with")
    if recipe.content != stored.content:
        raise ModelError(
            f"{where} is not the model the table was made with (content {stored.content[:12]}, now {recipe.content[:12]})"
        )
    return recipe, checkpoint.folder


# -- scores: the queries' results -> the function from a stored batch (its type, its columns) to float32 (queries, rows),
# NaN for rows that are null

_Scores = Callable[..., np.ndarray]


def _dense_scores(queries: pa.Array) -> _Scores:
    unit = _unit(_floats(queries, "float32", None))
    return lambda kind, vectors, scale=None: unit @ _unit(_floats(vectors, kind, scale)).T


def _sparse_scores(queries: pa.Array) -> _Scores:
    rows = queries.to_pylist()
    width = 1 + max((max(row["indices"], default=0) for row in rows), default=0)
    weights = np.zeros((len(rows), width), np.float32)
    for place, row in enumerate(rows):
        weights[place, row["indices"]] = row["values"]

    def scores(_kind: str, stored: pa.Array) -> np.ndarray:
        lists = stored.field("indices")
        ids, values = (stored.field(name).flatten().to_numpy(zero_copy_only=False) for name in ("indices", "values"))
        rows = np.repeat(np.arange(len(stored)), np.diff(lists.offsets.to_numpy()))
        kept = ids < width
        found = np.zeros((len(weights), len(stored)), np.float32)
        for place, own in enumerate(weights):
            np.add.at(found[place], rows[kept], own[ids[kept]] * values[kept])
        found[:, ~np.asarray(stored.is_valid())] = np.nan
        return found

    return scores


def _multi_vector_scores(queries: pa.Array) -> _Scores:
    asked = _matrices(queries)

    def scores(_kind: str, stored: pa.Array) -> np.ndarray:
        found = maxsim(asked, _matrices(stored))
        found[:, ~np.asarray(stored.is_valid())] = np.nan
        return found

    return scores


def maxsim(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> np.ndarray:
    """Late-interaction scores, float32 (queries, documents): for each vector of a query its largest dot product with one of
    the document's, summed. Each is (tokens, dims); a document without vectors scores 0."""
    found = np.zeros((len(queries), len(documents)), np.float32)
    lengths = np.array([len(document) for document in documents], np.int64)
    filled = np.flatnonzero(lengths)
    if not len(filled) or not len(queries):
        return found
    whole = np.concatenate([np.asarray(documents[place], np.float32) for place in filled.tolist()])
    starts = np.cumsum(lengths[filled]) - lengths[filled]
    for place, query in enumerate(queries):
        found[place, filled] = np.maximum.reduceat(np.asarray(query, np.float32) @ whole.T, starts, axis=1).sum(0)
    return found


def _matrices(lists: pa.Array) -> list[np.ndarray]:
    """The vectors of each row, float32 (tokens, dims)."""
    flat = _floats(lists.flatten(), "float32", None)
    lengths = np.where(np.asarray(lists.is_valid()), np.diff(lists.offsets.to_numpy()), 0)
    return np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []


_SCORES: dict[str, Callable[[pa.Array], _Scores]] = {
    "dense": _dense_scores,
    "sparse": _sparse_scores,
    "multi_vector": _multi_vector_scores,
}


def _floats(array: pa.Array, kind: str, scale: pa.Array | None) -> np.ndarray:
    """A stored vector column as float32 (rows, dims); NaN in rows that are null."""
    width = array.type.list_size
    flat = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    if kind == "binary":
        flat = np.unpackbits(flat, axis=1).astype(np.float32) * 2 - 1
    values = flat.astype(np.float32, copy=False)
    if array.null_count:  # flatten() leaves null rows out
        given = values
        values = np.full((len(array), given.shape[1]), np.nan, np.float32)
        values[np.asarray(array.is_valid())] = given
    return values if scale is None else values * scale.to_numpy(zero_copy_only=False)[:, None]


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)
