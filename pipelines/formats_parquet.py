"""Parquet files: planned from their footers, read by row ranges."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ..config.errors import ShardError, SourceError
from .formats import Asked, Piece, agreed, even_ranges, from_columns, pick, rebatch
from .records import Input, Shard
from .snapshot import is_local, open_input

BUFFER_BYTES = 1 << 20  # streams column chunks instead of holding a row group's whole


@dataclasses.dataclass(frozen=True, slots=True)
class _Footer:
    schema: pa.Schema
    groups: tuple[int, ...]  # rows of each row group


def _open(one: Input) -> pq.ParquetFile:
    # Not memory-mapped: a file truncated by someone else must be an error, not a SIGBUS.
    # Column chunks are read in turns, each from where it lies: what is read ahead of one is dropped for the next.
    source = one.path if is_local(one.path) else open_input(one, read_ahead=False)
    return pq.ParquetFile(source, buffer_size=BUFFER_BYTES, page_checksum_verification=True)


@functools.lru_cache(maxsize=4096)
def _footer(one: Input) -> _Footer:
    try:
        with _open(one) as file:
            groups = tuple(file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups))
            return _Footer(file.schema_arrow, groups)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(f"{one.path} is not a whole Parquet file ({reason}); replace it or leave it out") from error


def schema(inputs: list[Input], names: list[str]) -> pa.Schema:
    """See `formats.Format`. All files must agree on the type of each column."""
    return agreed((one.path, pick(_footer(one).schema, names, one.path)) for one in inputs)


def cut(inputs: list[Input], shard_rows: int, limit: int) -> list[Shard]:
    """See `formats.Format`."""
    shards: list[Shard] = []
    left = limit or sys.maxsize
    for place, one in enumerate(inputs):
        for start, stop in row_ranges(_footer(one).groups, shard_rows):
            stop = min(stop, start + left)
            if stop > start:
                shards.append(Shard(len(shards), place, start, stop, rows=stop - start))
                left -= stop - start
    return shards


def row_ranges(groups: Sequence[int], shard_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `shard_rows` rows: small row groups together, a large one cut evenly, borders kept."""
    start = row = 0
    for rows in groups:
        if row > start and row + rows - start > shard_rows:
            yield start, row
            start = row
        row += rows
        if row - start > shard_rows:
            yield from even_ranges(start, row, shard_rows)
            start = row
    if row > start:
        yield start, row


class _Cursor:
    """A place in a file from which reading goes on without decoding the row group's beginning again.

    Parquet cannot seek inside a row group, and writers make groups of a million rows: cut into shards of
    4,096, decoding each from the group's beginning would cost a hundred times the reading itself.
    """

    def __init__(self, one: Input, asked: Asked, row: int) -> None:
        self.path = one.path
        self.names = asked.schema.names
        self.row = row
        self.file = _open(one)
        self.batches = self._decode(row, asked.batch_rows, asked.batch_bytes)
        self.rest: pa.RecordBatch | None = None

    def _decode(self, row: int, batch_rows: int, batch_bytes: int) -> Iterator[pa.RecordBatch]:
        first = 0
        for number in range(self.file.metadata.num_row_groups):
            group = self.file.metadata.row_group(number)
            skip, first = max(row - first, 0), first + group.num_rows
            if first <= row:
                continue
            columns = [group.column(n) for n in range(group.num_columns)]
            stored = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] in self.names)
            size = max(1, min(batch_rows, batch_bytes * group.num_rows // (stored + 1)))
            try:
                for batch in self.file.iter_batches(size, row_groups=[number], columns=self.names, use_threads=False):
                    if skip < batch.num_rows:
                        yield batch.slice(skip)
                    skip = max(skip - batch.num_rows, 0)
            except (OSError, pa.ArrowException) as error:
                raise ShardError(
                    f"{self.path}: row group {number} cannot be read: {str(error).splitlines()[0]}"
                ) from error

    def take(self, stop: int) -> Iterator[pa.RecordBatch]:
        """The rows from here to row `stop`; fewer if the file ends."""
        while self.row < stop:
            batch = self.rest if self.rest is not None else next(self.batches, None)
            if batch is None:
                return
            now = batch.slice(0, stop - self.row)
            self.rest = batch.slice(now.num_rows) if now.num_rows < batch.num_rows else None
            self.row += now.num_rows
            yield now


# Where the shard read last ended, for the shard that begins there: at most one file stays open.
_parked: dict[tuple[Input, tuple[str, ...], int], _Cursor] = {}


def read(inputs: list[Input], shard: Shard, asked: Asked) -> Iterator[Piece]:
    """See `formats.Format`."""
    one = inputs[shard.input]
    key = (one, tuple(asked.schema.names), shard.start)
    cursor = _parked.pop(key, None) or _Cursor(one, asked, shard.start)
    row = shard.start
    for batch in rebatch(cursor.take(shard.stop), asked.batch_rows, asked.batch_bytes):
        yield from_columns(batch, asked, shard, one.path, ordinal=row - shard.start, position=row)
        row += batch.num_rows
    _parked.clear()
    if cursor.row < cursor.file.metadata.num_rows:
        _parked[(one, key[1], cursor.row)] = cursor
