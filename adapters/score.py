"""Scores of text pairs by a cross-encoder: (query, document) in, one float out. Follows sentence-transformers' CrossEncoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import transformers

from ..config.errors import ModelError
from ..config.outputs import result_fields
from ..config.recipe import Recipe
from .contract import Outputs, Prepared
from .packed import PackedModel, gather
from .tokens import Ragged, TextTokenizer, encode_rows

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"identity": lambda x: x, "sigmoid": torch.sigmoid}


class CrossEncoder:
    """Two texts to one score. Cost: tokens of both, special tokens included."""

    inputs = 2

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "auto", threads: int = 0) -> None:
        """Raises ModelError if the checkpoint has more than one label or does not fit the recipe."""
        if recipe.activation not in ACTIVATIONS:
            raise ModelError(f"activation {recipe.activation!r} is not one of {', '.join(sorted(ACTIVATIONS))}")
        if recipe.long_text == "chunk":
            raise ModelError("pairs cannot be chunked; long_text must be truncate or reject")
        self.recipe = recipe
        self.fields = result_fields(recipe)
        self.tokenizer = TextTokenizer(folder, recipe)
        self.tokenizer.check_pairs(folder)
        auto_class = transformers.AutoModelForSequenceClassification
        self.packed = PackedModel(recipe, folder, auto_class, device=device, threads=threads)
        labels = self.packed.model.config.num_labels
        if labels != 1:
            raise ModelError(f"{folder} gives {labels} labels for a pair; a score needs a model with one")
        self.kernel = self.packed.kernel
        self.device, self.streams = str(self.packed.device), self.packed.streams

    def prepare(self, columns: list[pa.Array]) -> Prepared:
        """See `Adapter.prepare`. A pair that is too long loses tokens of its longer text first."""
        encoded = encode_rows(self.tokenizer, columns)
        return encoded.prepared(Ragged.of(encoded.encodings, types=self.packed.uses_types))

    @torch.inference_mode()
    def run(self, parts: list[tuple[Prepared, np.ndarray]]) -> Outputs:
        """See `Adapter.run`."""
        batch = gather(parts, self.packed.device)
        logits = self.packed.forward(batch).logits[:, 0].float()
        scores = np.empty(len(batch.order), np.float32)
        scores[batch.order] = ACTIVATIONS[self.recipe.activation](logits).cpu().numpy()
        bad = {int(item): "the score is NaN or infinite" for item in np.flatnonzero(~np.isfinite(scores))}
        return Outputs(pa.RecordBatch.from_arrays([pa.array(scores)], schema=pa.schema(self.fields)), bad)
