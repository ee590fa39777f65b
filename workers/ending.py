"""When a worker ends by itself, and what it still does when it is told to: judged from what it holds and how fast that goes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from ..config.errors import BrokerError
from ..config.events import tell
from ..schedulers.queues import Queue
from .leases import Leases
from .parts import ShardInFlight, Task

log = logging.getLogger(__name__)

LOOKS, LONGEST_LOOK_S = 4, 5.0  # within the time that is waited for; between two of them


class Idleness:
    """Calls `then` once when nothing waited in the queues, was taken or held for `idle_s` seconds. A thread of its own."""

    def __init__(
        self,
        queues: Sequence[Queue],
        leases: Leases,
        idle_s: float,
        then: Callable[[], None],
        stopping: threading.Event,
    ) -> None:
        self._queues, self._leases, self._idle_s = queues, leases, idle_s
        self._then, self._stopping, self._pulls = then, stopping, 0

    def start(self) -> None:
        threading.Thread(target=self._watch, name="lading-idle", daemon=True).start()

    def _watch(self) -> None:
        since = time.monotonic()
        while not self._stopping.wait(min(self._idle_s / LOOKS, LONGEST_LOOK_S)):
            if not self._idle():
                since = time.monotonic()
            elif time.monotonic() - since >= self._idle_s:
                tell(log, "worker idle", seconds=self._idle_s)
                self._then()
                return

    def _idle(self) -> bool:
        """Whether it is, and has been since the last look: a request may come and go between two. A broker that does not say is no
        reason to end."""
        before, self._pulls = self._pulls, self._leases.pulls
        if self._pulls != before:
            return False
        try:
            return not any(self._leases.held(queue) or queue.counts().waiting for queue in self._queues)
        except BrokerError as error:
            tell(log, "queues unknown", why=error)
            return False


def too_long(given: Iterable[Task], under_way: Sequence[ShardInFlight], left_s: float) -> float:
    """Seconds that the shard which is next to be finished still needs, if that is more than `left_s`; else 0.0.

    It is judged by its own rows so far. 0.0 also where nothing can be said of it, and while one that is done is being written.
    """
    in_engine = {id(shard.task) for shard in under_way}
    first = next((shard for shard in under_way if shard.started), None)
    if first is None or any(id(one) not in in_engine for one in given):
        return 0.0
    needs_s = first.needs_s()
    return needs_s if needs_s > left_s else 0.0
