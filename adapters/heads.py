"""What turns a model's output for a packed batch into result columns: one head for each output of a recipe."""

from __future__ import annotations

from typing import Any, Protocol

import pyarrow as pa

from .packed import Batch

# The columns, one row an item in the order given to `Adapter.run`, and why an item's row cannot be used.
Columns = tuple[list[pa.Array], dict[int, str]]


class Head(Protocol):
    """One output of `encode`. Threads share one."""

    def __call__(self, output: Any, batch: Batch) -> Columns:
        """`output`: transformers' for the batch, longest item first; `batch.order` says where each item stands in the request."""
        ...
