"""How a client sends requests and gets their results: the order of steps, once for threads and for asyncio. Pure.

`exchange`, `deliver` and `collect` are generators of steps, which a line (lines.py) carries out; what a line raises is raised in them.
A result is listened for before its request is sent, so that none is missed; after an outage it is looked up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Generator, Sequence
from typing import Any

from ..config.errors import BrokerError, QueueFull, RequestTimeout
from . import results
from .outages import passes

Found = dict[str, dict[str, Any] | results.Failure]

IN_FLIGHT = 32  # requests of one call that are sent and not answered: a huge call leaves room for others
LOOK_S = 5.0  # so often results are looked up while nothing is heard: a dead connection can be silent
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A method of a line, with its arguments."""

    name: str  # one of those of `lines.Line`
    arguments: tuple[Any, ...] = ()


Steps = Generator[Step, Any, Found]


@dataclasses.dataclass(slots=True)
class _Exchange:
    """What is known of some requests. `raws` is empty for those that were sent before."""

    ids: Sequence[str]
    raws: Sequence[bytes]
    until: float  # by `clock`
    clock: Callable[[], float]
    when_full: str
    found: Found = dataclasses.field(default_factory=dict)
    missing: dict[str, int] = dataclasses.field(default_factory=dict)  # id -> place
    todo: list[int] = dataclasses.field(default_factory=list)  # places to send, the last first
    begun: bool = False  # something was sent
    burst: int = IN_FLIGHT  # sent in one step; fewer while the queue is nearly full
    trouble: str = ""
    pauses: int = 0

    def exchange(self) -> Steps:
        self.missing, self.begun = {id: place for place, id in enumerate(self.ids)}, not self.raws
        listening = False
        while self.missing:
            try:
                if not listening:
                    yield from self._listen()
                    listening = True
                    continue  # with that, nothing may be missing any more
                listen_s = yield from self._send()
                yield from self._hear(listen_s)
            except BrokerError as error:
                if not passes(error) or isinstance(error, QueueFull):
                    raise
                listening = False
                self._spend(str(error))
                yield Step("hang_up")
                yield Step("pause", (min(self._pause(), max(self.until - self.clock(), 0.0)),))
        return self.found

    def deliver(self) -> Steps:
        self.todo = list(range(len(self.raws)))[::-1]
        while self.todo:
            try:
                pause_s = yield from self._send()
            except BrokerError as error:
                if not passes(error) or isinstance(error, QueueFull):
                    raise
                self._spend(str(error))
                pause_s = self._pause()
            if self.trouble:
                yield Step("pause", (min(pause_s, max(self.until - self.clock(), 0.0)),))
        return self.found

    def _listen(self) -> Generator[Step, Any, None]:
        """Begin, or begin again after an outage, with all requests to send of which the broker has no result."""
        yield Step("listen_for", (list(self.missing),))
        self.todo = []
        if self.begun:
            yield from self.look_up()
        if self.raws:
            self.todo = sorted(self.missing.values(), reverse=True)

    def _send(self) -> Generator[Step, Any, float]:
        """Keep requests in flight; how long to listen before the next try."""
        count = min(IN_FLIGHT - (len(self.missing) - len(self.todo)), self.burst, len(self.todo))
        if count < 1:
            return LOOK_S
        try:
            yield Step("send", ([self.raws[place] for place in reversed(self.todo[-count:])],))
        except QueueFull as error:
            if self.when_full == "fail" and not self.begun:
                raise
            self.burst = max(self.burst // 2, 1)
            self._spend(str(error))
            return self._pause()
        del self.todo[-count:]
        self.begun = True
        self.burst, self.pauses, self.trouble = min(2 * self.burst, IN_FLIGHT), 0, ""
        return LOOK_S

    def _hear(self, seconds: float) -> Generator[Step, Any, None]:
        heard = yield Step("hear", (max(min(seconds, self.until - self.clock()), 0.0),))
        if heard is not None:
            self._take(*heard)
        elif seconds >= LOOK_S or self.clock() >= self.until:
            yield from self.look_up()
            if self.missing:
                self._spend(self.trouble)

    def look_up(self) -> Generator[Step, Any, None]:
        unsent = set(self.todo)
        if asked := [id for id, place in self.missing.items() if place not in unsent]:
            for id, raw in zip(asked, (yield Step("look_up", (asked,))), strict=True):
                if raw is not None:
                    self._take(id, raw)

    def _take(self, id: str, raw: bytes) -> None:
        if id not in self.missing:  # a late copy, or a call before this one on the same line
            return
        try:
            result = results.decode_result(raw)
        except results.NotAResult as error:
            result = results.Failure("BadResult", str(error))
        if result is not None:
            self.found[id] = result
            del self.missing[id]

    def _spend(self, trouble: str) -> None:
        """Note what is in the way; raise RequestTimeout if there is no time for another try."""
        self.trouble = trouble
        if self.clock() < self.until:
            return
        if not self.ids:
            raise RequestTimeout(f"not all was sent in time: {trouble}")
        answered = f"{len(self.found)} of {len(self.ids)} answers came in time" if self.found else "no answer in time"
        why = trouble or "is a worker running for this pool, and is its queue short? (lading queues)"
        raise RequestTimeout(f"{answered}: {why}")

    def _pause(self) -> float:
        self.pauses += 1
        return min(FIRST_PAUSE_S * 2**self.pauses, LONGEST_PAUSE_S) * random.uniform(0.5, 1)


def exchange(
    ids: Sequence[str], raws: Sequence[bytes], *, until: float, clock: Callable[[], float], when_full: str
) -> Steps:
    """Send the messages with these task ids, and return the result of each; they are then forgotten by the broker.

    Lasts through outages: what may have been lost in one is sent again under the same id. Raises RequestTimeout,
    QueueFull if `when_full` is "fail", and BrokerError where waiting is no help.
    """
    found = yield from _Exchange(ids, raws, until, clock, when_full).exchange()
    with contextlib.suppress(BrokerError):  # they expire
        yield Step("forget", (ids,))
    return found


def collect(ids: Sequence[str], *, until: float, clock: Callable[[], float]) -> Steps:
    """The results of requests that were sent earlier; they stay until they expire. Raises as `exchange`."""
    return _Exchange(ids, (), until, clock, "wait").exchange()


def deliver(raws: Sequence[bytes], *, until: float, clock: Callable[[], float], when_full: str) -> Steps:
    """Send messages and do not wait for results: returns when the queue has taken them all. Raises as `exchange`."""
    return _Exchange((), raws, until, clock, when_full).deliver()


def glance(ids: Sequence[str]) -> Steps:
    """The results that are there now. Raises BrokerError."""
    look = _Exchange(ids, (), 0.0, lambda: 0.0, "fail", missing={id: place for place, id in enumerate(ids)})
    yield from look.look_up()
    return look.found
