"""What the engine is fed with: shards taken off the pool's queue a few at a time, in the order in which they were sent.

A shard that is under suspicion is set aside, and ends the feed, since it runs alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from ..config.failpoints import failpoint
from ..schedulers.outages import patiently
from ..schedulers.queues import Lease, Queue
from .assignments import Assignment, Desk
from .leases import Leases

WAIT_S = 0.5  # for a message, before looking again whether something else is to be done
ROOM_S = 0.02  # between two looks whether the engine has room; a batch takes longer


class Feed:
    """Iterated by the engine's reading thread; None says that nothing more is at hand for the moment."""

    def __init__(
        self,
        queue: Queue,
        leases: Leases,
        desk: Desk,
        most: int,
        stopping: threading.Event,
        interrupted: Callable[[], bool],
        has_room: Callable[[], bool],
    ) -> None:
        """`most`: messages taken at once; `interrupted` says that the engine is wanted for something that runs alone,
        `has_room` that it should have another shard."""
        self.alone: deque[Assignment] = deque()
        self._queue, self._leases, self._desk, self._most = queue, leases, desk, most
        self._stopping, self._interrupted, self._has_room = stopping, interrupted, has_room
        self._at_hand: deque[Lease] = deque()
        self._given: dict[Lease, Assignment] = {}

    def __iter__(self) -> Iterator[Assignment | None]:
        told = True  # that nothing is at hand
        while not self._over():
            if not self._has_room():
                # What is taken on too early, another worker that has nothing to do cannot take.
                self._stopping.wait(ROOM_S)
                continue
            if not self._at_hand:
                self._pull()
            if self._at_hand:
                if (one := self._next()) is not None:
                    told = False
                    yield one
            elif not told:
                told = True
                yield None
            else:
                patiently(lambda: self._queue.wait(WAIT_S), self._stopping)

    def given(self) -> list[Assignment]:
        """What was handed out and not settled yet."""
        return list(self._given.values())

    def settled(self, one: Assignment) -> None:
        self._given.pop(one.lease, None)

    def isolate(self) -> None:
        """All that was handed out is to run alone, one after the other."""
        waiting = {one.lease for one in self.alone}
        self.alone.extend(one for one in self._given.values() if one.lease not in waiting)

    def _over(self) -> bool:
        return self._stopping.is_set() or bool(self.alone) or self._interrupted()

    def _pull(self) -> None:
        pulled = patiently(lambda: self._leases.pull(self._queue, self._most), self._stopping) or []
        if pulled:
            failpoint("shards.leased")
        self._at_hand.extend(pulled)

    def _next(self) -> Assignment | None:
        one = self._desk.accept(self._at_hand.popleft())
        if one is not None:
            self._given[one.lease] = one
            if one.struck:
                self.alone.append(one)
                return None
        return one
