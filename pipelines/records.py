"""The records that cross between rooms: inputs, shards, rows, rejects, receipts. Plain data, no I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

# Why a row is in the rejects. The code is for programs, `detail` in the Reject for people.
REJECT_CODES = (
    "empty-text",  # empty, or whitespace only
    "null-text",
    "null-id",
    "duplicate-id",
    "invalid-utf8",
    "invalid-json",
    "invalid-row",  # parsed, but a column is missing or of the wrong type
    "unknown-query",  # the row names one that is not in the table of queries
    "too-long",  # long_text: reject; or a query and its template leave the document no room
    "unknown-token",  # a token for which the model has no vector
    "not-finite",  # the model produced NaN or infinity
    "failed",  # the model raised on this row alone
    "out-of-memory",  # the device had no memory for this row alone, with no other model left to make room
    "killed",  # every process died that ran this row alone
)
RETRYABLE = ("failed", "out-of-memory", "not-finite", "killed")  # those whose rows another attempt may save


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """One file or table of the source, as the snapshot saw it."""

    path: str  # absolute local path, or URL
    size: int  # bytes; for a Lance table its rows
    stamp: str  # ETag, else mtime in nanoseconds, else the table's version: changes when the content may have
    name: str = ""  # text folders: the path relative to the folder or glob it was found by, else ""


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """A range of one input: the unit of retry and commit.

    `start`/`stop` count what the source's format can seek to: rows (Parquet, Lance), bytes (JSONL, CSV), or
    places in the snapshot's list of inputs (text folders, where a shard is a run of files).
    """

    number: int
    input: int  # index into the snapshot's inputs
    start: int
    stop: int
    rows: int | None = None  # exact where planning can know it


def rows_of(shards: Iterable[Shard]) -> int | None:
    """Input rows of these shards; None where planning could not know them without reading everything."""
    counts = [shard.rows for shard in shards]
    return None if None in counts else sum(count or 0 for count in counts)


@dataclasses.dataclass(frozen=True, slots=True)
class Reject:
    """One input row that is not in the result, and why."""

    shard: int
    ordinal: int  # place among the shard's rows, in reading order, from 0
    input: str  # path of the input
    position: int  # row number from 0 (Parquet, Lance), byte offset (JSONL, CSV), 0 (text)
    id: str | int | None
    code: str  # one of REJECT_CODES
    detail: str


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Some consecutive rows of a shard, good and bad ones.

    `batch` holds the good rows in reading order: first column `id` (string or int64, never null), then the columns asked for, as typed in
    the source. `ordinals` (int64, one per good row) are their places in the shard. Text columns may still
    hold nulls and blanks: the adapter rejects those. `bad` are the rows that could not be read at all.
    """

    batch: pa.RecordBatch
    ordinals: np.ndarray
    positions: np.ndarray  # int64, one per good row; see Reject.position
    paths: list[str] | str  # input path, or one per good row (text folders)
    bad: list[Reject]

    @property
    def count(self) -> int:
        """Input rows covered: good and bad."""
        return self.batch.num_rows + len(self.bad)

    @property
    def all_ordinals(self) -> np.ndarray:
        """int64, of good and bad rows, sorted."""
        return np.sort(np.concatenate([self.ordinals, np.array([one.ordinal for one in self.bad], np.int64)]))


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """What a finished (or failed) shard reports; the content of its marker. All row counts are input rows
    except `rows_out`, which counts rows of the output (chunks, with chunking).

    For a finished shard rows_in == rows_done + rejected; for a failed one rows_in is what the plan knows.
    """

    job: str
    shard: int
    generation: int
    attempt: str  # random; decides whose files count
    _: dataclasses.KW_ONLY
    status: str = "done"  # done | failed
    reason: str = ""  # failed: what happened and what to do
    rows_in: int = 0
    rows_done: int = 0
    rows_out: int = 0
    rejected: int = 0
    rejects: dict[str, int] = dataclasses.field(default_factory=dict)  # code -> rows
    rejects_file: str = ""  # name below the job's folder, "" without rejects
    truncated: int = 0
    tokens: int = 0
    seconds: dict[str, float] = dataclasses.field(
        default_factory=dict
    )  # where the time went: read, prepare, run (of all streams), device, stage
    fill: float = 1.0  # share of its batches' budgets that was used
    busy: float = 0.0  # share of the run so far in which the device worked
    kernel: str = ""
    files: tuple[dict[str, Any], ...] = ()  # what the sink wrote, in the sink's own words
    finished: float = 0.0  # Unix time, for people; nothing decides by it
    version: int = 1
