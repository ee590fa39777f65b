"""The engine: rows of shards in, finished shards out, requests served on the way. Stages overlap; the caller's thread packs and hands out.

    read (thread) -> prepare (thread) -> [window] -> [form a batch] -> run (one thread a stream) -> [hand out] -> finished shards
                                requests ->

A window is some budgets' worth of one model's items that are sorted and packed together. Without requests, what is in a window
and in which order batches are handed out depends on the shards and their order alone, never on timing, so that the
same command forms the same batches.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ..adapters.contract import Adapter, OutOfMemory, Outputs
from ..config.errors import NotNow, ShardError, StopJob
from ..pipelines.records import Rows
from .attempts import Attempts, Outcome
from .gauges import Gauges
from .limits import Limits
from .packer import pack
from .parts import Chosen, Items, Part, ShardInFlight, Task, cost_of, split_outputs
from .ports import AllThere, Meter, Models, NoRequests, Requests
from .shares import Shares
from .stages import Ahead, Clock
from .window import Window, Windows

log = logging.getLogger(__name__)

READ_AHEAD = 8  # Rows objects, each bounded in rows and bytes by the source
PREPARED_AHEAD = 8
BATCHES_AHEAD = 2  # of each stream, the running one included: none waits for a result to be handed out
# Items that fail one after the other, none succeeding between: the model is to blame, not the rows.
HOPELESS = 8  # the model raised, on each alone
HOPELESS_RESULTS = 1024  # the result is not finite: some texts overflow float16, and long ones go first


@dataclasses.dataclass(slots=True)
class Batch:
    """Items of one adapter that run at once, and what came of them."""

    chosen: list[Chosen]
    cost: int
    clock: Clock = dataclasses.field(default_factory=Clock)
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Backlog:
    """Shards and their cost between the feed and the device. Each field is written by one thread, so that none needs a lock."""

    taken: int = 0  # by the reading thread
    prepared: int = 0  # whole, by the preparing one
    cost_in: int = 0  # likewise
    cost_out: int = 0  # in batches, or dropped with a shard that failed: by the caller's

    @property
    def shards(self) -> int:
        """Not wholly prepared yet."""
        return self.taken - self.prepared

    @property
    def cost(self) -> int:
        """Prepared, and not in a batch yet."""
        return self.cost_in - self.cost_out


@dataclasses.dataclass(slots=True)
class Engine:
    """One device's loop. `stop` set: the shards already begun are finished, no other is."""

    streams: int  # batches that run at once (Adapter.streams)
    budget: int  # cost of a batch
    window: int  # cost that is sorted and packed together
    stop: threading.Event
    requests: Requests = dataclasses.field(default_factory=NoRequests)
    models: Models = dataclasses.field(default_factory=AllThere)
    gauges: Gauges = dataclasses.field(default_factory=Gauges)
    meter: Meter = dataclasses.field(default_factory=Meter)
    on_batch: Callable[[], None] = lambda: None
    bell: threading.Event = dataclasses.field(default_factory=threading.Event)  # ring it when a request waits
    shares: Shares = dataclasses.field(default_factory=Shares)
    ahead: int = 0  # cost of prepared rows from which on `has_room` says no
    failing: int = 0  # items of shards on which the model raised since the last one that it took
    unusable: int = 0  # results that were not finite since the last one that was
    since: float = 0.0  # up to when `gauges.elapsed` has been counted
    backlog: Backlog = dataclasses.field(default_factory=Backlog)
    under_way: dict[int, ShardInFlight] = dataclasses.field(default_factory=dict)  # by id, the oldest first
    attempts: Attempts = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.attempts = Attempts(self.models, Limits(self.budget), self.gauges)

    @property
    def limits(self) -> Limits:
        """How large the batches of each model may be by now."""
        return self.attempts.limits

    @property
    def running(self) -> set[int]:
        """Threads that are in a batch."""
        return self.attempts.running

    def has_room(self) -> bool:
        """Whether another shard should be taken on, for a feed that shares its shards with other processes: what waits here, they cannot do."""
        return self.backlog.shards <= 1 and self.backlog.cost < self.ahead

    def shards(self, tasks: Iterable[Task | None]) -> Generator[ShardInFlight]:
        """Every shard of `tasks`, complete or failed, in an order that may differ from theirs.

        None among the tasks says that no further one is at hand: what has been read does not wait for more. Raises StopJob
        when it is plain that a model takes no row.
        """
        self.gauges.streams, self.since, self.backlog = self.streams, time.perf_counter(), Backlog()
        self.under_way = {}
        ahead: deque[Future[Batch] | ShardInFlight] = deque()
        with (
            Ahead("read", lambda: self._read(tasks), READ_AHEAD) as rows,
            Ahead("prepare", lambda: self._prepare(rows), PREPARED_AHEAD, self.bell) as prepared,
            ThreadPoolExecutor(self.streams, thread_name_prefix="lading-device") as device,
        ):
            try:
                for shard in self._loop(Windows(prepared, self.window, self.stop), device, ahead):
                    del self.under_way[id(shard)]
                    yield shard
            except StopJob:
                # Requests were taken off their lane for what runs now, and have no part in why the shards stop.
                for one in ahead:
                    if isinstance(one, Future):
                        self._answer(one.result())
                raise
            finally:
                rows.close()  # the chain is closed from its source on
                device.shutdown(wait=False, cancel_futures=True)

    def alone(self, items: Items) -> int:
        """Run prepared items in this thread with nothing beside them, while `shards` is not running; how many the model raised on."""
        for batch in pack(items.prepared.costs, self._limit(items.adapter)):
            with self.models.holding(items.adapter), self.gauges.run:
                outcomes = self.attempts.run([(items, batch)])
            cost = cost_of([(items, batch)])
            self.meter.batch(items.adapter, cost, max(cost, self.budget))
            _share_out(outcomes)
            self.on_batch()
        return sum(code == "failed" for code, _ in items.failed.values())

    # -- stages, each in a thread of its own

    def _read(self, tasks: Iterable[Task | None]) -> Iterator[tuple[ShardInFlight, Rows | str] | None]:
        """Each shard's rows, then why it failed, "" if it did not."""
        for task in tasks:
            if self.stop.is_set():
                return
            if task is None:
                yield None
                continue
            shard, failure = ShardInFlight(task), ""
            self.under_way[id(shard)] = shard
            self.backlog.taken += 1
            try:
                if not task.at_hand:
                    yield None  # what was read before does not wait for it
                _ = task.adapter  # loaded before anything is read for it
                batches = iter(task.read())
                while True:
                    with self.gauges.read:
                        rows = next(batches, None)
                    shard.seconds["read"] += self.gauges.read.last
                    if rows is None:
                        break
                    yield shard, rows
            except ShardError as error:
                failure = str(error)
                shard.later = shard.later or isinstance(error, NotNow)  # it may have been given up for now already
            yield shard, failure

    def _prepare(
        self, source: Iterable[tuple[ShardInFlight, Rows | str] | None]
    ) -> Iterator[tuple[ShardInFlight, Part | str] | ShardInFlight]:
        last: ShardInFlight | None = None
        for one in source:
            if one is None:
                if last is not None:
                    yield last
                continue
            last, rows = one
            if isinstance(rows, str):
                self.backlog.prepared += 1
                yield last, rows
                continue
            adapter = last.task.adapter
            with self.gauges.prepare:
                prepared = adapter.prepare([rows.batch.column(name) for name in last.task.texts])
            last.seconds["prepare"] += self.gauges.prepare.last
            self.backlog.cost_in += int(prepared.costs.sum())
            yield last, Part(adapter, prepared, len(prepared.costs), shard=last, rows=rows)

    def _run(self, batch: Batch) -> Batch:
        """One stream of the device."""
        try:
            with batch.clock:
                batch.outcomes = self.attempts.run(batch.chosen)
        finally:
            self.models.release(batch.chosen[0][0].adapter)
        return batch

    # -- the caller's thread

    def _loop(
        self, windows: Windows, device: ThreadPoolExecutor, ahead: deque[Future[Batch] | ShardInFlight]
    ) -> Iterator[ShardInFlight]:
        """Hand out what has ended, form the next batch, let it run; wait when none of it can be done."""
        window: Window | None = Window.none()
        while True:
            self.bell.clear()
            yield from self._settle(ahead)
            while not window:
                ahead.extend(window.ends)
                with self.gauges.hand_out:
                    window = windows.next()
                self.backlog.cost_out += windows.dropped()
                if window is None:
                    window = Window.none()
                    break
            under_way = sum(isinstance(one, Future) for one in ahead)
            # With the last shard given out this ends, however many requests keep coming: something is to run alone. Told to stop,
            # it ends with those that wait, as no more are taken.
            ending = windows.ended and not window and not self.stop.is_set()
            if not ending and under_way < BATCHES_AHEAD * self.streams and (batch := self._form(window)):
                running = device.submit(self._run, batch)
                running.add_done_callback(lambda _: self.bell.set())
                ahead.append(running)
            elif not ahead and windows.ended and not window and not window.ends:  # ends: of one that was given up
                return
            elif not ahead or isinstance(
                ahead[0], Future
            ):  # nothing to give back: shards that ended wait behind their batches
                self.bell.wait()

    def _form(self, window: Window) -> Batch | None:
        """The batch to run next: requests first, topped up with rows of shards, unless shards are owed their share."""
        with self.gauges.hand_out:
            waiting = self._without_lost(window)
            self.models.working([*waiting, window.adapter] if window else waiting)
            asked: list[Chosen] = []
            rows: list[Chosen] = []
            if window and self.shares.owed > 0 and self.models.hold(window.adapter):
                rows = window.take(self._limit(window.adapter))
            else:
                asked = self.requests.take(self.models.hold, self._limit)
            cost = cost_of(asked)
            if asked and window and window.adapter is asked[0][0].adapter:
                rows = window.fill(self._limit(window.adapter) - cost)
            elif not asked and not rows and window and self.models.hold(window.adapter):
                rows = window.take(self._limit(window.adapter))
            of_rows = cost_of(rows)
            self.backlog.cost_out += of_rows
            return Batch(asked + rows, cost + of_rows) if asked or rows else None

    def _limit(self, adapter: Adapter) -> int:
        return self.limits.of(adapter.weights)

    def _without_lost(self, window: Window) -> list[Adapter]:
        """The models that requests wait for; what waits for one that cannot come fails, however much else there is to do."""
        waiting: list[Adapter] = []
        for adapter in self.requests.adapters():
            if why := self.models.trouble(adapter):
                self.requests.refuse(adapter, why)
            else:
                waiting.append(adapter)
        if not window:
            return waiting
        why, later = self.models.trouble(window.adapter), self.models.delay(window.adapter)
        if why or later:
            self.backlog.cost_out += window.give_up(why or later, later=not why)
            self.bell.set()  # another window may be there
        return waiting

    def _settle(self, ahead: deque[Future[Batch] | ShardInFlight]) -> Iterator[ShardInFlight]:
        """Hand out, in order, the batches that have ended; give back the shards that this completes."""
        while ahead and (isinstance(ahead[0], ShardInFlight) or ahead[0].done()):
            one = ahead.popleft()
            if isinstance(one, ShardInFlight):  # its end: all its parts were in this window or earlier ones
                yield one
                continue
            self._hand_out(one.result())
            now = time.perf_counter()
            self.gauges.elapsed, self.since = self.gauges.elapsed + now - self.since, now
            self.on_batch()

    def _hand_out(self, batch: Batch) -> None:
        self._answer(batch)
        self._check_hopeless(batch)
        offered = max(batch.cost, self.budget)
        self.gauges.count(batch.clock, batch.cost, offered)
        self.meter.batch(batch.chosen[0][0].adapter, batch.cost, offered)
        of_shards = 0.0
        for part, items in batch.chosen:
            tokens = int(part.prepared.costs[items].sum())
            share = tokens / max(batch.cost, 1)
            self.gauges.items += len(items)
            self.gauges.rows += len(items) * part.rows_per_item
            if isinstance(part, Part):
                of_shards += share
                part.shard.tokens += tokens
                part.shard.seconds["run"] += batch.clock.wall * share
                part.shard.seconds["device"] += batch.clock.wall * share / self.streams
                part.shard.offered += offered * share
        self.shares.count(batch.clock.wall, of_shards)

    def _answer(self, batch: Batch) -> None:
        """Give every item its result, and every request that is complete by it back to its lane."""
        with self.gauges.hand_out:
            _share_out(batch.outcomes)
        for part, _ in batch.chosen:
            if not isinstance(part, Part) and not part.missing:
                self.requests.completed(part)

    def _check_hopeless(self, batch: Batch) -> None:
        """Raises StopJob when it is plain that no row of a shard will succeed, before the whole corpus is rejected."""
        outcomes = [one for one in batch.outcomes if all(isinstance(part, Part) for part, _ in one[0])]
        items = sum(len(items) for chosen, _ in outcomes for _, items in chosen)
        if not items:
            return
        raised = [outcome for _, outcome in outcomes if isinstance(outcome, Exception)]
        bad = [why for _, outcome in outcomes if isinstance(outcome, Outputs) for why in outcome.bad.values()]
        self.failing = self.failing + items if len(raised) == items else 0
        self.unusable = self.unusable + items if len(raised) + len(bad) == items else 0
        if self.failing >= HOPELESS:
            detail = f"{type(raised[0]).__name__}: {raised[0]}"
            raise StopJob(f"the model failed on every one of {self.failing} rows in a row: {detail}")
        if self.unusable >= HOPELESS_RESULTS:
            detail = bad[0] if bad else f"{type(raised[0]).__name__}: {raised[0]}"
            raise StopJob(f"no result of {self.unusable:,} rows in a row can be used: {detail}")


def _share_out(outcomes: list[Outcome]) -> None:
    for chosen, outcome in outcomes:
        if isinstance(outcome, Outputs):
            split_outputs(chosen, outcome)
        else:
            part, items = chosen[0]
            code = "out-of-memory" if isinstance(outcome, OutOfMemory) else "failed"
            part.fail(int(items[0]), code, f"{type(outcome).__name__}: {outcome}")
