"""Texts to vectors of any kind: one tokenizer, one packed model, and a head for each output that the recipe names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import transformers

from ..config.outputs import result_fields
from ..config.recipe import Recipe
from .contract import Outputs, Prepared
from .dense import DenseHead
from .heads import Head
from .lookup import LOOKUPS, Lookup
from .multi_vector import MultiVectorHead
from .packed import PackedModel, gather
from .sparse import LexicalHead, SpladeHead
from .tokens import Ragged, TextTokenizer, encode_chunks, encode_rows


class Encoder:
    """Cost: tokens."""

    inputs = 1

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "auto", threads: int = 0) -> None:
        """Raises ModelError if the checkpoint and the recipe do not fit together."""
        self.recipe = recipe
        self.fields = result_fields(recipe)
        home = folder / recipe.part
        self.tokenizer = TextTokenizer(home, recipe)
        splade = recipe.sparse.startswith("splade")
        if recipe.architecture in LOOKUPS:
            self.packed = Lookup(recipe, home, self.tokenizer, device=device, threads=threads)
        else:
            auto_class = transformers.AutoModelForMaskedLM if splade else transformers.AutoModel
            self.packed = PackedModel(recipe, home, auto_class, device=device, threads=threads)
        self.heads: list[Head] = []
        if "dense" in recipe.outputs:
            skip = 0 if recipe.include_prompt else self.tokenizer.prompt_tokens
            self.heads.append(DenseHead(recipe, folder, self.packed.device, skip))
        if splade and isinstance(self.packed, PackedModel):
            self.heads.append(SpladeHead(recipe, self.packed.model))
            self.packed.model = self.packed.model.base_model  # pyright: ignore[reportAttributeAccessIssue]  the head runs the rest
        elif "sparse" in recipe.outputs:
            self.heads.append(LexicalHead(recipe, home, self.packed.device, self.tokenizer))
        if "multi_vector" in recipe.outputs:
            self.heads.append(MultiVectorHead(recipe, folder, self.packed.device, self.tokenizer))
        self.expansion = self.tokenizer.ids_of([recipe.expand_with])[0] if recipe.expand_to else None
        self.kernel = self.packed.kernel
        self.device, self.streams = str(self.packed.device), self.packed.streams

    def prepare(self, columns: list[pa.Array]) -> Prepared:
        """See `Adapter.prepare`."""
        if self.recipe.long_text == "chunk":
            return encode_chunks(self.tokenizer, columns[0])
        encoded = encode_rows(self.tokenizer, columns)
        ragged = Ragged.of(encoded.encodings)
        if self.expansion is None:
            return encoded.prepared(ragged)
        return encoded.prepared(ragged.filled(self.recipe.expand_to, self.expansion), own=ragged.lengths)

    @torch.inference_mode()
    def run(self, parts: list[tuple[Prepared, np.ndarray]]) -> Outputs:
        """See `Adapter.run`."""
        batch = gather(parts, self.packed.device)
        if self.expansion is not None and not self.recipe.expand_attended:
            own = np.concatenate([prepared.features["own"][items] for prepared, items in parts])[batch.order]
            keys = torch.from_numpy(own).to(self.packed.device)
            batch = dataclasses.replace(batch, segments=dataclasses.replace(batch.segments, keys=keys))
        output = self.packed.forward(batch)
        columns: list[pa.Array] = []
        bad: dict[int, str] = {}
        for head in self.heads:
            made, refused = head(output, batch)
            columns += made
            bad |= refused
        return Outputs(pa.RecordBatch.from_arrays(columns, schema=pa.schema(self.fields)), bad)
