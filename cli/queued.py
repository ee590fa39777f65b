"""The verbs for jobs that workers do: submit, watch, retry, cancel, and the scheduler that keeps them going."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import click

from ..config.events import tell
from ..config.words import counted
from . import options as opt
from .interrupt import orderly_stop
from .jobs import declared, enqueue
from .progress import reporting

if TYPE_CHECKING:
    from ..config.settings import Settings
    from ..pipelines.submit import Queues
    from ..pipelines.sweep import Swept
    from ..pipelines.sweep_meter import SweepMeter
    from ..workers.summary import Summary

log = logging.getLogger(__name__)
JOB = click.argument("job", metavar="JOB|OUTPUT")
WATCH_S = 1.0  # between two looks, more where a look takes long
SHARE = 0.1  # of the time, at most, that looks may take
SCHEDULING = b"\nlading: ending the pass; again to stop at once\n"
WATCHING = b"\nlading: the job goes on, watched or not\n"


@click.command()
@click.argument("job", metavar="JOB.yaml", type=click.Path(dir_okay=False))
@opt.options(opt.LIMIT, opt.VECTOR, opt.DEVICE, opt.QUEUE, opt.JSON, opt.QUIET)
def submit(job: str, **given: Any) -> int:
    """Queue the job that a YAML file declares.

    Workers of its pool do it (lading worker). The same command again tries failed shards once more.
    """
    return enqueue(declared(job, given), given)


@click.command()
@JOB
@opt.options(opt.JSON, opt.QUIET)
def watch(job: str, as_json: bool, quiet: bool) -> int:
    """Show how a job goes on until it ends.

    Its end is this command's: the same summary and exit code as of lading run. Ctrl-C ends the watching, not the job.
    """
    with orderly_stop(WATCHING) as stop, reporting(quiet=quiet) as on_progress:
        from ..workers.watching import watch as watch_job

        at = queues()
        summary = watch_job(at.registry, at.broker, job, stop, on_progress, pause_s=WATCH_S, share=SHARE)
    return _tell(summary, as_json=as_json, quiet=quiet)


@click.command()
@JOB
@click.option("--give-up", is_flag=True, help="End the job as it is: what was rejected stays rejected.")
@opt.options(opt.JSON)
def retry(job: str, give_up: bool, as_json: bool) -> int:
    """Try failed shards, and rows that another attempt may save, again.

    A finished job is left open for that while it has such rows; --give-up ends it for good.
    """
    from ..pipelines.steering import retry as retry_job

    done = retry_job(queues(), job, give_up=give_up)
    if as_json:
        click.echo(json.dumps(done.to_dict()))
        return 0
    opened = f"{counted(done.shards, 'failed shard')} and {counted(done.rows, 'rejected row')} to be tried again"
    said = {
        "running": f"job {done.job}: {opened}, {counted(done.sent, 'shard')} sent: lading watch {done.job}",
        "open": f"job {done.job}: {opened}; it was not submitted: repeat the command that made it",
        "closed": f"job {done.job} is closed",
        "nothing to do": f"job {done.job}: nothing to try again",
    }
    click.echo(said[done.state])
    return 0


@click.command()
@JOB
@opt.options(opt.JSON)
def cancel(job: str, as_json: bool) -> int:
    """Begin nothing more of a job, for good. What is in the output stays."""
    from ..pipelines.steering import cancel as cancel_job

    cancelled = cancel_job(queues().registry, job)
    click.echo(json.dumps({"job": cancelled, "state": "cancelled"}) if as_json else f"job {cancelled} is cancelled")
    return 0


@click.command()
@click.option("--once", is_flag=True, help="One thorough pass, then end: for cron, or after an accident.")
@opt.options(opt.METRICS, opt.JSON)
def scheduler(once: bool, as_json: bool, metrics_port: int | None, metrics_bind: str | None) -> int:
    """Keep submitted jobs going until told to stop.

    Sends what is not done as there is room, restores what dead workers held, brings into view what nobody did. Any number of them may
    run; they take turns.
    """
    from ..config.errors import StopJob
    from ..config.settings import load
    from ..pipelines.sweep import HUNGRY, LEAD
    from ..schedulers.outages import patiently

    settings, sweeper = opt.with_metrics(load(), metrics_port, metrics_bind), queues().sweeper()
    if once:
        swept = sweeper.sweep(thorough=True)
        if as_json:
            click.echo(json.dumps(None if swept is None else swept.to_dict()))
        else:
            click.echo("another scheduler is at it" if swept is None else _swept(swept))
        return 0
    meter = _metered(settings)
    with orderly_stop(SCHEDULING) as stop:
        while not stop.is_set():
            began, swept = time.monotonic(), None
            try:
                swept = patiently(lambda: sweeper.sweep(lead_s=LEAD * settings.sweep_interval_s), stop)
                if meter is not None:  # of passes that ended, and of nothing else: health is what it hears
                    meter.swept(swept, time.monotonic() - began)
            except StopJob as error:  # the registry's store is away: it may come back
                tell(log, "sweep failed", why=error)
            if swept is not None and as_json:
                click.echo(json.dumps(swept.to_dict()))
            soon = swept is not None and swept.hungry
            stop.wait(settings.sweep_interval_s / (HUNGRY if soon else 1))
    return 0


VERBS = (submit, watch, retry, cancel, scheduler)


def queues() -> Queues:
    """As this machine's settings say."""
    from ..config.settings import load
    from ..pipelines.submit import Queues

    return Queues.of(load())


def _metered(settings: Settings) -> SweepMeter | None:
    """What the scheduler counts, served on its port if it has one. Raises UsageError."""
    if not settings.metrics_port:
        return None
    from ..pipelines.sweep_meter import SweepMeter
    from ..schedulers.endpoint import Endpoint

    meter = SweepMeter()
    where = settings.metrics_bind, settings.metrics_port
    Endpoint(*where, meter.book.registry, unhealthy=meter.unhealthy, unready=meter.unready)
    return meter


def _swept(swept: Swept) -> str:
    parts = [
        counted(swept.sent, "shard") + " sent",
        counted(swept.restored, "lease") + " restored",
        counted(swept.folded, "shard") + " brought into view",
        counted(swept.ended, "job") + " ended",
    ]
    if swept.faults:
        parts.append(counted(len(swept.faults), "job") + " could not be looked at")
    return ", ".join(parts)


def _tell(summary: Summary, *, as_json: bool, quiet: bool) -> int:
    if as_json:
        click.echo(json.dumps(summary.to_dict()))
    elif not quiet or summary.exit_code:
        click.echo("\n".join(summary.lines()), err=quiet)
    return summary.exit_code
