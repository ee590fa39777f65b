"""Opens an output for reading, as any pyarrow or Lance user would; knows nothing of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import lance
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from ..config.errors import OutputError
from .sinks import output_kind


class Reading(Protocol):
    """What pyarrow's and Lance's datasets have in common."""

    schema: pa.Schema

    def to_batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]: ...

    def take(self, indices: np.ndarray) -> pa.Table: ...


def open_reading(output: str) -> Reading:
    """The data of `output` (a path or sink URL) at its newest version. Raises OutputError where there is none."""
    kind, path = output_kind(output)
    try:
        return lance.dataset(path) if kind == "lancedb" else pads.dataset(path, format="parquet")
    except (ValueError, FileNotFoundError) as error:
        raise OutputError(f"{output} cannot be read: {error}") from error
