"""The verbs that look at an output (status, rejects, query) or tidy it up (optimize)."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING

import click

from ..config.logs import redacted
from ..config.words import counted
from . import options as opt
from .progress import duration

if TYPE_CHECKING:
    from ..pipelines.registry import Registry
    from ..pipelines.report import FailedShard, JobStatus

FAILED = "failed-shard"  # beside the codes of rejects (pipelines/records.py), for `rejects --json`
OUTPUT = click.argument("output", metavar="OUTPUT")


@click.command()
@click.argument("job", metavar="[JOB|OUTPUT]", required=False)
@opt.options(opt.JSON)
def status(job: str | None, as_json: bool) -> None:
    """Show how far jobs are.

    Of one submitted JOB, or of all jobs of OUTPUT, newest first: rows done and rejected, rate and time left. Of neither: a table of
    submitted jobs and of pools.
    """
    if job is None:
        _overview(as_json=as_json)
        return
    from ..pipelines.report import status as status_of

    output, entry = _registry().place(job)
    found = status_of(output, entry.job, limited=entry.limited) if entry else status_of(output)
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in found]))
        return
    for one in found:
        click.echo("\n".join(_status_lines(one)))


def _registry() -> Registry:
    from ..config.settings import load
    from ..pipelines.registry import Registry

    return Registry(load().jobs)


def _overview(*, as_json: bool) -> None:
    from ..config.errors import BrokerError
    from ..config.settings import load
    from ..pipelines.steering import job_lines, pool_lines
    from ..pipelines.submit import Queues

    queues = Queues.of(load())
    jobs, fault = job_lines(queues.registry), ""
    try:
        pools = pool_lines(queues)
    except BrokerError as error:  # the jobs' files are there all the same
        pools, fault = [], str(error)
    if as_json:
        whole = {"jobs": [one.to_dict() for one in jobs], "pools": [one.to_dict() for one in pools], "fault": fault}
        click.echo(json.dumps(whole))
        return
    if not jobs:
        click.echo(f"no job was submitted here ({queues.registry.root})")
    for one in jobs:
        done = counted(one.shards_settled, "shard", of=one.shards_total)
        urgent = f", priority {one.priority}" if one.priority else ""
        click.echo(
            f"{one.job}  {one.state:<11} {done}  {one.pool}{urgent}  {one.output}"
            + f"\n  {one.fault}" * bool(one.fault)
        )
    for one in pools:
        left = "nobody says how many are left (lading scheduler)" if one.left is None else f"{one.left:,} left in all"
        queued = f"{one.waiting:,} waiting, {one.in_flight:,} in flight, {left}"
        click.echo(f"pool {one.pool} ({one.device}): {counted(one.workers, 'worker')}, shards: {queued}")
    if fault:
        click.echo(f"lading: {redacted(fault)}", err=True)


def _status_lines(one: JobStatus) -> list[str]:
    from ..pipelines.report import age

    rows = counted(one.rows_done, "row", of=one.rows_total)
    shards = counted(one.shards_done, "shard", of=one.shards_total)
    lines = [
        f"job {one.job}: {one.state}, begun {age(one.created)}",
        f"  {rows} done, {one.rejected:,} rejected, {shards}",
    ]
    if one.failed or one.failure:
        rows = counted(one.failed, "row") if one.failed else "an unknown number of rows"
        lines.append(f"  {rows} in failed shards: {one.failure}")
    if one.retryable and one.state == "finished":
        lines.append(f"  {counted(one.retryable, 'row')} can be tried again: lading retry {one.output}")
    if one.state == "unfinished":
        last = f"last shard {age(one.last_receipt)}" if one.last_receipt else "no shard yet"
        lines.append(f"  {one.rows_per_s:,.1f} rows/s since it began, {last}, {duration(one.seconds_left)} left")
    return lines


@click.command()
@click.argument("output", metavar="JOB|OUTPUT")
@click.option("--job", metavar="ID", help="Only this job's.  [default: every job's]")
@opt.options(opt.JSON)
def rejects(output: str, job: str | None, as_json: bool) -> None:
    """List the rows of a submitted JOB, or of OUTPUT, that are not in the output, and why.

    With --json, one object per line. Rows in failed shards are not listed one by one: there is a line for each such shard.
    """
    from ..pipelines.report import failed_shards
    from ..pipelines.report import rejects as rejects_of

    output, entry = _registry().place(output)
    job = job or (entry.job if entry else None)
    for one in rejects_of(output, job):
        if as_json:
            click.echo(json.dumps({**dataclasses.asdict(one), "rows": 1}))
        else:
            named = "" if one.id is None else f"  id {one.id}"
            click.echo(f"{one.code}  {one.input}:{one.position}{named}  {one.detail}")
    failed = failed_shards(output, job)
    if as_json:
        for one in failed:
            click.echo(json.dumps(_as_reject(one)))
    elif failed:
        click.echo("\n".join(_failed_lines(failed)), err=True)


def _as_reject(one: FailedShard) -> dict[str, str | int | None]:
    """A failed shard in the form of a reject that stands for all its rows, so that every line has the same keys."""
    nowhere = {"ordinal": None, "position": None, "id": None}
    return {"shard": one.shard, "input": one.input, **nowhere, "code": FAILED, "detail": one.reason, "rows": one.rows}


def _failed_lines(failed: list[FailedShard]) -> list[str]:
    head = f"lading: {counted(len(failed), 'shard')} failed, whose rows are neither in the output nor listed here:"
    lines = [head]
    for one in failed:
        rows = "" if one.rows is None else f" ({counted(one.rows, 'row')})"
        lines.append(f"  job {one.job}, shard {one.shard} of {one.input}{rows}: {one.reason}")
    return [*lines, "  the command that made the job tries them again"]


@click.command()
@OUTPUT
@click.argument("text")
@click.option("--top", metavar="N", type=opt.COUNT, default=5, show_default=True, help="How many rows.")
@click.option("--column", metavar="COL", default="", help="Which vectors, where there are several.")
@opt.options(opt.INSTRUCTION, opt.DEVICE, opt.JSON)
def query(output: str, text: str, top: int, column: str, instruction: str | None, device: str, as_json: bool) -> None:
    """Find the rows of OUTPUT nearest to TEXT.

    TEXT is embedded by the model that made the output, with its query prompt.
    """
    from ..workers.query import query as query_of

    hits = query_of(output, text, top=top, column=column, device=device, instruction=instruction or "")
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(hit) for hit in hits], default=str))
        return
    width = shutil.get_terminal_size((100, 24)).columns
    for hit in hits:
        head = f"{hit.score:.3f}  {hit.id}  "
        click.echo(head + _clip(hit.text, max(width - len(head), 20)))


def _clip(text: str, width: int) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= width else one_line[: width - 3] + "..."


@click.command()
@OUTPUT
@opt.options(opt.JSON)
def optimize(output: str, as_json: bool) -> None:
    """Compact and index OUTPUT.

    Also removes what lost attempts left behind. Safe while jobs write.
    """
    from ..pipelines.optimize import optimize as optimize_output

    done = optimize_output(output)
    click.echo(json.dumps(done.to_dict()) if as_json else "\n".join(done.lines()))


VERBS = (status, rejects, query, optimize)
