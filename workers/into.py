"""Results of requests that go into tables: those that came within a moment go into each table in one commit, then they are answered."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from ..config.errors import LadingError, StopJob
from ..pipelines import upsert, wire
from ..schedulers.results import Failure, Result
from .groups import Asked, Group, Member, bounds, errors_of

log = logging.getLogger(__name__)

Told = tuple[Asked, Result]


class Tables:
    """One thread, which commits; `tell` answers and acknowledges."""

    def __init__(self, tell: Callable[[Sequence[Told]], None], interval_s: float) -> None:
        self._tell, self._interval_s = tell, interval_s
        self._given: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._commit_on, name="lading-into", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def give(self, group: Group) -> None:
        self._given.put(group)

    def end(self, timeout_s: float) -> None:
        """Commit what was given, then end."""
        self._given.put(None)
        self._thread.join(timeout_s)

    def _commit_on(self) -> None:
        ended = False
        while not ended:
            groups: list[Group] = []
            until = float("inf")
            while time.monotonic() < until and not ended:
                try:
                    one = self._given.get(
                        timeout=None if until == float("inf") else max(until - time.monotonic(), 0.001)
                    )
                except queue.Empty:
                    break
                if one is None:
                    ended = True
                else:
                    groups.append(one)
                    until = min(until, time.monotonic() + self._interval_s)
            self.commit(groups)

    def commit(self, groups: Sequence[Group]) -> None:
        """One commit for each table and recipe; a table that refuses harms its own requests alone."""
        tables: dict[tuple[str, str], list[tuple[Group, Member, upsert.Rows, list[wire.ItemError]]]] = {}
        for group in groups:
            for member, rows, errors in _rows(group):
                tables.setdefault((member.asked.request.into, group.recipe.hash), []).append(
                    (group, member, rows, errors)
                )
        for (url, hash), entries in tables.items():
            group = entries[0][0]
            try:
                done = upsert.upsert(url, group.recipe, group.model, [rows for _, _, rows, _ in entries if rows.ids])
            except StopJob as error:
                log.error("%s", error)  # the leases run out, and then it is tried again
                continue
            except LadingError as error:
                self._tell([(member.asked, Failure(type(error).__name__, str(error))) for _, member, _, _ in entries])
                continue
            log.info(
                "%s: %d rows of %d requests in %.3f s, %d conflicts",
                url,
                done.rows,
                len(entries),
                done.seconds,
                done.conflicts,
            )
            self._tell(
                [(member.asked, wire.stored(hash, len(rows.ids), errors)) for _, member, rows, errors in entries]
            )


def _rows(group: Group) -> list[tuple[Member, upsert.Rows, list[wire.ItemError]]]:
    """What each request of a complete group puts into its table."""
    errors = errors_of(group)
    if group.done:
        order = np.concatenate([items for items, _ in group.done])
        rows = group.prepared.rows[order]
        places = np.argsort(rows, kind="stable")
        rows = rows[places]
        results = pa.Table.from_batches([batch for _, batch in group.done]).take(pa.array(places)).combine_chunks()
    else:
        rows, results = np.empty(0, np.int32), pa.schema(group.adapter.fields).empty_table()
    cuts = np.searchsorted(rows, bounds(group)).tolist()
    found: list[tuple[Member, upsert.Rows, list[wire.ItemError]]] = []
    for member, low, high, bad in zip(group.members, cuts[:-1], cuts[1:], errors, strict=True):
        request = member.asked.request
        mine: list[int] = (rows[low:high] - member.first).tolist()
        inputs = [request.inputs[row] for row in mine]
        texts = [[one] if isinstance(one, str) else list(one) for one in inputs]
        columns = [list(column) for column in zip(*texts, strict=True)] or [[] for _ in range(group.adapter.inputs)]
        ids: list[str] = [request.ids[row] for row in mine]
        part = results.slice(low, high - low).combine_chunks()
        batch = part.to_batches()[0] if part.num_rows else pa.RecordBatch.from_pylist([], schema=part.schema)
        found.append((member, upsert.Rows(ids, columns, batch), bad))
    return found
