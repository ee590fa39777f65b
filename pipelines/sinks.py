"""Where results go: the contract of a sink and the way from a URL to one."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import pyarrow as pa

from .records import Receipt


@dataclasses.dataclass(frozen=True, slots=True)
class Folded:
    """What one fold did."""

    shards: int  # newly brought into view
    conflicts: int  # lost compare-and-swaps that were tried again
    seconds: float


class Sink(Protocol):
    """Exactly once in two atomic steps: `stage` (invisible) + the marker (manifest.publish), then `fold`.

    Any number of processes may do any of this at the same time; nobody holds a lock.
    """

    def register(self, job: str, schema: pa.Schema, *, on_existing: str, metadata: dict[str, str]) -> None:
        """Make the output (an empty table or dataset with this schema) or check that it fits; enter the job.

        Idempotent. Raises OutputError: another schema, dimension or recipe; rows of another job under
        `refuse`; `replace` where it cannot be; not writable. Raises TableChanged: remade under the job.
        """
        ...

    def stage(self, job: str, shard: int, generation: int, attempt: str, table: pa.Table) -> tuple[dict[str, Any], ...]:
        """Write an attempt's rows where no reader sees them, durably; what to put into Receipt.files."""
        ...

    def discard(self, files: tuple[dict[str, Any], ...]) -> None:
        """Remove the files of an attempt whose marker lost."""
        ...

    def fold(self, job: str, receipts: list[Receipt], *, replaced_ids: dict[tuple[int, int], pa.Array] | None = None) -> Folded:
        """Bring the files of finished receipts into view, those already folded left alone. Idempotent."""
        ...

    def folded(self, job: str) -> set[tuple[int, int]]:
        """(shard, generation) pairs of this job that are in view."""
        ...

    def unregister(self, job: str) -> None:
        """The job is complete and closed: drop its ledger entry."""
        ...
