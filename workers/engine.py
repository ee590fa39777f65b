"""The engine: rows of shards in, finished shards out. Stages overlap; one thread, the caller's, owns the device.

    read (thread) -> prepare (thread) -> [window -> pack -> run] (device thread) -> finished shards

A window is some budgets' worth of items that are sorted and packed together. What is in a window depends on
the shards and their order alone, never on timing, so that the same command forms the same batches.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np

from ..adapters.contract import Adapter, Prepared
from ..config.errors import ShardError, StopJob
from ..pipelines.manifest import Work
from ..pipelines.records import Rows
from .packer import pack
from .parts import Part, ShardInFlight, split_outputs
from .stages import Ahead, Clock

log = logging.getLogger(__name__)

Reader = Callable[[Work], Iterator[Rows]]
READ_AHEAD = 8  # Rows objects, each bounded in rows and bytes by the source
PREPARED_AHEAD = 8
WINDOW_PARTS = 128  # a window ends here too, or rows without cost (blank ones) would gather without end
HOPELESS = 8  # items that fail one after the other, none succeeding between: the model is to blame, not the rows


@dataclasses.dataclass(slots=True)
class Gauges:
    """What the engine measured, over its whole life."""

    read: Clock = dataclasses.field(default_factory=Clock)
    prepare: Clock = dataclasses.field(default_factory=Clock)
    run: Clock = dataclasses.field(default_factory=Clock)  # on the device thread: forward and pooling
    hand_out: Clock = dataclasses.field(default_factory=Clock)  # on the device thread: packing, results to rows
    wait: Clock = dataclasses.field(default_factory=Clock)  # the device thread had nothing to run
    items: int = 0
    rows: float = 0.0  # that these items are; a document counts by the share of its chunks
    cost: int = 0  # tokens, in the adapter's unit
    offered: int = 0  # budget of all batches: cost / offered is the fill ratio
    batches: int = 0

    @property
    def fill(self) -> float:
        return self.cost / self.offered if self.offered else 1.0

    @property
    def busy(self) -> float:
        """Share of the device thread's time spent in `run`."""
        whole = self.run.wall + self.hand_out.wall + self.wait.wall
        return self.run.wall / whole if whole else 0.0


@dataclasses.dataclass(slots=True)
class Engine:
    """One device's loop. `stop` set: the shards already begun are finished, no other is."""

    adapter: Adapter
    read_shard: Reader
    texts: list[str]  # source columns given to the adapter, in its order
    budget: int
    window: int  # cost that is sorted and packed together
    stop: threading.Event
    gauges: Gauges = dataclasses.field(default_factory=Gauges)
    on_batch: Callable[[], None] = lambda: None
    failing: int = 0  # items failed since the last success

    def shards(self, works: Iterable[Work]) -> Generator[ShardInFlight]:
        """Every shard of `works`, complete or failed, in an order that may differ from theirs."""
        with (
            Ahead("read", lambda: self._read(works), READ_AHEAD) as rows,
            Ahead("prepare", lambda: self._prepare(rows), PREPARED_AHEAD) as prepared,
        ):
            try:
                for window in self._windows(prepared):
                    yield from self._step(window)
            finally:
                rows.close()  # the chain is closed from its source on

    # -- stages, each in a thread of its own

    def _read(self, works: Iterable[Work]) -> Iterator[tuple[ShardInFlight, Rows | None]]:
        for work in works:
            if self.stop.is_set():
                return
            shard = ShardInFlight(work)
            try:
                batches = iter(self.read_shard(work))
                while True:
                    with self.gauges.read:
                        rows = next(batches, None)
                    shard.seconds["read"] += self.gauges.read.last
                    if rows is None:
                        break
                    yield shard, rows
            except ShardError as error:
                shard.failure = str(error)
            yield shard, None

    def _prepare(
        self, source: Iterable[tuple[ShardInFlight, Rows | None]]
    ) -> Iterator[tuple[ShardInFlight, Part | None]]:
        for shard, rows in source:
            if rows is None:
                yield shard, None
                continue
            with self.gauges.prepare:
                prepared = self.adapter.prepare([rows.batch.column(name) for name in self.texts])
            shard.seconds["prepare"] += self.gauges.prepare.last
            yield shard, Part(shard, rows, prepared, missing=len(prepared.costs))

    # -- the device thread

    def _windows(self, prepared: Iterator[tuple[ShardInFlight, Part | None]]) -> Iterator[list[ShardInFlight | Part]]:
        """Parts and ends of shards, in order, in groups of about `window` cost."""
        group: list[ShardInFlight | Part] = []
        cost = 0
        while True:
            with self.gauges.wait:
                step = next(prepared, None)
            if step is None:
                break
            shard, part = step
            if self.stop.is_set() and not shard.started:
                continue  # prepared ahead, not begun: left for the next run
            if part is None:
                group.append(shard)
            else:
                shard.parts.append(part)
                group.append(part)
                cost += int(part.prepared.costs.sum())
            if cost >= self.window or len(group) >= WINDOW_PARTS:
                yield self._begun(group)
                group, cost = [], 0
        if group:
            yield self._begun(group)

    def _begun(self, group: list[ShardInFlight | Part]) -> list[ShardInFlight | Part]:
        """The whole group; once stopped, what belongs to shards that earlier windows began."""
        if not self.stop.is_set():
            return group
        return [one for one in group if (one if isinstance(one, ShardInFlight) else one.shard).started]

    def _step(self, window: list[ShardInFlight | Part]) -> Iterator[ShardInFlight]:
        """Run one window's items in packed batches; give back the shards that this completes."""
        parts = [one for one in window if isinstance(one, Part) and not one.shard.failure]
        for part in parts:
            part.shard.started = True
        with self.gauges.hand_out:
            costs = np.concatenate([part.prepared.costs for part in parts]) if parts else np.empty(0, np.int64)
            owner = np.repeat(np.arange(len(parts)), [len(part.prepared.costs) for part in parts])
            first = np.concatenate([[0], np.cumsum([len(part.prepared.costs) for part in parts])]).astype(np.int64)
            batches = pack(costs, self.budget)
        for batch in batches:
            with self.gauges.hand_out:
                batch = batch[np.argsort(owner[batch], kind="stable")]  # items of one part together
                edges = np.flatnonzero(np.diff(owner[batch])) + 1
                chosen = [(parts[owner[run[0]]], run - first[owner[run[0]]]) for run in np.split(batch, edges)]
            self._run(chosen, int(costs[batch].sum()))
            self.on_batch()
        for one in window:
            if isinstance(one, ShardInFlight):  # its end: all its parts were in this window or earlier ones
                one.all_read = True
                yield one

    def _run(self, chosen: list[tuple[Part, np.ndarray]], cost: int) -> None:
        began = time.perf_counter()
        items = sum(len(run) for _, run in chosen)
        failed = self._attempt(chosen)
        self.failing = self.failing + items if failed == items else 0
        if self.failing >= HOPELESS:
            _, (_, detail) = next(iter(chosen[0][0].failed.items()))
            raise StopJob(f"the model failed on every one of {self.failing} rows in a row: {detail}")
        gauges = self.gauges
        gauges.batches += 1
        gauges.items += items
        gauges.cost += cost
        gauges.offered += max(cost, self.budget)
        seconds = time.perf_counter() - began
        for part, run in chosen:
            tokens = int(part.prepared.costs[run].sum())
            part.shard.tokens += tokens
            gauges.rows += len(run) * part.rows_per_item
            share = tokens / max(cost, 1)
            part.shard.seconds["run"] += seconds * share
            part.shard.offered += max(cost, self.budget) * share

    def _attempt(self, chosen: list[tuple[Part, np.ndarray]]) -> int:
        """Run the items; on an error halve them, down to the one that is to blame. Returns how many failed."""
        given: list[tuple[Prepared, np.ndarray]] = [(part.prepared, run) for part, run in chosen]
        try:
            with self.gauges.run:
                outputs = self.adapter.run(given)
        except Exception as error:  # becomes a reject of the row that causes it, or stops the job above
            if sum(len(run) for _, run in chosen) == 1:
                part, run = chosen[0]
                part.fail(int(run[0]), "failed", f"{type(error).__name__}: {error}")
                return 1
            log.warning("a batch failed (%s: %s); halving it to find the row", type(error).__name__, error)
            left, right = _halves(chosen)
            return self._attempt(left) + self._attempt(right)
        with self.gauges.hand_out:
            split_outputs(chosen, outputs)
        return 0


def _halves(
    chosen: list[tuple[Part, np.ndarray]],
) -> tuple[list[tuple[Part, np.ndarray]], list[tuple[Part, np.ndarray]]]:
    middle = sum(len(run) for _, run in chosen) // 2
    left: list[tuple[Part, np.ndarray]] = []
    right: list[tuple[Part, np.ndarray]] = []
    seen = 0
    for part, run in chosen:
        cut = min(max(middle - seen, 0), len(run))
        if cut:
            left.append((part, run[:cut]))
        if cut < len(run):
            right.append((part, run[cut:]))
        seen += len(run)
    return left, right
