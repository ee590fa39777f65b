"""The leases that this process holds, renewed as long as its work makes progress: a worker that hangs loses them."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable

from ..config.errors import BrokerError
from ..config.events import tell
from ..schedulers.queues import Lease, Queue

log = logging.getLogger(__name__)

PULL_BYTES = 1 << 20  # of messages taken in one step, during which the broker does nothing else
CLOSE_S = 2.0
RENEWALS = 4  # within one lease: three may fail


class Leases:
    """Held leases of both queues of a pool. Threads share one."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self.redelivered: Counter[str] = Counter()  # messages under suspicion that were pulled, by their queue
        self._lock = threading.Lock()
        self._held: dict[tuple[Queue, Lease], None] = {}
        self._beats = self._seen = 0
        self._pulls = self._pulls_seen = 0
        self._loading = 0
        self._pulling = threading.Lock()
        self._closed = False

    def beat(self) -> None:
        """Something moved: rows were read, a batch ended, a shard was written."""
        self._beats += 1

    def loading(self, begins: bool) -> None:
        """While a model is loaded nothing moves that could be counted: it counts as progress itself."""
        with self._lock:
            self._loading += 1 if begins else -1

    def pull(self, queue: Queue, most: int) -> list[Lease]:
        """Take messages and hold them; none once `close` was called. Raises BrokerError."""
        with self._pulling:
            if self._closed:
                return []
            pulled = queue.pull(most, PULL_BYTES)
            with self._lock:
                self._held.update(((queue, one), None) for one in pulled)
            self.redelivered[queue.name] += sum(one.suspect is not None for one in pulled)
            self._pulls += bool(pulled)  # the next renewal is theirs too
            return pulled

    @property
    def pulls(self) -> int:
        """How often messages were taken."""
        return self._pulls

    def close(self) -> None:
        """Nothing is pulled after this, and what was is held: now it can be given back without leaving anything out."""
        # A broker that does not answer holds the lock for its timeout; what it gave then runs out.
        if self._pulling.acquire(timeout=CLOSE_S):
            self._closed = True
            self._pulling.release()

    def forget(self, queue: Queue, leases: Iterable[Lease]) -> None:
        """They are done with, or are to run out: not renewed any more."""
        with self._lock:
            for one in leases:
                self._held.pop((queue, one), None)

    def held(self, queue: Queue) -> list[Lease]:
        with self._lock:
            return [lease for of, lease in self._held if of is queue]

    def done(self, queue: Queue, leases: list[Lease]) -> int:
        """Acknowledge; how many were ours still. An outage of the broker is no reason to wait: what runs out comes back, and is found done."""
        return self._tell(queue, leases, queue.ack, "acknowledge")

    def release(self, queue: Queue, leases: list[Lease]) -> int:
        """Give back in good order; how many were ours still."""
        return self._tell(queue, leases, queue.release, "give back")

    def bury(self, queue: Queue, lease: Lease, reason: str) -> None:
        """Move a message that nobody can do to the dead letters."""
        tell(log, "message buried", queue=queue.name, why=reason)
        self._tell(queue, [lease], lambda leases: int(queue.bury(leases[0], reason)), "bury")

    def renew(self, queues: Iterable[Queue]) -> bool:
        """To be called RENEWALS times within a lease: renews if anything moved since the last time, and says whether. Raises BrokerError.

        What was pulled is renewed once, and yet nothing moved by it: a worker that hangs may be the one that takes its own lost messages.
        """
        beats, pulls = self._beats, self._pulls
        moved = beats != self._seen or self._loading > 0
        for queue in queues if moved or pulls != self._pulls_seen else ():
            queue.renew(self.held(queue))
        self._seen, self._pulls_seen = beats, pulls  # only now: after an error it is tried again, and has moved still
        return moved

    def _tell(self, queue: Queue, leases: list[Lease], call: Callable[[list[Lease]], int], doing: str) -> int:
        self.forget(queue, leases)
        try:
            if (ours := call(leases)) < len(leases):
                tell(log, "leases ran out", queue=queue.name, leases=len(leases) - ours, doing=doing)
            return ours
        except BrokerError as error:
            tell(log, "leases not settled", queue=queue.name, leases=len(leases), doing=doing, why=error)
            return 0
