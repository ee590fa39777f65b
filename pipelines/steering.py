"""What people do with jobs that are under way: retry, cancel, and a look at all of them. A JOB is an id or an output."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from ..config.errors import LadingError, OutputError, UsageError
from ..config.events import tell
from ..schedulers.connection import Broker
from ..schedulers.sweeping import look_anew, total
from .aftercare import report, settle
from .manifest import Manifest, jobs
from .markers import Markers
from .open_job import Job
from .output import Output, find_output
from .registry import Entry, Registry
from .sinks import open_sink
from .strikes import Strikes
from .submit import Queues

log = logging.getLogger(__name__)

RECENT = 10  # jobs that need no more looks, of those shown


@dataclasses.dataclass(frozen=True, slots=True)
class Retried:
    """What a retry opened."""

    job: str
    shards: int  # failed ones, to be done again
    rows: int  # rejected ones, to be tried again
    sent: int  # shards to the queue, at once
    state: str  # running | closed | nothing to do | open: of a job that was never submitted; its own command goes on

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class PoolStatus:
    """One pool."""

    pool: str
    device: str
    workers: int
    waiting: int  # shards in its queue
    in_flight: int
    left: int | None  # shards of its jobs that are not done, those that are not in Redis included; None: nobody sweeps

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class JobLine:
    """One registered job, as far as the names of its files tell."""

    job: str
    state: str  # running | unfinished | finished | cancelled | unreachable
    pool: str
    priority: int
    output: str
    created: float
    shards_settled: int  # done or failed
    shards_total: int
    fault: str  # why it is unreachable, else ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def find_job(registry: Registry, name: str) -> tuple[Job, Entry | None]:
    """The job that a user names, to look at, and its entry if it was submitted. Raises UsageError where there is none."""
    output, entry = registry.place(name)
    found, manifest = _manifest(output, entry.job if entry else None)
    entry = entry or registry.get(manifest.plan.job)
    job = Job.of(manifest, open_sink(found))
    if entry is not None:
        job.spec = entry.limited(job.spec)
    return job, entry


def retry(queues: Queues, name: str, *, give_up: bool = False) -> Retried:
    """Open failed shards and retryable rejects again and send them; `give_up`: end the job as it is instead.

    Raises UsageError where there is no such job, or it cannot be retried.
    """
    job, entry = find_job(queues.registry, name)
    if job.cancelled():
        raise UsageError(f"job {job.id} was cancelled: there is nothing to retry")
    if job.manifest.closed() is not None:
        return Retried(job.id, 0, 0, 0, "nothing to do")
    job.enter()
    if give_up:
        return _give_up(queues, job)
    Strikes(job.manifest.folder).forgive_loading(job.recipe.hash)
    shards, rows = job.manifest.reopen_failed(), job.manifest.reopen_rejects()
    if entry is None:
        return Retried(job.id, shards, rows, 0, "open" if shards or rows else "nothing to do")
    if not shards and not rows and not job.manifest.work():
        return Retried(job.id, 0, 0, 0, "nothing to do")
    queues.registry.add(entry)
    look_anew(queues.broker)
    sent = queues.sweeper().admit(entry)
    tell(log, "job retried", job=job.id, shards=shards, rows=rows, sent=sent)
    return Retried(job.id, shards, rows, sent, "running")


def _give_up(queues: Queues, job: Job) -> Retried:
    standing = settle(job, queues.registry, queues.broker)
    if standing.state != "finished":
        reason = standing.reason or "shards are still to be done"
        raise UsageError(f"job {job.id} cannot be closed: {reason}")
    job.close(report(job, standing))
    tell(log, "job finished", job=job.id)
    queues.registry.close(job.id)
    return Retried(job.id, 0, 0, 0, "closed")


def cancel(registry: Registry, name: str) -> str:
    """Nothing more of the job is begun, for good; what is in view stays. Its id. Raises UsageError for a finished job."""
    job, _ = find_job(registry, name)
    if job.manifest.closed() is not None:
        raise UsageError(f"job {job.id} is finished: there is nothing to cancel")
    job.cancel()
    tell(log, "job cancelled", job=job.id)
    registry.close(job.id)
    return job.id


def job_lines(registry: Registry) -> list[JobLine]:
    """Every open job and the most recent others, newest first. A job that cannot be read has its reason in place of its status."""
    running = registry.list_open()
    ended = [entry for entry in registry.list_closed()[-RECENT:] if not registry.is_open(entry.job)]
    found = [_line(entry, "running") for entry in running] + [_line(entry, "finished") for entry in ended]
    return sorted(found, key=lambda line: -line.created)


def pool_lines(queues: Queues) -> list[PoolStatus]:
    """Every pool. Raises BrokerError."""
    return [_pool(queues.broker, name, pool.device, pool.shards) for name, pool in queues.pools.items()]


def _pool(broker: Broker, name: str, device: str, shards: str) -> PoolStatus:
    counts = broker.queue(shards).counts()
    return PoolStatus(name, device, broker.workers(name), counts.waiting, counts.in_flight, total(broker, name))


def _line(entry: Entry, state: str) -> JobLine:
    markers, fault = None, ""
    try:
        folder = entry.place.job(entry.job)
        if not folder.exists("plan.json"):
            raise OutputError(f"{folder.url} has no plan: the job's folder was removed or is not mounted here")
        markers = Markers(folder, entry.shards)
        markers.look()
        if folder.exists("cancelled.json"):
            state = "cancelled"
        elif folder.exists("closed.json"):
            state = "finished"
        elif state == "running" and not markers.pending:
            state = "unfinished"
    except (LadingError, ValueError, KeyError, TypeError) as error:
        state, fault = "unreachable", str(error)
    settled = entry.shards - markers.pending if markers else 0
    where = str(entry.place)
    return JobLine(entry.job, state, entry.pool, entry.priority, where, entry.created, settled, entry.shards, fault)


def _manifest(output: str, job: str | None) -> tuple[Output, Manifest]:
    """The output, and the manifest of the named job, or of the only one that an output has."""
    found = find_output(output)
    names = [job] if job else jobs(found)
    if not names:
        raise OutputError(f"no job has written to {output}: looked in {found.manifest}/jobs")
    if len(names) > 1:
        raise UsageError(f"{output} has several jobs, name one: {', '.join(names)}")
    return found, Manifest.open(found, names[0])
