"""Dense text vectors: pooling, projections, slicing, normalisation and the stored vector types.

Follows sentence-transformers' modules (Transformer, Pooling, Dense, Normalize) on packed hidden states.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.content import read_json
from ..config.errors import ModelError
from ..config.modules import DENSE_ACTIVATIONS
from ..config.outputs import vector_field
from ..config.recipe import Recipe
from .heads import Columns
from .loading import read_tensors
from .packed import Batch

# -- pooling: hidden states of packed texts, float32 (tokens, width) -> (texts, width)


def _sum(hidden: Tensor, lengths: Tensor) -> Tensor:
    # segment_reduce adds in a fixed order; index_add_ on CUDA does not.
    return torch.segment_reduce(hidden, "sum", lengths=lengths, axis=0, unsafe=True)


def _places(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Of each token in its text, from 0."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(len(hidden), device=hidden.device) - torch.repeat_interleave(starts, lengths)


def _weighted_mean(hidden: Tensor, lengths: Tensor, skip: int) -> Tensor:
    """Later tokens weigh more: place in the text, from 1 (SGPT)."""
    weights = (_places(hidden, lengths) + 1 + skip).to(hidden.dtype)[:, None]
    return _sum(hidden * weights, lengths) / _sum(weights, lengths).clamp(min=1)


# (hidden, lengths, skip) -> vectors; skip: tokens before those that are given here
POOLING: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "mean": lambda hidden, lengths, _: _sum(hidden, lengths) / lengths[:, None],
    "mean_sqrt_len": lambda hidden, lengths, _: _sum(hidden, lengths) / lengths[:, None].sqrt(),
    "weighted_mean": _weighted_mean,
    "max": lambda hidden, lengths, _: torch.segment_reduce(hidden, "max", lengths=lengths, axis=0, unsafe=True),
    "cls": lambda hidden, lengths, _: hidden[lengths.cumsum(0) - lengths],
    "last": lambda hidden, lengths, _: hidden[lengths.cumsum(0) - 1],
}


def pool(hidden: Tensor, lengths: Tensor, how: str, skip: int = 0) -> Tensor:
    """One float32 vector (texts, width) per packed text.

    hidden: (tokens, width), any float dtype; lengths: int64 (texts,), on its device; skip: tokens of a prompt
    at the start of every text that are left out of the pooling (0: none).
    """
    hidden = hidden.float()
    if skip:
        hidden, lengths = hidden[_places(hidden, lengths) >= skip], lengths - skip
        if not bool((lengths > 0).all()):
            raise ValueError("a text is no longer than its prompt")
    return POOLING[how](hidden, lengths, skip)


# -- Dense modules

ACTIVATIONS = {name: getattr(nn, name.rpartition(".")[2]) for name in DENSE_ACTIVATIONS}


class Projection(nn.Module):
    """sentence-transformers' Dense module: linear, activation, residual. config.modules has checked what the folder says.

    `place` may be a safetensors file too, with a linear layer and nothing after it, as BGE-M3 and Stanford's ColBERT have.
    """

    def __init__(self, place: Path) -> None:
        super().__init__()
        config, weights = {"activation_function": "torch.nn.modules.linear.Identity"}, place
        if place.suffix != ".safetensors":
            config, weights = read_json(place / "config.json"), place / "model.safetensors"
        names = ("linear.weight", "linear.bias", "residual.weight", "weight", "bias")
        stored = {name.removeprefix("linear."): one for name, one in read_tensors(weights, names).items()}
        if "weight" not in stored:
            raise ModelError(f"{weights} has no linear.weight")
        self.weight = nn.Parameter(stored["weight"], requires_grad=False)
        self.bias = nn.Parameter(stored["bias"], requires_grad=False) if "bias" in stored else None
        self.activation = ACTIVATIONS[config.get("activation_function", "torch.nn.modules.activation.Tanh")]()
        self.residual = nn.Identity() if config.get("use_residual") else None
        high, wide = self.weight.shape
        if self.residual is not None and high != wide:
            if "residual.weight" not in stored:
                raise ModelError(f"{weights} has no residual.weight, and its config.json says use_residual")
            self.residual = nn.Linear(wide, high, bias=False)
            self.residual.weight = nn.Parameter(stored["residual.weight"], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        found = self.activation(F.linear(x, self.weight, self.bias))
        return found if self.residual is None else found + self.residual(x)


# -- stored vector types: float32 (items, dims) -> the stored array, and a float32 scale per item or None


def _store_int8(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Error at most half a scale. The scale is the row's own: no neighbour can change a stored vector."""
    scale = (np.abs(vectors).max(axis=1) / 127).astype(np.float32)
    steps = vectors / np.where(scale > 0, scale, 1)[:, None]
    return np.clip(np.rint(steps), -127, 127).astype(np.int8), scale


def _store_binary(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Signs, most significant bit first; the scale is the mean size, which undoes with the least squared error."""
    return np.packbits(vectors > 0, axis=1), np.abs(vectors).mean(axis=1, dtype=np.float32)


STORE: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]] = {
    "float32": lambda vectors: (vectors, None),
    "float16": lambda vectors: (vectors.astype(np.float16), None),
    "int8": _store_int8,
    "binary": _store_binary,
}


def store(vectors: np.ndarray, vector_type: str) -> Columns:
    """Arrow columns for float32 vectors (items, dims). Items that are not finite are bad, and stored as zeros."""
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    if vector_type == "float16":
        finite &= np.abs(np.nan_to_num(vectors, nan=0.0)).max(axis=1, initial=0.0) <= np.finfo(np.float16).max
    if not finite.all():
        vectors = np.where(finite[:, None], vectors, np.float32(0))
    stored, scale = STORE[vector_type](vectors)
    kind = vector_field("", vectors.shape[1], vector_type).type
    values = pa.array(np.ascontiguousarray(stored).reshape(-1), kind.value_type)
    columns: list[pa.Array] = [pa.FixedSizeListArray.from_arrays(values, type=kind)]
    if scale is not None:
        columns.append(pa.array(scale, pa.float32()))
    bad = {int(item): "the vector has NaN, infinite or overflowing values" for item in np.flatnonzero(~finite)}
    return columns, bad


class DenseHead:
    """Hidden states to one vector a text."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device, skip: int) -> None:
        """`skip`: tokens of the prompt that are not pooled. Raises ModelError if checkpoint and recipe do not fit together."""
        if recipe.pooling not in POOLING:
            raise ModelError(f"pooling {recipe.pooling!r} is not one of {', '.join(sorted(POOLING))}")
        if recipe.vector_type == "binary" and recipe.dims % 8:
            raise ModelError(f"binary vectors need dims divisible by 8, not {recipe.dims}")
        self.recipe, self.skip = recipe, skip
        self.modules = [Projection(folder / name).to(device) for name in recipe.modules]

    def like(self, recipe: Recipe, skip: int) -> Self:
        """See `Head`."""
        made = copy.copy(self)
        made.recipe, made.skip = recipe, skip
        return made

    def __call__(self, output: Any, batch: Batch) -> Columns:
        """See `Head`."""
        hidden = output.last_hidden_state[0]
        vectors = pool(hidden, batch.segments.lengths.to(hidden.device), self.recipe.pooling, self.skip)
        for project in self.modules:
            vectors = project(vectors)
        vectors = vectors[:, : self.recipe.dims]
        if self.recipe.normalize:
            vectors = F.normalize(vectors, dim=1)
        asked = np.empty((len(batch.order), vectors.shape[1]), np.float32)
        asked[batch.order] = vectors.cpu().numpy()
        return store(asked, self.recipe.vector_type)
