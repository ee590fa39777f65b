"""What comes of requests goes back: results into Redis, rows into tables, then the lease is acknowledged. A thread of its own."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config.errors import BrokerError
from ..config.failpoints import failpoint
from ..config.recipe import Recipe
from ..pipelines import wire
from ..schedulers import results
from ..schedulers.connection import Broker
from ..schedulers.messages import Message
from ..schedulers.outages import patiently
from ..schedulers.queues import Lease, Queue
from ..schedulers.results import Failure
from .leases import Leases
from .packer import Packing
from .parts import Items

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A request in a group, and which of the group's rows are its own."""

    lease: Lease
    message: Message
    first: int
    count: int


@dataclasses.dataclass(slots=True, kw_only=True)
class Group(Items):
    """Requests of one recipe that were pulled together."""

    recipe: Recipe
    members: list[Member]
    packing: Packing  # what of it still waits


class Answers:
    """Stores results and acknowledges, a group at a time."""

    def __init__(self, broker: Broker, queue_: Queue, leases: Leases, ttl_s: int, stopping: threading.Event) -> None:
        self._broker, self._queue, self._leases, self._ttl_s, self._stopping = broker, queue_, leases, ttl_s, stopping
        self._given: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._answer_on, name="lading-answers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def give(self, group: Group) -> None:
        """Every item of the group has its result."""
        self._given.put(group)

    def end(self, timeout_s: float) -> None:
        """Answer what was given, then end."""
        self._given.put(None)
        self._thread.join(timeout_s)

    def fail(self, asked: Sequence[tuple[Lease, Message]], failure: Failure, *, ack: bool = True) -> None:
        """Whole requests that cannot be done."""
        leases = [lease for lease, _ in asked]
        if self._store([(message.id, failure) for _, message in asked]) and ack:
            self._leases.done(self._queue, leases)

    def fail_id(self, id: str, failure: Failure) -> None:
        """A request that could not even be read, but says who asks."""
        self._store([(id, failure)])

    def _answer_on(self) -> None:
        while (group := self._given.get()) is not None:
            encoded = answers(group)
            if self._store(encoded):
                failpoint("answer.stored")
                self._leases.done(self._queue, [member.lease for member in group.members])

    def _store(self, told: Sequence[tuple[str, Any]]) -> bool:
        """False if the broker did not take them: the leases run out, and somebody does it again."""

        def put() -> bool:
            results.store(self._broker.client, told, self._ttl_s, now=time.time())
            return True

        try:
            return bool(patiently(put, self._stopping))
        except BrokerError as error:
            log.error("%d results could not be stored: %s", len(told), error)
            return False


def answers(group: Group) -> list[tuple[str, bytes]]:
    """The result of each request of a complete group, by its id."""
    prepared, members = group.prepared, group.members
    starts = np.array([member.first for member in members])
    bounds = np.append(starts, members[-1].first + members[-1].count)
    pieces: list[list[wire.Piece]] = [[] for _ in members]
    for items, batch in group.done:
        columns = wire.columns(group.recipe, batch)
        rows = prepared.rows[items]
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        cuts = np.searchsorted(rows, bounds)
        for number, (low, high) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)):
            if low < high:
                pieces[number].append(wire.Piece(columns, rows[low:high] - members[number].first, order[low:high]))
    errors: list[list[wire.ItemError]] = [[] for _ in members]
    failed = dict(prepared.bad)
    failed.update({int(prepared.rows[item]): why for item, why in group.failed.items()})
    for row, (code, detail) in sorted(failed.items()):
        number = int(np.searchsorted(starts, row, side="right")) - 1
        errors[number].append((row - members[number].first, code, detail))
    return [
        (member.message.id, wire.answer(group.recipe.hash, member.count, pieces[number], errors[number]))
        for number, member in enumerate(members)
    ]
