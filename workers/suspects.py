"""Parts of the rows of a shard that runs alone: what lies between two ordinals, and what is given up. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..pipelines.open_job import only
from ..pipelines.records import Reject, Rows


def rows_between(read: Sequence[Rows], first: int, last: int) -> Iterator[Rows]:
    """The rows with ordinals from `first` to `last`, good and bad ones, as far as they lie together."""
    for rows in read:
        found = rows.all_ordinals
        wanted = found[(found >= first) & (found <= last)]
        if len(wanted):
            yield only(rows, wanted)


def without(read: Sequence[Rows], ordinals: np.ndarray, shard: int) -> Iterator[Rows]:
    """The rows with these ordinals, each a reject: every process died that ran it."""
    for rows in read:
        wanted = np.intersect1d(rows.all_ordinals, ordinals)
        if not len(wanted):
            continue
        chosen = only(rows, wanted)
        killers = [
            Reject(
                shard=shard,
                ordinal=int(chosen.ordinals[place]),
                input=chosen.paths if isinstance(chosen.paths, str) else chosen.paths[place],
                position=int(chosen.positions[place]),
                id=chosen.batch.column("id")[place].as_py(),
                code="killed",
                detail="process after process died while it ran this row alone",
            )
            for place in range(chosen.batch.num_rows)
        ]
        none = np.empty(0, np.int64)
        yield Rows(chosen.batch.slice(0, 0), none, none, [], [*chosen.bad, *killers])
