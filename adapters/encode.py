"""Texts to vectors of any kind: one tokenizer, one packed model, and a head for each output that the recipe names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import transformers

from ..config.recipe import Recipe
from .contract import Outputs, Prepared
from .dense import DenseHead
from .heads import Head
from .lookup import LOOKUPS, Lookup
from .model import Loaded, Model
from .multi_vector import MultiVectorHead
from .packed import PackedModel, gather
from .sparse import LexicalHead, SpladeHead
from .tokens import Ragged, TextTokenizer, encode_chunks, encode_rows


class Encoder(Model):
    """Cost: tokens."""

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "auto", threads: int = 0) -> None:
        super().__init__(recipe, folder, device=device, threads=threads)
        self.tokenizer = TextTokenizer(folder / recipe.part, recipe)
        self._skip = 0 if recipe.include_prompt else self.tokenizer.prompt_tokens
        self.expansion = self.tokenizer.ids_of([recipe.expand_with])[0] if recipe.expand_to else None

    def _load(self) -> tuple[Loaded, list[Head]]:
        recipe, home, on = self.recipe, self.folder / self.recipe.part, self._on
        splade = recipe.sparse.startswith("splade")
        if recipe.architecture in LOOKUPS:
            packed = Lookup(recipe, home, self.tokenizer, device=self.device)
        else:
            auto_class = transformers.AutoModelForMaskedLM if splade else transformers.AutoModel
            packed = PackedModel(recipe, home, auto_class, device=self.device, threads=self._threads)
        heads: list[Head] = []
        if "dense" in recipe.outputs:
            heads.append(DenseHead(recipe, self.folder, on, self._skip))
        if splade and isinstance(packed, PackedModel):
            heads.append(SpladeHead(recipe, packed.model))
            packed.model = packed.model.base_model  # pyright: ignore[reportAttributeAccessIssue]  the head runs the rest
        elif "sparse" in recipe.outputs:
            heads.append(LexicalHead(recipe, home, on, self.tokenizer))
        if "multi_vector" in recipe.outputs:
            heads.append(MultiVectorHead(recipe, self.folder, on, self.tokenizer))
        return packed, heads

    def prepare(self, columns: list[pa.Array]) -> Prepared:
        """See `Adapter.prepare`."""
        if self.recipe.long_text == "chunk":
            return encode_chunks(self.tokenizer, columns[0])
        encoded = encode_rows(self.tokenizer, columns)
        ragged = Ragged.of(encoded.encodings)
        if self.expansion is None:
            return encoded.prepared(ragged)
        return encoded.prepared(ragged.filled(self.recipe.expand_to, self.expansion), own=ragged.lengths)

    def _run(self, parts: list[tuple[Prepared, np.ndarray]]) -> Outputs:
        batch = gather(parts, self._on)
        if self.expansion is not None and not self.recipe.expand_attended:
            own = np.concatenate([prepared.features["own"][items] for prepared, items in parts])[batch.order]
            keys = torch.from_numpy(own).to(self._on)
            batch = dataclasses.replace(batch, segments=dataclasses.replace(batch.segments, keys=keys))
        output = self.packed.forward(batch)
        columns: list[pa.Array] = []
        bad: dict[int, str] = {}
        for head in self.heads:
            made, refused = head(output, batch)
            columns += made
            bad |= refused
        return Outputs(pa.RecordBatch.from_arrays(columns, schema=pa.schema(self.fields)), bad)
