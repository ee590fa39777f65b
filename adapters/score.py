"""Scores of text pairs: (query, document) in, one float out.

A cross-encoder gives one label, as sentence-transformers' CrossEncoder has it. A language model is asked through a template, and its
logits of one or two tokens, at the last place of each text, make the score.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from torch import nn

from ..config.errors import ModelError
from ..config.recipe import Recipe
from .contract import Outputs, Prepared
from .heads import Head
from .loading import read_config, uses_types
from .model import Loaded, Model
from .packed import PackedModel, gather
from .pairs import PairTexts, pair_texts

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"identity": lambda x: x, "sigmoid": torch.sigmoid}


class Scorer(Model):
    """Two texts to one score. Cost: tokens of both, special tokens and template included."""

    inputs = 2

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "auto", threads: int = 0) -> None:
        """Raises ModelError if the checkpoint has more than one label or does not fit the recipe."""
        if recipe.activation not in ACTIVATIONS:
            raise ModelError(f"activation {recipe.activation!r} is not one of {', '.join(sorted(ACTIVATIONS))}")
        if recipe.long_text == "chunk":
            raise ModelError("pairs cannot be chunked; long_text must be truncate or reject")
        super().__init__(recipe, folder, device=device, threads=threads)
        config = read_config(folder)
        if not recipe.answers and config.num_labels != 1:
            raise ModelError(f"{folder} gives {config.num_labels} labels for a pair; a score needs a model with one")
        self.texts = pair_texts(folder, recipe, types=uses_types(config) and not recipe.answers)
        if isinstance(self.texts, PairTexts) and not recipe.answers:
            self.texts.check(folder)

    def _load(self) -> tuple[Loaded, list[Head]]:
        if self.recipe.answers:
            auto_class, adjust = transformers.AutoModelForCausalLM, self._keep_answers
        else:
            auto_class, adjust = transformers.AutoModelForSequenceClassification, None
        packed = PackedModel(
            self.recipe, self.folder, auto_class, device=self.device, threads=self._threads, adjust=adjust
        )
        return packed, []

    def prepare(self, columns: list[pa.Array]) -> Prepared:
        """See `Adapter.prepare`."""
        return self.texts.prepare(columns)

    def _run(self, parts: list[tuple[Prepared, np.ndarray]]) -> Outputs:
        batch = gather(parts, self._on)
        if self.recipe.answers:
            last = batch.segments.edges[1:].long() - 1
            logits = self.packed.forward(batch, logits_to_keep=last).logits[0].float()  # (texts, answers)
            logits = logits[:, 0] if logits.shape[1] == 1 else logits[:, 0] - logits[:, 1]
        else:
            logits = self.packed.forward(batch).logits[:, 0].float()
        scores = np.empty(len(batch.order), np.float32)
        scores[batch.order] = ACTIVATIONS[self.recipe.activation](logits).cpu().numpy()
        bad = {int(item): "the score is NaN or infinite" for item in np.flatnonzero(~np.isfinite(scores))}
        return Outputs(pa.RecordBatch.from_arrays([pa.array(scores)], schema=pa.schema(self.fields)), bad)

    def _keep_answers(self, model: transformers.PreTrainedModel) -> None:
        """Leave of the model's last layer the rows of the answers alone: of a vocabulary of 150,000 two are looked at."""
        whole = model.get_output_embeddings()
        if not isinstance(whole, nn.Linear):
            raise ModelError(f"{type(model).__name__} has no linear layer that gives the logits of its vocabulary")
        rows = list(self.recipe.answers)
        if max(rows) >= whole.weight.shape[0]:
            raise ModelError(f"token {max(rows)} is none of the {whole.weight.shape[0]} that the model knows")
        bias: Any = whole.bias  # None, if the layer has none
        kept = nn.Linear(whole.in_features, len(rows), bias=bias is not None, dtype=whole.weight.dtype)
        with torch.no_grad():
            kept.weight.copy_(whole.weight[rows])
            if bias is not None:
                kept.bias.copy_(bias[rows])
        model.set_output_embeddings(kept)
