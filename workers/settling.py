"""What becomes of a shard that the engine is done with: published and acknowledged, failed, or left to whoever sweeps."""

from __future__ import annotations

import logging
import threading
import time

from ..adapters import DeviceLost
from ..config.errors import LadingError, ModelError, NotNow, ShardError
from ..config.events import tell
from ..config.failpoints import failpoint
from ..schedulers.queues import Queue
from . import lone, publishing
from .assignments import Assignment
from .engine import Engine
from .feed import Feed
from .folding import Folds
from .leases import Leases
from .parts import ShardInFlight
from .ports import Meter

log = logging.getLogger(__name__)


class Settling:
    """Of one worker. `publish` runs in the thread that writes, `run_alone` in the working one, never both at once."""

    def __init__(
        self,
        queue: Queue,
        leases: Leases,
        feed: Feed,
        folds: Folds,
        engine: Engine,
        meter: Meter,
        stopping: threading.Event,
        lease_s: float,
    ) -> None:
        self._queue, self._leases, self._feed, self._folds, self._engine = queue, leases, feed, folds, engine
        self._meter, self._stopping, self._lease_s = meter, stopping, lease_s

    def publish(self, shard: ShardInFlight) -> None:
        """Publish a shard and settle its message."""
        one = shard.task
        assert isinstance(one, Assignment)
        if shard.later:
            self._leave(one, NotNow(shard.failure))
            self._leases.beat()
            return
        job = one.of.job
        kernel = "" if shard.failure else one.adapter.kernel
        began = time.monotonic()
        try:
            receipt, ours = publishing.publish(job, shard, kernel=kernel, busy=self._engine.gauges.busy)
        except LadingError as error:
            self._leave(one, error)
        else:
            if ours:
                one.published(receipt)
            failpoint("shard.published")
            seconds = {**shard.seconds, "write": time.monotonic() - began}
            self._meter.published(
                job.recipe.task, job.sink.output.kind, receipt, ours=ours, seconds=seconds, waited_s=one.waited_s
            )
            one.of.strikes.clear(*one.place)  # while it is leased: whoever comes after a death here does this again
            if self._leases.done(self._queue, [one.lease]):
                tell(log, "shard acknowledged", **one.named)
            failpoint("shard.acknowledged")
            self._folds.published(one.of, receipt.rows_out if ours else 0)
            self._feed.settled(one)
        self._leases.beat()

    def _leave(self, one: Assignment, error: LadingError) -> None:
        """Nothing of a shard counts. Whoever sweeps sends it again, and by then the disk or the table may be as it should be."""
        tell(log, "shard left", **one.named, why=error)
        self._meter.unpublished(one.of.job.recipe.task, "left")
        one.of.pause(self._lease_s)
        one.give_up()
        self._leases.done(self._queue, [one.lease])
        self._feed.settled(one)

    def run_alone(self, one: Assignment) -> None:
        """Run one under suspicion with nothing beside it, and settle it. Raises DeviceLost."""
        try:
            shard = lone.run_alone(one, self._engine, self._stopping)
        except NotNow as error:
            self._leave(one, error)
            return
        except (ShardError, ModelError) as error:
            if self._stopping.is_set():
                return  # nothing was wrong with it: it is given back
            shard = _failed(one, str(error))
        except LadingError as error:
            self._leave(one, error)
            return
        except DeviceLost:
            raise
        except Exception as error:  # it killed a process before: this one says what of
            tell(log, "shard raised", error, **one.named)
            shard = _failed(one, f"{type(error).__name__}: {error}")
        if shard is not None:
            self.publish(shard)


def _failed(one: Assignment, why: str) -> ShardInFlight:
    shard = ShardInFlight(one)
    shard.failure = why
    return shard
