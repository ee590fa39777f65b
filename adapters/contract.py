"""What every adapter offers the engine, and the two records between them. Torch-free, so that tests can fake one."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import pyarrow as pa


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """The items of some rows, tokenised on the CPU. A row gives one item, or one per chunk.

    `rows` and `costs` are what the engine and the packer look at; `features` belongs to the adapter (ragged
    arrays, usually `tokens` int32 and `offsets` int64).
    """

    rows: np.ndarray  # int32 (items,): the row of the batch that each item came from, non-decreasing
    costs: np.ndarray  # int64 (items,): what the item takes of a batch's budget, in the adapter's unit
    features: dict[str, Any]
    bad: dict[int, tuple[str, str]]  # row -> (reject code, detail): these rows have no item
    cut: np.ndarray  # bool (items,): whether the item lost tokens to the limit
    extra: pa.RecordBatch | None = None  # one row per item: further output columns known now (chunk, start, end, text)

    @property
    def truncated(self) -> int:
        """Rows that were cut to fit."""
        return len(np.unique(self.rows[self.cut]))


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs:
    """One row per item, in the order given to `run`, with exactly the fields of `Adapter.fields`."""

    batch: pa.RecordBatch
    bad: dict[int, str]  # item -> why its result cannot be used (not finite)


class OutOfMemory(Exception):
    """The device has no memory for a batch, or for a model. Smaller batches, or fewer models, may do."""


class DeviceLost(Exception):
    """After this error every further call on the device would fail: only a new process can go on."""


class Adapter(Protocol):
    """A loaded model. `prepare` may be called from several threads, `run` from up to `streams` others, all at the same time."""

    inputs: int  # how many text columns it takes: 1, or 2 for pairs
    weights: str  # hash of all that it has in memory; recipes that differ in nothing of it share it (config/recipe.py)
    fields: list[pa.Field]  # the result columns, without the user's prefix; metadata says how to undo a quantisation
    device: str  # cpu, cuda, cuda:0
    streams: (
        int  # batches that run best at once: on a CPU one a thread, which then share no work and never wait; else 1
    )

    @property
    def kernel(self) -> str:
        """What runs attention and matrix products here, for logs and receipts."""
        ...

    def prepare(self, columns: list[pa.Array]) -> Prepared:
        """Tokenise `inputs` string columns of equal length. Never raises for a bad text: it goes to `bad`."""
        ...

    def run(self, parts: list[tuple[Prepared, np.ndarray]]) -> Outputs:
        """One device batch: the items (int64 indices) chosen from each Prepared, concatenated in that order.

        Raises OutOfMemory, DeviceLost, and whatever else a model may raise.
        """
        ...
