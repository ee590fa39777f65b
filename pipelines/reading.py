"""Opens an output for reading, as any pyarrow or Lance user would; knows of jobs only what their Parquet parts are called."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any, Protocol, cast

import lance
import pyarrow as pa
import pyarrow.dataset as pads

from ..config.errors import OutputError
from .failures import is_outside, reason
from .output import find_output
from .parquet_sink import PART
from .provenance import RECIPES
from .stores import open_store


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
        filesystem, path = open_store(found.data, OutputError, use_listings_cache=False)
        return cast(Reading, _as_jobs_wrote_it(pads.dataset(path, filesystem=filesystem, format="parquet")))
    except Exception as error:
        if not (isinstance(error, ValueError) or is_outside(error)):
            raise
        raise OutputError(f"{output} cannot be read: {reason(error)}") from error


def _as_jobs_wrote_it(data: Any) -> Any:
    """The dataset under the schema of a part that says by which recipe it was made; pyarrow takes the first file's, whoever's that is."""
    fragments = list(data.get_fragments())
    parts = (one for one in fragments if PART.fullmatch(posixpath.basename(one.path)))
    made = next(
        (one.physical_schema for one in parts if RECIPES.encode() in (one.physical_schema.metadata or {})), None
    )
    return data if made is None else pads.FileSystemDataset(fragments, made, data.format, data.filesystem)
