"""Brings what workers published into view, a whole group of shards at a time, and ends jobs of which nothing is left.

Any worker may fold, and so may the scheduler. That only one does at a time saves work and conflicts; nothing depends on it.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

from ..config.errors import BrokerError, LadingError
from ..config.events import tell
from ..pipelines.output import Folded
from ..pipelines.registry import Registry
from ..pipelines.sweep import settle
from ..schedulers.connection import Broker
from .assignments import Desk, OpenJob
from .ports import Meter

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before a fold that failed is tried again, doubled each time
SPARING = 10  # times as long as a fold took this worker leaves that job alone: what a fold costs grows with the job


@dataclasses.dataclass(slots=True)
class _Fault:
    """A job that cannot be folded for the moment."""

    told: str
    pause_s: float
    until: float


class Folds:
    """One thread a worker."""

    def __init__(
        self,
        desk: Desk,
        registry: Registry,
        broker: Broker,
        interval_s: float,
        beat: Callable[[], None],
        meter: Meter | None = None,
    ) -> None:
        self._desk, self._registry, self._broker = desk, registry, broker
        self._interval_s, self._beat, self._meter = interval_s, beat, meter or Meter()
        self._lock = threading.Lock()
        self._waiting: dict[str, OpenJob] = {}  # of which this process published shards since its last fold
        # By job: the kind of sink, the rows of those shards, and since when (monotonic) they wait for a fold of this process.
        self._rows: dict[str, tuple[str, int, float]] = {}
        self._faults: dict[str, _Fault] = {}
        self._next: dict[str, float] = {}  # when a job may be folded again here
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._fold_on, name="lading-fold", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self, timeout_s: float) -> None:
        """Fold what is left, then end."""
        self._ended.set()
        self._thread.join(timeout_s)

    def published(self, opened: OpenJob, rows: int) -> None:
        """A shard of this job has its marker, with so many rows that may not be in view yet."""
        job, kind = opened.job.id, opened.job.sink.output.kind
        with self._lock:
            self._waiting[job] = opened
            _, before, since = self._rows.get(job, (kind, 0, 0.0))
            self._rows[job] = kind, before + rows, since if before else time.monotonic()

    def waiting(self) -> list[tuple[str, int, float]]:
        """Rows that this process published and has not seen in view yet. For each job the kind of sink, how many, and since when
        (monotonic) they wait; time in which it was another's turn to fold, who takes them along, does not count."""
        with self._lock:
            return list(self._rows.values())

    def _fold_on(self) -> None:
        while not self._ended.wait(self._interval_s):
            now = time.monotonic()
            for opened in self._take():
                fault = self._faults.get(opened.job.id)
                if now < max(self._next.get(opened.job.id, 0.0), fault.until if fault else 0.0):
                    self._give_back(opened)
                elif self._turn(opened) or fault:  # who failed learns only by a try of its own that others did not
                    self._fold(opened)
                else:
                    self._leave(opened)
        for opened in self._take():  # nobody may come after us: whose turn it is does not matter
            self._fold(opened)

    def _take(self) -> list[OpenJob]:
        with self._lock:
            taken, self._waiting = list(self._waiting.values()), {}
        return taken

    def _give_back(self, opened: OpenJob) -> None:
        with self._lock:
            self._waiting.setdefault(opened.job.id, opened)

    def _leave(self, opened: OpenJob) -> None:
        """It is another's turn. If that one fails, it is the one to tell since when rows wait."""
        job = opened.job.id
        self._give_back(opened)
        with self._lock:
            if job in self._rows:
                kind, rows, _ = self._rows[job]
                self._rows[job] = kind, rows, time.monotonic()

    def _fold(self, opened: OpenJob) -> None:
        job, began, kind = opened.job.id, time.monotonic(), opened.job.sink.output.kind
        with self._lock:
            _, rows, _ = self._rows.get(job, (kind, 0, began))

        def tell(folded: Folded) -> None:
            if folded.shards:
                self._meter.committed(kind, folded.seconds, folded.conflicts)

        try:
            standing = settle(opened.folding, self._registry, self._broker, tell)
        except LadingError as error:
            self._give_back(opened)
            self._fail(job, str(error))
            return
        self._faults.pop(job, None)
        now = time.monotonic()
        self._meter.folded(now - began)
        with self._lock:
            after = self._rows.pop(job, (kind, 0, began))[1] - rows
            if after > 0:  # published meanwhile
                self._rows[job] = kind, after, began
        self._next[job] = now + min(SPARING * (now - began), LONGEST_PAUSE_S)
        self._beat()
        if standing.state != "running":
            self._desk.close(job)
            del self._next[job]

    def _fail(self, job: str, why: str) -> None:
        """Say it once, and try again ever more rarely."""
        before = self._faults.get(job)
        if before is None or before.told != why:
            tell(log, "fold failed", job=job, why=why)
        pause_s = min(2 * before.pause_s, LONGEST_PAUSE_S) if before else max(self._interval_s, FIRST_PAUSE_S)
        self._faults[job] = _Fault(why, pause_s, time.monotonic() + pause_s)

    def _turn(self, opened: OpenJob) -> bool:
        """Whether nobody else folds into this output for the moment. Whoever does takes ours too; if it dies, the next turn is ours."""
        try:
            return self._broker.turn(f"lading.folding:{opened.job.sink.output.data}", self._interval_s)
        except BrokerError:
            return True  # without the broker nobody knows, and folding at the same time is merely slower
