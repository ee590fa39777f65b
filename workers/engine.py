"""The engine: rows of shards in, finished shards out. Stages overlap; the caller's thread packs and hands out.

    read (thread) -> prepare (thread) -> [window -> pack] -> run (one thread a stream) -> [hand out] -> finished shards

A window is some budgets' worth of items that are sorted and packed together. What is in a window, and in which order
batches are handed out, depends on the shards and their order alone, never on timing, so that the same command forms the
same batches.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ..adapters.contract import Adapter, Outputs
from ..config.errors import ShardError, StopJob
from ..pipelines.manifest import Work
from ..pipelines.records import Rows
from .packer import pack
from .parts import Chosen, Part, ShardInFlight, halves, split_outputs
from .stages import Ahead, Clock

log = logging.getLogger(__name__)

Reader = Callable[[Work], Iterator[Rows]]
READ_AHEAD = 8  # Rows objects, each bounded in rows and bytes by the source
PREPARED_AHEAD = 8
BATCHES_AHEAD = 2  # of each stream, the running one included: none waits for a result to be handed out
WINDOW_PARTS = 128  # a window ends here too, or rows without cost (blank ones) would gather without end
# Items that fail one after the other, none succeeding between: the model is to blame, not the rows.
HOPELESS = 8  # the model raised, on each alone
HOPELESS_RESULTS = 1024  # the result is not finite: some texts overflow float16, and long ones go first


@dataclasses.dataclass(slots=True)
class Gauges:
    """What the engine measured, over its whole life."""

    read: Clock = dataclasses.field(default_factory=Clock)
    prepare: Clock = dataclasses.field(default_factory=Clock)
    run: Clock = dataclasses.field(default_factory=Clock)  # forward and pooling, the streams' seconds added up
    hand_out: Clock = dataclasses.field(default_factory=Clock)  # packing, results to rows
    streams: int = 1
    elapsed: float = 0.0  # seconds from the first row asked for to the last batch handed out
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
        """Share of the device's time, that of all its streams, spent in `run`."""
        return min(self.run.wall / (self.elapsed * self.streams), 1.0) if self.elapsed else 0.0

    @property
    def idle(self) -> float:
        """Seconds that the device had nothing to run."""
        return self.elapsed * (1 - self.busy)


@dataclasses.dataclass(slots=True)
class Batch:
    """Items that run at once, and what came of them."""

    chosen: list[Chosen]
    cost: int
    clock: Clock = dataclasses.field(default_factory=Clock)
    outcomes: list[tuple[list[Chosen], Outputs | Exception]] = dataclasses.field(default_factory=list)


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
    failing: int = 0  # items on which the model raised since the last one that it took
    unusable: int = 0  # results that were not finite since the last one that was
    since: float = 0.0  # up to when `gauges.elapsed` has been counted

    def shards(self, works: Iterable[Work]) -> Generator[ShardInFlight]:
        """Every shard of `works`, complete or failed, in an order that may differ from theirs."""
        self.gauges.streams, self.since = self.adapter.streams, time.perf_counter()
        with (
            Ahead("read", lambda: self._read(works), READ_AHEAD) as rows,
            Ahead("prepare", lambda: self._prepare(rows), PREPARED_AHEAD) as prepared,
            ThreadPoolExecutor(self.adapter.streams, thread_name_prefix="lading-device") as device,
        ):
            try:
                ahead: deque[Future[Batch] | ShardInFlight] = deque()
                for window in self._windows(prepared):
                    for one in self._packed(window):
                        ahead.append(one if isinstance(one, ShardInFlight) else device.submit(self._run, one))
                        yield from self._settle(ahead, BATCHES_AHEAD * self.adapter.streams - 1)
                yield from self._settle(ahead, 0)
            finally:
                rows.close()  # the chain is closed from its source on
                device.shutdown(wait=False, cancel_futures=True)

    # -- stages, each in a thread of its own

    def _read(self, works: Iterable[Work]) -> Iterator[tuple[ShardInFlight, Rows | str]]:
        """Each shard's rows, then why it failed, "" if it did not."""
        for work in works:
            if self.stop.is_set():
                return
            shard, failure = ShardInFlight(work), ""
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
                failure = str(error)
            yield shard, failure

    def _prepare(
        self, source: Iterable[tuple[ShardInFlight, Rows | str]]
    ) -> Iterator[tuple[ShardInFlight, Part | str]]:
        for shard, rows in source:
            if isinstance(rows, str):
                yield shard, rows
                continue
            with self.gauges.prepare:
                prepared = self.adapter.prepare([rows.batch.column(name) for name in self.texts])
            shard.seconds["prepare"] += self.gauges.prepare.last
            yield shard, Part(shard, rows, prepared, missing=len(prepared.costs))

    def _run(self, batch: Batch) -> Batch:
        """One stream of the device."""
        with batch.clock:
            batch.outcomes = self._attempt(batch.chosen)
        return batch

    def _attempt(self, chosen: list[Chosen]) -> list[tuple[list[Chosen], Outputs | Exception]]:
        """Run the items; on an error halve them, down to the one that is to blame."""
        try:
            return [(chosen, self.adapter.run([(part.prepared, items) for part, items in chosen]))]
        except Exception as error:  # becomes a reject of the row that causes it, or stops the job
            if sum(len(items) for _, items in chosen) == 1:
                return [(chosen, error)]
            log.warning("a batch failed (%s: %s); halving it to find the row", type(error).__name__, error)
            left, right = halves(chosen)
            return self._attempt(left) + self._attempt(right)

    # -- the caller's thread

    def _windows(self, prepared: Iterator[tuple[ShardInFlight, Part | str]]) -> Iterator[list[ShardInFlight | Part]]:
        """Parts and ends of shards, in order, in groups of about `window` cost."""
        group: list[ShardInFlight | Part] = []
        cost = 0
        for shard, one in prepared:
            if self.stop.is_set() and not shard.started:
                continue  # prepared ahead, not begun: left for the next run
            if isinstance(one, str):
                shard.failure = one
                group.append(shard)
            else:
                shard.parts.append(one)
                group.append(one)
                cost += int(one.prepared.costs.sum())
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

    def _packed(self, window: list[ShardInFlight | Part]) -> Iterator[Batch | ShardInFlight]:
        """One window's items in batches, then the shards that end with it."""
        parts = [one for one in window if isinstance(one, Part) and not one.shard.failure]
        for part in parts:
            part.shard.started = True
        with self.gauges.hand_out:
            counts = [len(part.prepared.costs) for part in parts]
            costs = np.concatenate([np.empty(0, np.int64), *(part.prepared.costs for part in parts)])
            owner, first = np.repeat(np.arange(len(parts)), counts), np.cumsum([0, *counts])
            batches = pack(costs, self.budget)
        for batch in batches:
            with self.gauges.hand_out:
                batch = batch[np.argsort(owner[batch], kind="stable")]  # items of one part together
                runs = np.split(batch, np.flatnonzero(np.diff(owner[batch])) + 1)
                chosen = [(parts[owner[run[0]]], run - first[owner[run[0]]]) for run in runs]
            yield Batch(chosen, int(costs[batch].sum()))
        yield from (one for one in window if isinstance(one, ShardInFlight))

    def _settle(self, ahead: deque[Future[Batch] | ShardInFlight], most: int) -> Iterator[ShardInFlight]:
        """Hand out in order, until at most `most` batches are under way; give back the shards that this completes."""
        under_way = sum(isinstance(one, Future) for one in ahead)
        while ahead and (under_way > most or isinstance(ahead[0], ShardInFlight)):
            one = ahead.popleft()
            if isinstance(one, ShardInFlight):  # its end: all its parts were in this window or earlier ones
                yield one
                continue
            under_way -= 1
            self._hand_out(one.result())
            now = time.perf_counter()
            self.gauges.elapsed, self.since = self.gauges.elapsed + now - self.since, now
            self.on_batch()

    def _hand_out(self, batch: Batch) -> None:
        gauges = self.gauges
        self._check_hopeless(batch)
        with gauges.hand_out:
            for chosen, outcome in batch.outcomes:
                if isinstance(outcome, Outputs):
                    split_outputs(chosen, outcome)
                else:
                    part, items = chosen[0]
                    part.fail(int(items[0]), "failed", f"{type(outcome).__name__}: {outcome}")
        offered = max(batch.cost, self.budget)
        gauges.run.add(batch.clock)
        gauges.batches += 1
        gauges.cost += batch.cost
        gauges.offered += offered
        for part, items in batch.chosen:
            tokens = int(part.prepared.costs[items].sum())
            share = tokens / max(batch.cost, 1)
            gauges.items += len(items)
            gauges.rows += len(items) * part.rows_per_item
            part.shard.tokens += tokens
            part.shard.seconds["run"] += batch.clock.wall * share
            part.shard.offered += offered * share

    def _check_hopeless(self, batch: Batch) -> None:
        """Raises StopJob when it is plain that no row will succeed, before the whole corpus is rejected."""
        items = sum(len(items) for _, items in batch.chosen)
        raised = [outcome for _, outcome in batch.outcomes if isinstance(outcome, Exception)]
        bad = [why for _, outcome in batch.outcomes if isinstance(outcome, Outputs) for why in outcome.bad.values()]
        self.failing = self.failing + items if len(raised) == items else 0
        self.unusable = self.unusable + items if len(raised) + len(bad) == items else 0
        if self.failing >= HOPELESS:
            detail = f"{type(raised[0]).__name__}: {raised[0]}"
            raise StopJob(f"the model failed on every one of {self.failing} rows in a row: {detail}")
        if self.unusable >= HOPELESS_RESULTS:
            detail = bad[0] if bad else f"{type(raised[0]).__name__}: {raised[0]}"
            raise StopJob(f"no result of {self.unusable:,} rows in a row can be used: {detail}")
