"""Texts to vectors of any kind: one tokenizer, one packed model, and a head for each output that the recipe names."""

from __future__ import annotations

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
from .packed import PackedModel, gather
from .tokens import Ragged, TextTokenizer, encode_chunks, encode_rows


class Encoder:
    """Cost: tokens."""

    inputs = 1

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "auto", threads: int = 0) -> None:
        """Raises ModelError if the checkpoint and the recipe do not fit together."""
        self.recipe = recipe
        self.fields = result_fields(recipe)
        self.tokenizer = TextTokenizer(folder, recipe)
        self.packed = PackedModel(recipe, folder, transformers.AutoModel, device=device, threads=threads)
        skip = 0 if recipe.include_prompt else self.tokenizer.prompt_tokens
        self.heads: list[Head] = [DenseHead(recipe, folder, self.packed.device, skip)]
        self.kernel = self.packed.kernel
        self.device, self.streams = str(self.packed.device), self.packed.streams

    def prepare(self, columns: list[pa.Array]) -> Prepared:
        """See `Adapter.prepare`."""
        if self.recipe.long_text == "chunk":
            return encode_chunks(self.tokenizer, columns[0])
        encoded = encode_rows(self.tokenizer, columns)
        return encoded.prepared(Ragged.of(encoded.encodings))

    @torch.inference_mode()
    def run(self, parts: list[tuple[Prepared, np.ndarray]]) -> Outputs:
        """See `Adapter.run`."""
        batch = gather(parts, self.packed.device)
        output = self.packed.forward(batch)
        columns: list[pa.Array] = []
        bad: dict[int, str] = {}
        for head in self.heads:
            made, refused = head(output, batch)
            columns += made
            bad |= refused
        return Outputs(pa.RecordBatch.from_arrays(columns, schema=pa.schema(self.fields)), bad)
