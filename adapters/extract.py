"""Entities by token classification: text in, labelled character spans out.

Groups tokens as transformers' pipeline does with aggregation_strategy="simple".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import transformers

from ..config.errors import ModelError
from ..config.recipe import Recipe
from .contract import Outputs, Prepared
from .heads import Head
from .loading import read_config
from .model import Loaded, Model
from .packed import PackedModel, gather
from .tokens import Ragged, TextTokenizer, encode_rows

OUTSIDE = "O"


class TokenClassifier(Model):
    """A text to its entities. Cost: tokens."""

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "auto", threads: int = 0) -> None:
        """Raises ModelError if the recipe's labels are not those of the checkpoint."""
        if recipe.aggregation != "simple":
            raise ModelError(f"aggregation {recipe.aggregation!r} is not known; valid: simple")
        if recipe.long_text == "chunk":
            raise ModelError("extract cannot chunk yet; long_text must be truncate or reject")
        super().__init__(recipe, folder, device=device, threads=threads)
        self.tokenizer = TextTokenizer(folder, recipe)
        labels = read_config(folder).num_labels
        if labels != len(recipe.labels):
            raise ModelError(f"{folder} has {labels} labels, the recipe {len(recipe.labels)}")
        tags = [label[2:] if label.startswith(("B-", "I-")) else label for label in recipe.labels]
        self._tags = np.array([tags.index(tag) for tag in tags])  # class -> one number per kind of entity
        self._begins = np.array([label.startswith("B-") for label in recipe.labels])
        self._names = [label.split("-", 1)[-1] for label in recipe.labels]

    def _load(self) -> tuple[Loaded, list[Head]]:
        auto_class = transformers.AutoModelForTokenClassification
        return PackedModel(self.recipe, self.folder, auto_class, device=self.device, threads=self._threads), []

    def prepare(self, columns: list[pa.Array]) -> Prepared:
        """See `Adapter.prepare`."""
        encoded = encode_rows(self.tokenizer, columns)
        prompt = len(self.recipe.prompt)
        spans = [np.array(encoding.offsets, np.int32) - prompt for encoding in encoded.encodings]
        special = [np.array(encoding.special_tokens_mask, bool) for encoding in encoded.encodings]
        return encoded.prepared(
            Ragged.of(encoded.encodings),
            spans=spans,
            entity=[~mask & (span[:, 0] >= 0) for mask, span in zip(special, spans, strict=True)],
            texts=columns[0].take(pa.array(encoded.rows)).to_pylist(),
        )

    def _run(self, parts: list[tuple[Prepared, np.ndarray]]) -> Outputs:
        batch = gather(parts, self._on)
        logits = self.packed.forward(batch).logits[0].float()
        scores, classes = (found.cpu().numpy() for found in logits.softmax(-1).max(-1))
        edges = np.concatenate([[0], np.cumsum(batch.segments.lengths.numpy())])
        items = [(prepared.features, item) for prepared, chosen in parts for item in chosen]
        entities: list[list[dict[str, Any]]] = [[] for _ in items]
        bad: dict[int, str] = {}
        for place, item in enumerate(batch.order):
            tokens = slice(edges[place], edges[place + 1])
            if not np.isfinite(scores[tokens]).all():
                bad[int(item)] = "a label's score is NaN or infinite"
                continue
            features, number = items[item]
            entity = features["entity"][number]
            spans = features["spans"][number][entity]
            entities[item] = self._entities(
                features["texts"][number], spans, classes[tokens][entity], scores[tokens][entity]
            )
        column = pa.array(entities, self.fields[0].type)
        return Outputs(pa.RecordBatch.from_arrays([column], schema=pa.schema(self.fields)), bad)

    def _entities(self, text: str, spans: np.ndarray, classes: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        """Runs of one kind; a token of class B-... begins a new one. A run's score is the mean of its tokens'."""
        if len(classes) == 0:
            return []
        tags = self._tags[classes]
        starts = np.flatnonzero(np.concatenate([[True], (tags[1:] != tags[:-1]) | self._begins[classes[1:]]]))
        stops = np.append(starts[1:], len(classes))
        found = []
        for start, stop in zip(starts, stops, strict=True):
            name = self._names[classes[start]]
            if name == OUTSIDE:
                continue
            first, last = int(spans[start, 0]), int(spans[stop - 1, 1])
            score = float(scores[start:stop].mean())
            found.append({"text": text[first:last], "label": name, "score": score, "start": first, "end": last})
        return found
