"""Asks an output a question: embeds the text by the recipe stored with the table, and searches. For trying out
results; applications query the table with lancedb, pyarrow, DuckDB or Polars as it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .. import adapters
from ..config.checkpoint import locate, resolve
from ..config.errors import ModelError, OutputError, UsageError, nearest
from ..config.lora import locate_adapter
from ..config.recipe import Recipe
from ..pipelines.provenance import RECIPES
from ..pipelines.reading import Reading, open_reading


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """One row found: `score` is the cosine similarity; for binary vectors, of the signs."""

    id: str | int
    score: float
    text: str
    columns: dict[str, Any]  # the other columns, vectors left out


def query(output: str, text: str, *, top: int = 5, column: str = "", device: str = "auto") -> list[Hit]:
    """The `top` rows whose vectors are nearest to `text`, best first.

    Raises OutputError (no such table, no vectors in it), ModelError (the model is gone, or is another now).
    """
    return Searcher(output, column=column, device=device).search([text], top=top)[0]


class Searcher:
    """An output and its model, loaded once for many queries."""

    def __init__(self, output: str, *, column: str = "", device: str = "auto") -> None:
        self.reading: Reading = open_reading(output)
        recipes = json.loads((self.reading.schema.metadata or {}).get(RECIPES.encode(), b"{}"))
        vectors = {name: entry for name, entry in recipes.items() if entry["recipe"]["task"] == "encode"}
        if not vectors:
            raise OutputError(f"{output} has no vector column made by lading encode")
        if column and column not in vectors:
            raise OutputError(f"{output} has no vector column {column!r}{nearest(column, vectors)}")
        self.column = column or next(iter(vectors))
        entry = vectors[self.column]
        self.text_column: str = entry["text"][0]
        self.recipe, folder = query_recipe(entry)
        adapter = locate_adapter(entry.get("adapter", ""))
        self.adapter = adapters.load(self.recipe, folder, adapter=adapter, device=device)

    def embed(self, texts: list[str]) -> np.ndarray:
        """Query vectors, float32 (texts, dims), unit length. Raises OutputError for an empty text."""
        prepared = self.adapter.prepare([pa.array(texts, pa.string())])
        for row, (code, detail) in prepared.bad.items():
            raise OutputError(f"query {texts[row][:60]!r}: {code}: {detail}")
        batch = self.adapter.run([(prepared, np.arange(len(texts), dtype=np.int64))]).batch
        return _unit(_floats(batch.column(0), "float32", None))

    def search(self, texts: list[str], *, top: int = 5) -> list[list[Hit]]:
        """For each text its nearest rows, best first, by an exact scan in one pass over the table."""
        if top < 1:
            raise UsageError(f"top must be at least 1, not {top}")
        queries = self.embed(texts)
        best_scores = np.full((len(texts), 0), 0.0, np.float32)
        best_places = np.zeros((len(texts), 0), np.int64)
        start = 0
        for vectors in self._vectors():
            scores = np.concatenate([best_scores, queries @ vectors.T], axis=1)
            places = np.concatenate(
                [best_places, np.broadcast_to(np.arange(start, start + len(vectors)), (len(texts), len(vectors)))],
                axis=1,
            )
            keep = np.argsort(-scores, axis=1, kind="stable")[:, :top]
            best_scores, best_places = np.take_along_axis(scores, keep, 1), np.take_along_axis(places, keep, 1)
            start += len(vectors)
        rows = self.reading.take(np.unique(best_places))
        by_place = dict(zip(np.unique(best_places).tolist(), rows.to_pylist(), strict=True))
        return [
            [self._hit(by_place[place], score) for place, score in zip(places, scores, strict=True) if score == score]
            for places, scores in zip(best_places.tolist(), best_scores.tolist(), strict=True)
        ]

    def _vectors(self) -> Iterator[np.ndarray]:
        kind = self.stored_type
        scale = f"{self.column}_scale"
        names = [self.column, scale] if scale in self.reading.schema.names else [self.column]
        for batch in self.reading.to_batches(columns=names):
            yield _unit(_floats(batch.column(0), kind, batch.column(1) if len(names) == 2 else None))

    def _hit(self, row: dict[str, Any], score: float) -> Hit:
        hidden = {self.column, f"{self.column}_scale", "id", self.text_column}
        columns = {name: value for name, value in row.items() if name not in hidden}
        return Hit(id=row["id"], score=score, text=row.get(self.text_column) or "", columns=columns)

    @property
    def stored_type(self) -> str:
        recipes = json.loads((self.reading.schema.metadata or {})[RECIPES.encode()])
        return recipes[self.column]["recipe"].get("vector_type", "float32")


def query_recipe(entry: dict[str, Any]) -> tuple[Recipe, Path]:
    """The stored recipe turned to queries: the query prompt (none if the documents were made without), float32 vectors, no chunks; and the model's folder.

    Raises ModelError if the checkpoint found now is not the one the rows were made with.
    """
    stored = Recipe.from_dict(entry["recipe"])
    where = entry["folder"] if entry["origin"] == "folder" else entry["model"]
    checkpoint = locate(where, entry["revision"])
    recipe = resolve(
        checkpoint,
        task="encode",
        max_tokens=stored.max_tokens,
        precision=stored.precision,
        dims=stored.dims,
        prompt="none" if entry["prompt"] == "none" else "query",
        adapter=entry.get("adapter", ""),
    )
    if recipe.adapter != stored.adapter:
        raise ModelError(f"{entry['adapter']} is not the adapter that the table was made with")
    if recipe.content != stored.content:
        raise ModelError(
            f"{where} is not the model the table was made with (content {stored.content[:12]}, now {recipe.content[:12]})"
        )
    return recipe, checkpoint.folder


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
