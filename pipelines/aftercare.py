"""What happens to a job's markers once they are there: brought into view if nobody did, and the job ended if nothing is left.

Workers do both as they go. This is for the jobs whose workers died, or were scaled away, between a marker and a fold; it
costs a listing of the job's markers, so it is done rarely and the more rarely the longer it takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable

from ..config.errors import BrokerError
from ..config.events import tell
from ..schedulers import folds
from ..schedulers.connection import Broker
from ..schedulers.folds import FoldCosts
from ..schedulers.sweeping import look_anew
from .generations import Pair
from .open_job import CANCELLED, Job, Standing
from .output import Folded
from .registry import Registry
from .sinks import open_sink
from .watching import Watched

log = logging.getLogger(__name__)

LOOK_S = 60.0  # between two looks at a job at which nothing is wrong
ENDING_S = 5.0  # that its workers have to end a job before it is done for them
MOST_LOOK_S = 3600.0
SHARE = 0.05  # of the time, at most, that looks may take
FOLDED_AT_ONCE = 1000  # shards


@dataclasses.dataclass(slots=True)
class _Care:
    next: float  # look, by the sweeper's clock
    pause: float = LOOK_S
    ending: bool = False  # all has a marker, as of the last pass
    unfolded: set[Pair] = dataclasses.field(default_factory=set)  # as of the last look
    failed: set[Pair] = dataclasses.field(default_factory=set)  # never to be folded
    alive: bool = False  # it was seen with something to do, so that how it ends is news


@dataclasses.dataclass(frozen=True, slots=True)
class Cared:
    """What one look came to."""

    folded: int = 0
    over: bool = False  # the job is not open any more
    failed: bool = False  # it came to an end that is none: shards failed, or a rule of its own stops it. Told once


class Aftercare:
    """The looks at the jobs of one sweeper."""

    def __init__(self, registry: Registry, broker: Broker) -> None:
        self._registry, self._broker, self._began = registry, broker, time.time()
        self._cares: dict[str, _Care] = {}

    def due(self, jobs: Iterable[str], now: float) -> bool:
        """Whether any of them wants a look."""
        return any(job not in self._cares or self._cares[job].next <= now for job in jobs)

    def forget(self, job: str) -> None:
        """It is not open any more."""
        self._cares.pop(job, None)

    def look_after(self, job: Watched, now: float, *, at_once: bool = False) -> Cared:
        """Look if it is time to. Raises LadingError for what ails this job."""
        new = job.entry.created >= self._began
        care = self._cares.setdefault(job.entry.job, _Care(now + LOOK_S, alive=new))
        care.alive |= job.looked and job.markers.pending > 0 and not job.stopped
        ending = job.markers.pending == 0
        if ending != care.ending:
            care.ending, care.pause, care.next = ending, LOOK_S, now + (ENDING_S if ending else LOOK_S)
        suspicious = job.losses > 0 and job.entry.max_rejects is not None
        if not (at_once or suspicious or care.next <= now):
            return Cared()
        began = time.monotonic()
        cared = self._look(job, care, suspicious, at_once)
        care.next = now + max(care.pause, (time.monotonic() - began) / SHARE)
        return cared

    def _look(self, job: Watched, care: _Care, suspicious: bool, at_once: bool) -> Cared:
        job.losses = 0
        closed = job.folder.exists("closed.json")
        if closed or job.folder.exists(CANCELLED):  # whoever did that died before it came to the rest
            if closed:
                open_sink(job.entry.place).unregister(job.entry.job)
                job.folder.delete("strikes")
            self._registry.close(job.entry.job)
            return Cared(over=True)
        job.markers.look()
        if job.markers.pending == 0:
            standing = settle(job.entry.open(), self._registry, self._broker)
            job.markers.look()
            care.pause = min(2 * care.pause, MOST_LOOK_S)  # shards failed, or too much was rejected: that is for people
            return Cared(over=not self._registry.is_open(job.entry.job), failed=_fails(care, standing))
        folded, failed = self._fold(job, care, at_once), False
        if suspicious:  # workers drop the shards of a job that must not go on
            standing = job.entry.open().standing()
            job.stopped, failed = standing.state in ("stopped", "cancelled"), _fails(care, standing)
        return Cared(folded, failed=failed)

    def _fold(self, job: Watched, care: _Care, at_once: bool) -> int:
        """Bring into view what was not at the last look either: until then it is its worker's to do."""
        sink = open_sink(job.entry.place)
        known = sink.folded(job.entry.job) | sink.void(job.entry.job) | care.failed
        unfolded = {pair for pair in job.markers.published() if pair not in known}
        overdue = sorted(unfolded if at_once else unfolded & care.unfolded)[:FOLDED_AT_ONCE]
        care.unfolded = unfolded
        receipts = [receipt for pair in overdue if (receipt := job.markers.receipt(pair))]
        care.failed |= {(one.shard, one.generation) for one in receipts if one.status != "done"}
        done = [one for one in receipts if one.status == "done"]
        if not done:
            return 0
        opened = job.entry.open()
        began = time.monotonic()
        folded = opened.sink.fold(opened.id, done)
        count(self._broker, opened.id, folded, time.monotonic() - began)
        if folded.void and opened.manifest.reopen_void(folded.void):
            job.markers.look()
        return folded.shards


def _fails(care: _Care, standing: Standing) -> bool:
    """Whether this is news."""
    failed = care.alive and standing.state in ("unfinished", "stopped")
    care.alive &= not failed
    return failed


def settle(
    job: Job, registry: Registry, broker: Broker, on_fold: Callable[[Folded], None] = lambda _: None
) -> Standing:
    """Bring into view what is published, and end the job if that was all of it; how it stands then. For anyone to call.

    `on_fold` is told what the fold did. A job that is finished but for rows that another attempt may save is left open for `lading retry`, and yet needs no more
    looks. Raises StopJob, LadingError.
    """
    began = time.monotonic()
    standing = job.standing()  # before the fold: what is published in between is the next one's to fold, and no error
    folded = job.fold()
    on_fold(folded)
    if folded.void:
        look_anew(broker)
        standing = job.standing()
    count(broker, job.id, folded, time.monotonic() - began)
    anew = standing.state == "finished" and job.manifest.closed() is None
    if anew:
        tell(log, "job folded", job=job.id, rows=standing.totals.done, rejected=standing.totals.rejected)
    if standing.state == "finished" and not standing.totals.retryable:
        job.close(report(job, standing))
        if anew:
            tell(log, "job finished", job=job.id)
    if standing.state in ("finished", "cancelled"):
        registry.close(job.id)
    return standing


def count(broker: Broker, job: str, folded: Folded, seconds: float) -> None:
    """Add to what the job's folds have cost, for people to see."""
    with contextlib.suppress(BrokerError):  # the number is worth no wait
        folds.add(broker, job, FoldCosts(int(folded.shards > 0), folded.conflicts, seconds))


def report(job: Job, standing: Standing) -> dict[str, object]:
    """What a job that ended leaves for people."""
    counts = dataclasses.asdict(standing.totals)
    ended = round(time.time(), 3)
    return {"job": job.id, "output": str(job.sink.output), "state": standing.state, "ended": ended, **counts}
