"""Lance tables, read by row ranges at the version that the snapshot pinned."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from ..config.errors import ShardError
from .failures import reason
from .formats import Asked, Piece, agreed, even_ranges, from_columns, pick, rebatch
from .records import Input, Shard
from .snapshot import table_at


def schema(inputs: list[Input], names: list[str]) -> pa.Schema:
    """See `formats.Format`. All tables must agree on the type of each column."""
    return agreed((one.path, pick(table_at(one).schema, names, one.path)) for one in inputs)


def cut(inputs: list[Input], shard_rows: int, limit: int) -> list[Shard]:
    """See `formats.Format`."""
    shards: list[Shard] = []
    before = 0
    for place, one in enumerate(inputs):
        rows = one.size if not limit else min(one.size, limit - before)
        before += rows
        shards += [
            Shard(len(shards) + n, place, a, b, rows=b - a) for n, (a, b) in enumerate(even_ranges(0, rows, shard_rows))
        ]
    return shards


def read(inputs: list[Input], shard: Shard, asked: Asked) -> Iterator[Piece]:
    """See `formats.Format`."""
    one = inputs[shard.input]
    row = shard.start
    try:
        scanner = table_at(one).scanner(
            columns=asked.schema.names,
            offset=shard.start,
            limit=shard.stop - shard.start,
            batch_size=asked.batch_rows,
            scan_in_order=True,
        )
        for batch in rebatch(scanner.to_batches(), asked.batch_rows, asked.batch_bytes):
            yield from_columns(batch, asked, shard, one.path, ordinal=row - shard.start, position=row)
            row += batch.num_rows
    except (ValueError, RuntimeError, OSError) as error:
        raise ShardError(f"{one.path}: rows from {row} cannot be read: {reason(error)}") from error
