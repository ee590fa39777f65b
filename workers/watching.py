"""Looks on while others do a job, until it ends. Reads the job's files; changes nothing."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

from ..config.errors import BrokerError
from ..config.events import tell
from ..pipelines.open_job import Job
from ..pipelines.registry import Registry
from ..pipelines.steering import find_job
from ..schedulers import folds
from ..schedulers.connection import Broker
from .measured import summarise
from .summary import Progress, Summary

log = logging.getLogger(__name__)

NEWEST = 16  # receipts whose fill is shown


def watch(
    registry: Registry,
    broker: Broker,
    name: str,
    stop: threading.Event,
    on_progress: Callable[[Progress], None],
    *,
    pause_s: float,
    share: float,
) -> Summary:
    """The summary of a job when it has ended, or of how it stands when `stop` is set.

    Looks every `pause_s`, and so rarely that looking takes no more than `share` of the time. Raises UsageError where there
    is no such job.
    """
    job, entry = find_job(registry, name)
    began, before = time.monotonic(), None
    while True:
        looked = time.monotonic()
        standing = job.standing()
        totals = standing.totals
        before = totals.tokens if before is None else before
        over = standing.state != "running"
        if standing.state == "finished" and job.manifest.closed() is None:
            # All is done, but perhaps not in view yet: whoever brings it there closes the entry.
            over = entry is None or not registry.is_open(job.id)
        if over:
            return _summary(job, broker, standing.state, standing.reason)
        on_progress(
            Progress(
                rows_done=totals.done,
                rejected=totals.rejected,
                rows_total=job.rows,
                shards_done=totals.shards_done,
                shards_total=totals.shards,
                tokens=totals.tokens - before,
                elapsed_s=time.monotonic() - began,
                fill=_fill(job),
            )
        )
        if stop.wait(max(pause_s, (time.monotonic() - looked) * (1 - share) / share)):
            return _summary(job, broker, "interrupted", "watching was stopped; the job goes on")


def _summary(job: Job, broker: Broker, state: str, reason: str) -> Summary:
    """With what the folds of all workers have cost, as far as the broker knows."""
    summary = summarise(job, state, reason)
    try:
        costs = folds.read(broker, job.id)
    except BrokerError as error:  # the job's files are there all the same
        tell(log, "fold costs unknown", why=error)
        return summary
    seconds = {"fold": round(costs.seconds, 3)} if costs.seconds else {}
    return dataclasses.replace(summary, folds=costs.commits, conflicts=costs.conflicts, seconds=seconds)


def _fill(job: Job) -> float:
    """Of the newest shards."""
    newest = sorted(job.manifest.receipts(), key=lambda receipt: -receipt.finished)[:NEWEST]
    return sum(receipt.fill for receipt in newest) / len(newest) if newest else 1.0
