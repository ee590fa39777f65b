"""What turns a model's output for a packed batch into result columns: one head for each output of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
from torch import nn

from ..config.recipe import Recipe
from .packed import Batch
from .ragged import stretches

# The columns, one row an item in the order given to `Adapter.run`, and why an item's row cannot be used.
Columns = tuple[list[pa.Array], dict[int, str]]


class Head(Protocol):
    """One output of `encode`. Threads share one."""

    @property
    def modules(self) -> Sequence[nn.Module]:
        """What holds its weights."""
        ...

    def like(self, recipe: Recipe, skip: int) -> Self:
        """The same weights used as another recipe has it; `skip`: tokens of its prompt that are not pooled."""
        ...

    def __call__(self, output: Any, batch: Batch) -> Columns:
        """`output`: transformers' for the batch, longest item first; `batch.order` says where each item stands in the request."""
        ...


def as_asked(counts: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For lists laid end to end in packed order, `counts` long: the index that puts them in the order asked for, and their offsets.

    counts, order: int64 (items,); the index is int64 (total,), the offsets int32 (items + 1,).
    """
    packed = np.argsort(order)
    index, offsets = stretches((np.cumsum(counts) - counts)[packed], counts[packed])
    return index, offsets.astype(np.int32)
