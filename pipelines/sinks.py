"""The contract of a sink, and the way from a URL to one. How a sink commits is the matter of parquet_sink, lance_sink and lance_commit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import pyarrow as pa

from .generations import Pair
from .output import Folded, Output, output_paths
from .records import Receipt


class Sink(Protocol):
    """Exactly once in two atomic steps: `stage` (invisible) + the marker (manifest.publish), then `fold`.

    Any number of processes may do any of this at the same time; nobody holds a lock. Every process calls
    `register` first. The last fold before a job is closed is handed all receipts of the job.
    """

    output: Output

    def check(self, job: str, schema: pa.Schema, *, on_existing: str) -> None:
        """Raises OutputError if `register` of a new job would refuse. Writes nothing but a probe beside the output."""
        ...

    def register(self, job: str, schema: pa.Schema, *, on_existing: str, key: str = "id") -> None:
        """Make the output (an empty table or dataset with this schema and its metadata) or check that it fits;
        enter the job.

        Idempotent. `key` is the column whose values `stage(replaces=...)` names: with chunks, the document's
        id. Raises OutputError: another schema, dimension or recipe; rows of another job under `refuse`;
        `replace` where it cannot be; not writable. Raises TableChanged: dropped, remade or restored under the job.
        """
        ...

    def stage(
        self, job: str, shard: int, generation: int, attempt: str, table: pa.Table, *, replaces: pa.Array | None = None
    ) -> tuple[dict[str, Any], ...]:
        """Write an attempt's rows where no reader sees them, durably; what to put into Receipt.files.

        `replaces` (on_existing: replace) holds the ids of all input rows covered, rejected ones included,
        duplicates and null ids left out: their old rows go in the commit that brings the new ones. It is
        staged too, so that anyone can fold, whatever became of this process. Raises StopJob: disk full.
        """
        ...

    def discard(self, files: tuple[dict[str, Any], ...]) -> None:
        """Remove the files of an attempt whose marker lost."""
        ...

    def fold(self, job: str, receipts: Iterable[Receipt]) -> Folded:
        """Bring the files of finished receipts into view, those already folded left alone. Idempotent.

        Raises TableChanged. Fold no more often than about once a second per table when many processes
        write: closer folds starve foreign deletes and compaction.
        """
        ...

    def folded(self, job: str) -> set[Pair]:
        """What is in view of this job, while it is open."""
        ...

    def void(self, job: str) -> set[Pair]:
        """Finished generations whose files were gone when they were to be folded, while the job is open."""
        ...

    def unregister(self, job: str) -> None:
        """The job is complete and closed: drop its ledger entry. Idempotent."""
        ...

    def changed(self, job: str) -> str:
        """Why the output no longer is what this closed job left (dropped, remade, restored), "" if it is."""
        ...


def open_sink(url: str | Output) -> Sink:
    """The sink behind `lancedb://FOLDER/TABLE` or `parquet://FOLDER`; touches nothing yet."""
    output = output_paths(url) if isinstance(url, str) else url
    if output.kind == "lancedb":
        from .lance_sink import LanceSink  # pylance is only loaded where it is used

        return LanceSink(output)
    from .parquet_sink import ParquetSink

    return ParquetSink(output)
