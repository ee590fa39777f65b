"""A shard under suspicion, run with nothing beside it: in pieces, each noted before it runs, so that a death says which rows it was."""

from __future__ import annotations

import logging
import threading

import numpy as np

from ..config.events import tell
from ..pipelines.strikes import step_of
from .assignments import Assignment
from .engine import HOPELESS, Engine
from .parts import Part, ShardInFlight
from .suspects import rows_between, without

log = logging.getLogger(__name__)


def run_alone(one: Assignment, engine: Engine, stopping: threading.Event) -> ShardInFlight | None:
    """A shard that some process died of, or that the model took nothing of: piece by piece, each noted before it runs.

    None if the worker is told to stop meanwhile. Raises ShardError, StopJob.
    """
    shard, place = ShardInFlight(one), one.place
    if one.struck.unreadable:
        shard.failure = "process after process died while it read these rows; look at the source, then lading retry"
        return shard
    adapter = one.adapter
    read = list(one.read())
    ordinals = np.sort(np.concatenate([np.empty(0, np.int64), *(rows.all_ordinals for rows in read)]))
    pieces, given_up = one.struck.pieces(len(ordinals))
    tell(log, "shard runs alone", **one.named, pieces=len(pieces), deaths=one.struck.notes.total())
    raised = items = 0
    for piece in pieces:
        if stopping.is_set():
            return None
        with one.of.strikes.noted(*place, step_of(piece)):
            for rows in rows_between(read, ordinals[piece[0]], ordinals[piece[1] - 1]):
                prepared = adapter.prepare([rows.batch.column(name) for name in one.texts])
                part = Part(adapter, prepared, len(prepared.costs), shard=shard, rows=rows)
                raised += engine.alone(part)
                items += len(prepared.costs)
                shard.parts.append(part)
                shard.tokens += int(prepared.costs.sum())
    if given_up:
        for rows in without(read, ordinals[given_up], place[0]):
            prepared = adapter.prepare([rows.batch.column(name) for name in one.texts])
            shard.parts.append(Part(adapter, prepared, 0, shard=shard, rows=rows))
    shard.parts.sort(key=lambda part: int(part.rows.all_ordinals.min()))
    if raised == items >= HOPELESS:
        shard.failure = "the model failed on every row; see the log, then lading retry"
    return shard
