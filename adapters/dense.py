"""Dense text vectors: pooling, projections, slicing, normalisation and the stored vector types.

Follows sentence-transformers' modules (Transformer, Pooling, Dense, Normalize) on packed hidden states.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn

from ..config.errors import ModelError
from ..config.modules import DENSE_ACTIVATIONS
from ..config.outputs import vector_field
from ..config.recipe import Recipe
from .heads import Columns
from .packed import Batch

# -- pooling: hidden states of packed texts, float32 (tokens, width) -> (texts, width)


def _sum(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    # segment_reduce adds in a fixed order; index_add_ on CUDA does not.
    return torch.segment_reduce(hidden, "sum", lengths=lengths, axis=0, unsafe=True)


def _mean(hidden: torch.Tensor, lengths: torch.Tensor, _skip: int) -> torch.Tensor:
    return _sum(hidden, lengths) / lengths.clamp(min=1)[:, None]


def _mean_sqrt_len(hidden: torch.Tensor, lengths: torch.Tensor, _skip: int) -> torch.Tensor:
    return _sum(hidden, lengths) / lengths.clamp(min=1)[:, None].sqrt()


def _weighted_mean(hidden: torch.Tensor, lengths: torch.Tensor, skip: int) -> torch.Tensor:
    """Later tokens weigh more: place in the text, from 1 (SGPT)."""
    starts = lengths.cumsum(0) - lengths
    places = torch.arange(len(hidden), device=hidden.device) - torch.repeat_interleave(starts, lengths)
    weights = (places + 1 + skip).to(hidden.dtype)[:, None]
    return _sum(hidden * weights, lengths) / _sum(weights, lengths).clamp(min=1)


def _max(hidden: torch.Tensor, lengths: torch.Tensor, _skip: int) -> torch.Tensor:
    return torch.segment_reduce(hidden, "max", lengths=lengths, axis=0, unsafe=True)


def _cls(hidden: torch.Tensor, lengths: torch.Tensor, _skip: int) -> torch.Tensor:
    return hidden[lengths.cumsum(0) - lengths]


def _last(hidden: torch.Tensor, lengths: torch.Tensor, _skip: int) -> torch.Tensor:
    return hidden[lengths.cumsum(0) - 1]


POOLING: dict[str, Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]] = {
    "mean": _mean,
    "mean_sqrt_len": _mean_sqrt_len,
    "weighted_mean": _weighted_mean,
    "max": _max,
    "cls": _cls,
    "last": _last,
}


def pool(hidden: torch.Tensor, lengths: torch.Tensor, how: str, skip: int = 0) -> torch.Tensor:
    """One float32 vector (texts, width) per packed text.

    hidden: (tokens, width), any float dtype; lengths: int64 (texts,), on its device; skip: tokens of a prompt
    at the start of every text that are left out of the pooling (0: none).
    """
    hidden = hidden.float()
    if skip:
        starts = lengths.cumsum(0) - lengths
        places = torch.arange(len(hidden), device=hidden.device) - torch.repeat_interleave(starts, lengths)
        hidden = hidden[places >= skip]
        lengths = lengths - skip
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
        config = {"activation_function": "torch.nn.modules.linear.Identity"}
        weights = place
        if place.suffix != ".safetensors":
            config = json.loads((place / "config.json").read_text(encoding="utf-8"))
            weights = place / "model.safetensors"
        names = ("linear.weight", "linear.bias", "residual.weight", "weight", "bias")
        stored = read_tensors(weights, names)
        matrix = stored.get("linear.weight", stored.get("weight"))
        if matrix is None:
            raise ModelError(f"{weights} has no linear.weight")
        self.weight = nn.Parameter(matrix, requires_grad=False)
        bias = stored.get("linear.bias", stored.get("bias"))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.activation = ACTIVATIONS[config.get("activation_function", "torch.nn.modules.activation.Tanh")]()
        self.residual = nn.Identity() if config.get("use_residual") else None
        if self.residual is not None and matrix.shape[0] != matrix.shape[1]:
            if "residual.weight" not in stored:
                raise ModelError(f"{weights} has no residual.weight, and its config.json says use_residual")
            self.residual = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
            self.residual.weight = nn.Parameter(stored["residual.weight"], requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.activation(F.linear(x, self.weight, self.bias))
        return found if self.residual is None else found + self.residual(x)


def read_tensors(path: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Those of the named tensors that a safetensors file has, as float32. Raises ModelError where it cannot be read."""
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}; other weight formats are refused")
    try:
        with safe_open(path, "pt") as stored:
            return {name: stored.get_tensor(name).float() for name in names if name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


# -- stored vector types: float32 (items, dims) -> the stored array, and a float32 scale per item or None


def _store_float32(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    return vectors, None


def _store_float16(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    with np.errstate(over="ignore"):  # what overflows is found by the caller
        return vectors.astype(np.float16), None


def _store_int8(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Error at most half a scale. The scale is the row's own: no neighbour can change a stored vector."""
    scale = (np.abs(vectors).max(axis=1) / 127).astype(np.float32)
    steps = vectors / np.where(scale > 0, scale, 1)[:, None]
    return np.clip(np.rint(steps), -127, 127).astype(np.int8), scale


def _store_binary(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Signs, most significant bit first; the scale is the mean size, which undoes with the least squared error."""
    return np.packbits(vectors > 0, axis=1), np.abs(vectors).mean(axis=1, dtype=np.float32)


STORE: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]] = {
    "float32": _store_float32,
    "float16": _store_float16,
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
