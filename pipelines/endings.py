"""Which registered jobs came to an end, and how, as the process sees it that sweeps: for whoever counts them. Decides nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Collection

from ..config.errors import LadingError
from ..config.events import tell
from .open_job import CANCELLED
from .registry import Entry, Registry

log = logging.getLogger(__name__)

LOOK_S = 60.0  # between two listings of closed jobs while none of those that are watched went away


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """One job's. `seconds`: from its last submission."""

    op: str  # encode | score | extract; "" where an earlier release submitted it
    outcome: str  # done | failed (its shards, or a rule of its own) | cancelled
    seconds: float


def ending(entry: Entry, outcome: str, when: float) -> Ending:
    return Ending(entry.op, outcome, max(when - entry.created, 0.0))


class Endings:
    """Of one sweeper. A job that is opened again and ends again has ended twice."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._closed: set[str] | None = None  # as of the last look
        self._next = 0.0

    def forget(self) -> None:
        """Another process looks; what ends meanwhile is its to tell."""
        self._closed = None

    def look_soon(self) -> None:
        """A job that was watched is not open any more."""
        self._next = 0.0

    def look(self, opened: Collection[str], now: float) -> list[Ending]:
        """Of the jobs that were closed since the last look; `opened`: those that are not. The first look only begins.

        Raises StopJob where the registry's store fails.
        """
        if self._closed is not None and now < self._next:
            return []
        before, self._closed = self._closed, self._registry.closed() - set(opened)
        self._next = now + LOOK_S
        if before is None:
            return []
        found: list[Ending] = []
        for job in sorted(self._closed - before):
            try:
                if entry := self._registry.get(job):
                    found.append(_ending(entry))
            except (LadingError, ValueError, LookupError) as error:  # of one that nobody waits for: no reason to stop
                tell(log, "job end unknown", job=job, why=error)
        return found


def _ending(entry: Entry) -> Ending:
    folder, now = entry.place.job(entry.job), time.time()
    if folder.exists(CANCELLED):
        return ending(entry, "cancelled", now)
    stored = folder.read("closed.json")  # not there while some of its rejects may be saved
    said = json.loads(stored)["report"].get("ended", now) if stored else now
    return ending(entry, "done", min(said, now))
