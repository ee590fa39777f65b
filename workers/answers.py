"""What comes of requests goes back: results into Redis, rows into tables, and then the lease is acknowledged. A thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence

from ..config.errors import BrokerError
from ..config.events import tell
from ..config.failpoints import failpoint
from ..schedulers import results
from ..schedulers.connection import Broker
from ..schedulers.outages import patiently, translated
from ..schedulers.queues import Queue
from ..schedulers.results import Failure, Result
from .groups import Asked, Group, answers, bounds, errors_of
from .into import Tables
from .leases import Leases
from .ports import Meter

log = logging.getLogger(__name__)


class Answers:
    """Stores results and acknowledges, a group at a time."""

    def __init__(
        self,
        broker: Broker,
        requests: Queue,
        leases: Leases,
        stopping: threading.Event,
        *,
        ttl_s: int,
        interval_s: float,
        meter: Meter | None = None,
    ) -> None:
        """ttl_s: how long results are kept; interval_s: between two commits to a table."""
        self._meter = meter or Meter()
        self._broker, self._queue, self._leases, self._ttl_s, self._stopping = broker, requests, leases, ttl_s, stopping
        self._given: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._tables = Tables(self.tell, interval_s, leases.beat, meter)
        self._thread = threading.Thread(target=self._answer_on, name="lading-answers", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._tables.start()

    def give(self, group: Group) -> None:
        """Every item of the group has its result."""
        if group.into:
            self._tables.give(group)
        else:
            self._given.put(group)

    def give_now(self, group: Group) -> None:
        """The same in the caller's thread, acknowledged on return: what runs alone next may end the process."""
        if group.into:
            self._tables.commit(group)
        else:
            self._answer(group)

    @property
    def behind(self) -> bool:
        """Whether so much waits for its table that no more should be begun."""
        return self._tables.behind

    def waiting(self) -> list[tuple[int, float]]:
        """Results that wait for tables whose store fails: for each how many rows, and since when (monotonic)."""
        return self._tables.waiting()

    def end(self, timeout_s: float) -> None:
        """Answer what was given, then end."""
        self._given.put(None)
        self._thread.join(timeout_s)
        self._tables.end(timeout_s)

    def tell(self, told: Sequence[tuple[Asked, Result]]) -> bool:
        """Store results, then acknowledge: in this order, since a full Redis refuses the one and does the other. Whether they are stored."""
        leases = [asked.lease for asked, _ in told]
        stored = bool(told) and self._store([(asked.id, result) for asked, result in told])
        if stored:
            failpoint("answer.stored")
            self._leases.done(self._queue, leases)
            self._meter.told((asked.request.verb, asked.sent, result) for asked, result in told)
            tell(log, "requests answered", requests=len(leases))
        elif not self._stopping.is_set():  # else they are given back
            self._leases.forget(self._queue, leases)
        return stored

    def fail(self, asked: Sequence[Asked], failure: Failure) -> None:
        """Whole requests that cannot be done."""
        tell(log, "requests refused", requests=len(asked), kind=failure.error, why=failure.message)
        self.tell([(one, failure) for one in asked])

    def fail_id(self, id: str, failure: Failure, op: str = "") -> None:
        """A request whose message goes to the dead letters, as far as it says who asks."""
        if self._store([(id, failure)]):
            self._meter.told([(op, 0.0, failure)])

    def _answer_on(self) -> None:
        while (group := self._given.get()) is not None:
            self._answer(group)

    def _answer(self, group: Group) -> None:
        told = [(member.asked, result) for member, result in zip(group.members, answers(group), strict=True)]
        if self.tell(told):
            errors = [code for of_one in errors_of(group) for _, code, _ in of_one]
            self._meter.answered(group.recipe.task, int(bounds(group)[-1]), errors)

    def _store(self, told: Sequence[tuple[str, Result]]) -> bool:
        """False if the broker did not take them: the leases run out, and somebody does it again."""

        def put() -> bool:
            with translated(self._broker.url):
                results.store(self._broker.client, told, self._ttl_s, now=time.time())
            return True

        try:
            return bool(patiently(put, self._stopping))
        except BrokerError as error:
            tell(log, "results not stored", results=len(told), why=error)
            return False
