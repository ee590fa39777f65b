"""Local workers of some pools, as many as their queues ask for: `lading autoscale`.

Redis is read in a thread of its own, so that a broker that is away holds up no restart and no stop. That thread decides how
many; the main one starts and stops them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ..config.errors import BrokerError
from ..config.events import tell
from ..config.words import counted
from ..schedulers.autoscale import Behaviour, Change, Scaler, triggers
from ..schedulers.connection import Broker
from ..schedulers.outages import passes
from ..schedulers.pools import Pool
from ..schedulers.reports import held, process_of
from .supervise import LOOK_S, Crew, Program

log = logging.getLogger(__name__)

TICK_S = 0.2  # between two looks whether something is to be decided


@dataclasses.dataclass(slots=True)
class Staff:
    """One pool's workers on this machine."""

    pool: Pool
    slots: Sequence[Program]  # as many as there may be
    up: list[Program] = dataclasses.field(default_factory=list)  # those that should run, the newest last

    def resize(self, workers: int, busy: Mapping[int, float], pid: Callable[[Program], int | None]) -> None:
        """Those that leave are the ones with least in their hands (`busy`, by process), of equals the newest; those that come take
        the places of processes that are gone before those of processes that are still ending."""
        free = sorted((slot for slot in self.slots if slot not in self.up), key=lambda one: pid(one) is not None)
        self.up += free[: max(workers - len(self.up), 0)]
        newest_first = list(reversed(self.up))
        newest_first.sort(key=lambda one: busy.get(pid(one) or 0, math.inf))
        for one in newest_first[: max(len(self.up) - workers, 0)]:
            self.up.remove(one)


@dataclasses.dataclass(frozen=True, slots=True)
class _Order:
    staff: Staff
    change: Change
    seen: str  # what led to it
    busy: Mapping[int, float]


def autoscale(
    broker: Broker,
    staffs: Sequence[Staff],
    beside: Sequence[Program],
    behaviour: Behaviour,
    stop: threading.Event,
    hurry: threading.Event,
    *,
    patience_s: float,
    alive_s: float,
    say: Callable[[str], None],
) -> int:
    """Run the staffs as their queues ask, and the programs `beside` them, until `stop` is set; the exit code.

    `behaviour`, with each pool's own number of slots as its bound. `patience_s`, `hurry`: see supervise. `alive_s`: what a worker said of
    itself so long ago counts. `say` is told each change, in a line. Raises BrokerError, when all have ended, where it is not for a while
    that the broker cannot be asked.
    """
    orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
    decide = _Decisions(broker, staffs, behaviour, alive_s, orders, say)
    threading.Thread(target=decide.run, args=(stop,), name="lading-scale", daemon=True).start()
    crew = Crew(patience_s)
    while not stop.is_set() and decide.failed is None:
        while not orders.empty():
            order = orders.get()
            before, after = order.change.before, order.change.after
            order.staff.resize(after, order.busy, crew.pid)
            why = f"{order.change.why} ({order.seen})"
            say(f"pool {order.staff.pool.name}: {before} -> {counted(after, 'worker')}: {why}")
        crew.want([*beside, *(program for staff in staffs for program in staff.up)])
        crew.look()
        if crew.refused:
            break
        stop.wait(LOOK_S)
    stop.set()
    code = crew.end(hurry)
    if decide.failed is not None:
        raise decide.failed
    return code


class _Decisions:
    """The thread that reads and decides."""

    def __init__(
        self,
        broker: Broker,
        staffs: Sequence[Staff],
        behaviour: Behaviour,
        alive_s: float,
        orders: queue.SimpleQueue[_Order],
        say: Callable[[str], None],
    ) -> None:
        self._broker, self._alive_s, self._orders, self._say = broker, alive_s, orders, say
        self._scalers = [
            (staff, Scaler(triggers(staff.pool), dataclasses.replace(behaviour, most=len(staff.slots))))
            for staff in staffs
        ]
        self._away = False  # the queues cannot be read, and that was said
        self.failed: Exception | None = None  # why this thread has ended, if nobody told it to

    def run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                for staff, scaler in self._scalers:
                    if scaler.due(time.monotonic()):
                        self._step(staff, scaler)
                stop.wait(TICK_S)
        except Exception as error:  # carried over to the main thread and raised there
            self.failed = error

    def _step(self, staff: Staff, scaler: Scaler) -> None:
        lengths = self._lengths(staff.pool)
        change = scaler.step(time.monotonic(), lengths)
        if change is not None:
            assert lengths is not None
            busy = self._busy(staff.pool) if 0 < change.after < change.before else {}
            self._orders.put(_Order(staff, change, _words(lengths), busy))

    def _lengths(self, pool: Pool) -> list[int] | None:
        """Of the pool's triggers; None, and said once, while the broker does not tell."""
        try:
            shards, requests = (self._broker.queue(name).counts() for name in (pool.shards, pool.requests))
        except BrokerError as error:
            if not passes(error):
                raise
            if not self._away:
                self._say(f"{error}; the workers stay as they are")
            self._away = True
            return None
        if self._away:
            self._say("the broker answers again")
        self._away = False
        return [shards.waiting, requests.waiting, shards.in_flight, requests.in_flight]

    def _busy(self, pool: Pool) -> dict[int, float]:
        """What the workers of this machine had in their hands, by process, when they last said."""
        host = socket.gethostname()
        try:
            reports = self._broker.reports(pool.name, self._alive_s)
        except BrokerError as error:
            tell(log, "reports unknown", pool=pool.name, why=error)
            return {}
        return {pid: held(one) for name, one in reports.items() if (pid := process_of(name, host)) is not None}


def _words(lengths: Sequence[int]) -> str:
    shards, requests, shards_in_flight, requests_in_flight = lengths
    waiting = [counted(number, what) for number, what in ((shards, "shard"), (requests, "request")) if number]
    in_flight = shards_in_flight + requests_in_flight
    return f"{' and '.join(waiting) or 'nothing'} waiting, {in_flight:,} in flight"
