"""Brings what workers published into view, a whole group of shards at a time, and ends jobs of which nothing is left.

Any worker may fold, and so may the scheduler. That only one does at a time saves work and conflicts; nothing depends on it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ..config.errors import BrokerError, LadingError
from ..pipelines.registry import Registry
from ..pipelines.sweep import settle
from ..schedulers.connection import Broker
from .assignments import Desk, OpenJob

log = logging.getLogger(__name__)


class Folds:
    """One thread a worker."""

    def __init__(
        self,
        desk: Desk,
        registry: Registry,
        broker: Broker,
        interval_s: float,
        beat: Callable[[], None],
        stopping: threading.Event,
    ) -> None:
        self._desk, self._registry, self._broker = desk, registry, broker
        self._interval_s, self._beat, self._stopping = interval_s, beat, stopping
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._fold_on, name="lading-fold", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self, timeout_s: float) -> None:
        """Fold what is left, then end."""
        self._ended.set()
        self._thread.join(timeout_s)

    def published(self, opened: OpenJob) -> None:
        """A shard of this job has its marker."""
        with opened.lock:
            opened.unfolded += 1

    def _fold_on(self) -> None:
        while not self._ended.wait(self._interval_s):
            for opened in self._desk.jobs():
                self._fold(opened)
        for opened in self._desk.jobs():
            self._fold(opened)

    def _fold(self, opened: OpenJob) -> None:
        with opened.lock:
            waiting, opened.unfolded = opened.unfolded, 0
        if not waiting:
            return
        try:
            if not self._turn(opened):
                with opened.lock:
                    opened.unfolded += waiting  # whoever has its turn takes ours too; if it dies, the next turn is ours
                return
            standing = settle(opened.folding, self._registry, self._broker)
            self._beat()
            if standing.state != "running":
                self._desk.close(opened.job.id)
        except LadingError as error:
            log.error("job %s: %s", opened.job.id, error)
            with opened.lock:
                opened.unfolded += waiting

    def _turn(self, opened: OpenJob) -> bool:
        """Whether nobody else folds into this output for the moment."""
        try:
            return self._broker.turn(f"lading.folding:{opened.job.sink.output.data}", self._interval_s)
        except BrokerError:
            return True  # without the broker nobody knows, and folding at the same time is merely slower
