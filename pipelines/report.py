"""What an output's jobs say of themselves, read from their folders: status and rejects. Changes nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..config.errors import OutputError
from .manifest import Manifest, jobs
from .open_job import Job
from .output import Output, find_output
from .records import Reject
from .sinks import open_sink
from .spec import JobSpec


@dataclasses.dataclass(frozen=True, slots=True)
class JobStatus:
    """One job; rows are input rows, `rows_total` None where the source does not say before it is read."""

    job: str
    output: str
    # finished | unfinished (nobody says here whether a process is at work on it) | stopped (by its own rules) | cancelled
    state: str
    rows_total: int | None
    rows_done: int
    rejected: int
    retryable: int  # of the rejected rows, those that `lading retry` would try again
    failed: int
    failure: str
    shards_done: int
    shards_total: int
    created: float  # Unix time
    last_receipt: float  # Unix time, 0.0 before the first
    rows_per_s: float  # from the plan's making to the last receipt
    seconds_left: float | None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that could not be finished; the same command as before tries it again."""

    job: str
    shard: int
    input: str  # path of the input
    rows: int | None  # None where the source does not say before it is read
    reason: str


def status(
    output: str, job: str | None = None, *, limited: Callable[[JobSpec], JobSpec] | None = None
) -> list[JobStatus]:
    """One job, or every job that writes to `output` (a path or sink URL), newest first. Raises OutputError where there is none.

    `limited` gives a job's spec the limits that were set after it was planned.
    """
    found = find_output(output)
    return [_status(found, manifest, limited) for manifest in _manifests(output, job)]


def _status(output: Output, manifest: Manifest, limited: Callable[[JobSpec], JobSpec] | None) -> JobStatus:
    plan, job = manifest.plan, Job.of(manifest, open_sink(output))
    if limited is not None:
        job.spec = limited(job.spec)
    standing = job.standing()
    totals = standing.totals
    last = max((receipt.finished for receipt in manifest.receipts()), default=0.0)
    elapsed = max(last - plan.created, 0.0)
    rows = totals.done + totals.rejected
    rate = rows / elapsed if elapsed else 0.0
    left_shards = len(plan.shards) - totals.shards_done
    per_shard = elapsed / totals.shards_done if totals.shards_done else None
    finished = standing.state == "finished"
    return JobStatus(
        job=plan.job,
        output=str(output),
        state="unfinished" if standing.state == "running" else standing.state,
        rows_total=job.rows,
        rows_done=totals.done,
        rejected=totals.rejected,
        retryable=0 if manifest.closed() is not None else totals.retryable,
        failed=totals.failed,
        failure=totals.failure,
        shards_done=totals.shards_done,
        shards_total=len(plan.shards),
        created=plan.created,
        last_receipt=last,
        rows_per_s=rate,
        seconds_left=0.0 if finished else left_shards * per_shard if per_shard is not None else None,
    )


def age(stamp: float) -> str:
    """`stamp` (Unix time) as seen from now, for people."""
    seconds = max(time.time() - stamp, 0.0)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def rejects(output: str, job: str | None = None) -> Iterator[Reject]:
    """The rejected rows of one job, or of all jobs of the output, newest job first. Raises OutputError."""
    for manifest in _manifests(output, job):
        yield from manifest.rejects()


def failed_shards(output: str, job: str | None = None) -> list[FailedShard]:
    """The shards, in the same order, whose rows are neither in the output nor among the rejects. Raises OutputError."""
    found: list[FailedShard] = []
    for manifest in _manifests(output, job):
        plan = manifest.plan
        shards = {shard.number: shard for shard in plan.shards}
        for receipt in manifest.receipts():
            if receipt.status == "failed":
                shard = shards[receipt.shard]
                # A shard of a text folder is a run of files: its first stands for it.
                first = shard.start if plan.format == "text" else shard.input
                path = plan.inputs[first].path
                found.append(FailedShard(plan.job, shard.number, path, receipt.rows_in or shard.rows, receipt.reason))
    return found


def _manifests(output: str, job: str | None = None) -> list[Manifest]:
    """Of one job or of all jobs of the output, newest first."""
    found = find_output(output)
    names = jobs(found)
    if not names:
        raise OutputError(f"no job has written to {output}: looked in {found.manifest}/jobs")
    if job is not None and job not in names:
        raise OutputError(f"{output} has no job {job}; its jobs: {', '.join(names)}")
    opened = [Manifest.open(found, name) for name in ([job] if job is not None else names)]
    return sorted(opened, key=lambda one: -one.plan.created)
