"""Opens an output for reading, as any pyarrow or Lance user would; knows nothing of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import fsspec
import lance
import pyarrow as pa
import pyarrow.dataset as pads

from ..config.errors import OutputError
from .failures import is_outside, reason
from .output import find_output


class Reading(Protocol):
    """What pyarrow's and Lance's datasets have in common."""

    schema: pa.Schema

    def to_batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]: ...

    def take(self, indices: Any) -> pa.Table: ...


def open_reading(output: str) -> Reading:
    """The data of `output` (a path or sink URL) at its newest version. Raises OutputError where there is none."""
    found = find_output(output)
    try:
        if found.kind == "lancedb":
            return cast(Reading, lance.dataset(found.data))
        filesystem, path = fsspec.core.url_to_fs(found.data, use_listings_cache=False)
        return cast(Reading, pads.dataset(path, filesystem=filesystem, format="parquet"))
    except Exception as error:
        if not (isinstance(error, ValueError) or is_outside(error)):
            raise
        raise OutputError(f"{output} cannot be read: {reason(error)}") from error
