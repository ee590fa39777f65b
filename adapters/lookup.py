"""A model that is a table: the vector, or the weight, of a token is a row, whatever stands beside it.

sentence-transformers' StaticEmbedding and SparseStaticEmbedding, and model2vec's folders (https://github.com/MinishLab/model2vec).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ..config.content import read_json
from ..config.errors import ModelError
from ..config.recipe import Recipe
from .dense import read_tensors
from .packed import DTYPES, Batch, device_of
from .tokens import TextTokenizer

LOOKUPS = ("static", "idf")  # architectures of recipes


class Lookup:
    """Stands where others have a `PackedModel`. No attention, no positions: a token's vector is its row."""

    def __init__(self, recipe: Recipe, folder: Path, tokenizer: TextTokenizer, *, device: str) -> None:
        """Raises ModelError where the table has no row for a token of the tokenizer."""
        self.device = device_of(device)
        read = _vectors if recipe.architecture == "static" else _idf
        table = read(folder, tokenizer)
        if len(table) < tokenizer.vocabulary:
            raise ModelError(
                f"{folder}: {len(table)} rows for {tokenizer.vocabulary} tokens: the files do not belong together"
            )
        self.model = nn.Embedding.from_pretrained(table.to(self.device, DTYPES[recipe.precision]))
        self.kernel = f"lookup/{self.device.type}/{recipe.precision}"

    def forward(self, batch: Batch, **_more: torch.Tensor) -> BaseModelOutput:
        """Rows of the table as hidden states (1, tokens, width)."""
        return BaseModelOutput(last_hidden_state=self.model(batch.tokens))


def _vectors(folder: Path, _tokenizer: TextTokenizer) -> torch.Tensor:
    """float32 (tokens, dims): with model2vec's `mapping` (token id -> row) and `weights` (of a token) already applied."""
    stored = read_tensors(folder / "model.safetensors", ("embedding.weight", "embeddings", "mapping", "weights"))
    if "embedding.weight" in stored:
        return stored["embedding.weight"]
    table = stored["embeddings"]
    if "mapping" in stored:
        rows = stored["mapping"].long()
        if not 0 <= int(rows.min()) <= int(rows.max()) < len(table):
            raise ModelError(
                f"{folder / 'model.safetensors'}: mapping names rows that are not among the {len(table)} of embeddings"
            )
        table = table[rows]
    return table * stored["weights"][:, None] if "weights" in stored else table


def _idf(folder: Path, tokenizer: TextTokenizer) -> torch.Tensor:
    """float32 (tokens, 1)."""
    path = folder / "idf.json"
    if not path.is_file():
        stored = read_tensors(folder / "model.safetensors", ("weight",))
        if "weight" not in stored:
            raise ModelError(f"{folder / 'model.safetensors'} has no `weight`, the table of the tokens' weights")
        return stored["weight"][:, None]
    table = torch.zeros(tokenizer.vocabulary, 1)
    for token, weight in read_json(path).items():
        if not isinstance(weight, int | float):
            raise ModelError(f"{path}: {token}: expected a number, found {weight!r}")
        table[tokenizer.ids_of([token])] = float(weight)
    return table
