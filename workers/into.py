"""Results of requests that go into tables: those that came within a moment go into each table in one commit, then they are answered."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from ..config.errors import LadingError, StopJob
from ..config.events import tell
from ..config.outputs import token_fields
from ..pipelines import upsert, wire
from ..schedulers.results import Failure, Result
from .groups import Asked, Group, Member, bounds, errors_of
from .parts import counts_of
from .ports import Meter

log = logging.getLogger(__name__)

Told = tuple[Asked, Result]
Entry = tuple[Group, Member, upsert.Rows, list[wire.ItemError]]
_Table = tuple[str, str, bool]  # with the recipe of what goes there, and whether counts do: what one commit is for

KIND = "lancedb"  # the only kind of table whose rows can be replaced
AGAIN_S = 2.0  # until a commit that the store did not take is tried again
PATIENCE_S = 300.0  # that requests wait for a table whose store fails, then they are told
MOST_BEHIND = 256  # groups that may wait to be committed before no more is taken off the queue
MOST_LEFT = 256  # requests that may wait for one table whose store fails; further ones are told at once


class Tables:
    """One thread, which commits; `tell` answers and acknowledges."""

    def __init__(
        self,
        tell: Callable[[Sequence[Told]], bool],
        interval_s: float,
        beat: Callable[[], None] = lambda: None,
        meter: Meter | None = None,
    ) -> None:
        """`beat` is told that those who wait are looked after: their leases are to be kept."""
        self._tell, self._interval_s, self._beat, self._meter = tell, interval_s, beat, meter or Meter()
        self._given: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        # Of tables whose store failed; their leases are kept, so that nobody does them again.
        self._left: list[Entry] = []
        self._failing: dict[_Table, float] = {}  # since when a table's store fails
        self._thread = threading.Thread(target=self._commit_on, name="lading-into", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def give(self, group: Group) -> None:
        self._given.put(group)

    def commit(self, group: Group) -> None:
        """The same in the caller's thread, done on return unless the table's store fails."""
        if self._commit(_entries(group)):
            self.give(group)

    @property
    def behind(self) -> bool:
        """Whether so much waits that no more should be begun."""
        return self._given.qsize() > MOST_BEHIND

    def waiting(self) -> list[tuple[int, float]]:
        """Of requests whose table's store fails: for each table how many rows, and since when it does (monotonic)."""
        rows = Counter[_Table]()
        for entry in self._left:
            rows[_table(entry)] += len(entry[2].ids)
        return [(count, since) for table, count in rows.items() if (since := self._failing.get(table)) is not None]

    def end(self, timeout_s: float) -> None:
        """Commit what was given, then end."""
        self._given.put(None)
        self._thread.join(timeout_s)

    def _commit_on(self) -> None:
        ended = False
        while not ended:
            groups, ended = self._gather()
            if self._left:
                self._beat()
            self._left = self._commit([*self._left, *(entry for group in groups for entry in _entries(group))])

    def _gather(self) -> tuple[list[Group], bool]:
        """What came within an interval of the first, and whether the end did."""
        groups: list[Group] = []
        until = time.monotonic() + AGAIN_S if self._left else None
        while True:
            try:
                one = self._given.get(timeout=None if until is None else max(until - time.monotonic(), 0.001))
            except queue.Empty:
                return groups, False
            if one is None:
                return groups, True
            groups.append(one)
            until = time.monotonic() + self._interval_s if until is None else until

    def _commit(self, given: Sequence[Entry]) -> list[Entry]:
        """One commit for each table and recipe; a table that refuses harms its own requests alone. What is to be tried again."""
        tables: dict[_Table, list[Entry]] = {}
        for entry in given:
            tables.setdefault(_table(entry), []).append(entry)
        left: list[Entry] = []
        for table, entries in tables.items():
            url, hash, counted = table
            group = entries[0][0]
            try:
                rows = [rows for _, _, rows, _ in entries if rows.ids]
                done = upsert.upsert(url, group.recipe, group.model, rows, counted=counted)
            except StopJob as error:
                tell(log, "requests wait", table=url, requests=len(entries), why=error)
                left += self._to_try_again(table, entries, str(error))
                continue
            except Exception as error:
                if not isinstance(error, LadingError):
                    # A defect, but not one to die of: others' requests are in this process.
                    tell(log, "table raised", error, table=url)
                self._refuse(entries, type(error).__name__, str(error))
                continue
            self._failing.pop(table, None)
            counts = {"rows": done.rows, "requests": len(entries), "conflicts": done.conflicts}
            tell(log, "requests stored", table=url, **counts, seconds=round(done.seconds, 3))
            self._meter.committed(KIND, done.seconds, done.conflicts)
            self._meter.upserted(KIND, done.rows, done.size)
            told = [(member.asked, wire.stored(hash, len(rows.ids), errors)) for _, member, rows, errors in entries]
            if self._tell(told):
                inputs = sum(member.count for _, member, _, _ in entries)
                self._meter.answered(group.recipe.task, inputs, [code for one in entries for _, code, _ in one[3]])
        return left

    def _to_try_again(self, table: _Table, entries: list[Entry], why: str) -> list[Entry]:
        """Those that may wait for their table's store a while longer; the others are told why they do not."""
        patient = time.monotonic() - self._failing.setdefault(table, time.monotonic()) < PATIENCE_S
        keep = MOST_LEFT if patient else 0
        self._refuse(
            entries[keep:], StopJob.__name__, f"{why}; nothing of this request was stored, send it again later"
        )
        return entries[:keep]

    def _refuse(self, entries: list[Entry], kind: str, why: str) -> None:
        if entries:
            tell(log, "requests refused", requests=len(entries), kind=kind, why=why)
            self._tell([(member.asked, Failure(kind, why)) for _, member, _, _ in entries])


def _table(entry: Entry) -> _Table:
    group, member, *_ = entry
    return member.asked.request.into, group.recipe.hash, group.counted


def _entries(group: Group) -> list[Entry]:
    return [(group, member, rows, errors) for member, rows, errors in _rows(group)]


def _rows(group: Group) -> list[tuple[Member, upsert.Rows, list[wire.ItemError]]]:
    """What each request of a complete group puts into its table."""
    errors = errors_of(group)
    if group.done:
        order = np.concatenate([items for items, _ in group.done])
        rows = group.prepared.rows[order]
        places = np.argsort(rows, kind="stable")
        rows = rows[places]
        results = pa.Table.from_batches([batch for _, batch in group.done]).take(pa.array(places)).combine_chunks()
        if group.counted:
            for field, counts in zip(token_fields(), counts_of(group.prepared, order[places]), strict=True):
                results = results.append_column(field, counts)
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
