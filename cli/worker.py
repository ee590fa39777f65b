"""The verbs that keep running: a pool's workers, on one machine all that is needed, and as many as the queues ask for; and a look at what
workers hold."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ..config.words import counted
from . import options as opt

if TYPE_CHECKING:
    from ..workers.supervise import Program

BEYOND_GRACE_S = 30.0  # for a process to end that has given back what its grace did not suffice for

DEVICES = (
    click.option(
        "--pool", metavar="NAME", default="", help="Which pool's queues to serve (pools.yaml).  [default: cpu]"
    ),
    click.option(
        "--devices",
        metavar="LIST",
        default="",
        help="all, or a list like cuda:0,cuda:1; a process each.  [default: one of the pool's kind]",
    ),
)
ROOTS = (
    click.option(
        "--allow",
        metavar="PATH",
        multiple=True,
        help="Where models and tables that requests name may lie; repeat it.  [default: LADING_ROOTS, else the working directory]",
    ),
)


@click.group(invoke_without_command=True, subcommand_metavar="[status]")
@opt.options(DEVICES, ROOTS, opt.METRICS)
@click.option(
    "--exit-when-idle",
    metavar="SECONDS",
    type=opt.SECONDS,
    help="End, with 0, when nothing waited and nothing was held for so long.  [default: the setting exit_when_idle_s, which is 0: never]",
)
@click.pass_context
def worker(
    ctx: click.Context,
    pool: str,
    devices: str,
    allow: Sequence[str],
    exit_when_idle: float | None,
    metrics_port: int | None,
    metrics_bind: str | None,
) -> int:
    """Work for a pool until told to stop.

    Takes shards and requests from the broker at LADING_BROKER_URL. Ctrl-C or SIGTERM: nothing more is taken, what fits into the grace is
    finished, the rest given back; a second one cuts that short.

    `lading worker status` starts nothing: it shows what the workers that run hold.
    """
    if ctx.invoked_subcommand:
        from ..config.errors import UsageError

        given = (exit_when_idle, metrics_port, metrics_bind)
        if pool or devices or allow or any(one is not None for one in given):
            raise UsageError("the options of a worker that is started go without `status`, its own behind it")
        return 0
    from ..workers.programs import workers

    _settle(allow, metrics_port, metrics_bind)
    if exit_when_idle is not None:
        os.environ["LADING_EXIT_WHEN_IDLE_S"] = str(exit_when_idle)
    return _run(workers(pool, devices, verbose=_verbose(ctx)))


@worker.command()
@click.option("--pool", metavar="NAME", default="", help="Only this pool's (pools.yaml).  [default: all]")
@opt.options(opt.JSON)
def status(pool: str, as_json: bool) -> None:
    """Show what the workers hold: budgets, models and where they are, loads, evictions.

    As each said last, at most a quarter of lease_s ago.
    """
    from ..config.settings import load as load_settings
    from ..schedulers.connection import ALIVE_S, Broker
    from ..schedulers.pools import find, load
    from ..schedulers.reports import hit_rate, readable
    from .holdings import lines

    pools, settings = load(), load_settings()
    broker, within_s = Broker.connect(settings.broker_url), max(ALIVE_S, settings.lease_s)
    found: list[dict[str, Any]] = []
    for name in [find(pools, pool).name] if pool else pools:
        living, reports = broker.living(name, within_s), broker.reports(name, within_s)
        if not as_json:
            click.echo(f"pool {name}: {counted(len(living), 'worker')}")
        for one in sorted(living | reports.keys()):
            report = reports.get(one)
            if report is not None and readable(report):
                found.append({"pool": name, "worker": one, **report, "hit_rate": hit_rate(report)})
            if not as_json:
                click.echo("\n".join(lines(one, report)))
    if as_json:
        click.echo(json.dumps(found))


@click.command()
@opt.options(DEVICES, ROOTS, opt.METRICS)
@click.option(
    "--workers",
    metavar="N",
    type=opt.COUNT,
    default=1,
    show_default=True,
    help="Processes, where the pool's device is a CPU.",
)
@click.pass_context
def up(
    ctx: click.Context,
    pool: str,
    devices: str,
    allow: Sequence[str],
    metrics_port: int | None,
    metrics_bind: str | None,
    workers: int,
) -> int:
    """Run all that a single machine needs: workers and the scheduler, stopping together. The broker is yours.

    Metrics of the scheduler are on the port after those of the workers.
    """
    from ..workers.programs import scheduler
    from ..workers.programs import workers as programs

    _settle(allow, metrics_port, metrics_bind)
    os.environ["LADING_EXIT_WHEN_IDLE_S"] = "0"  # nobody would start them again
    verbose = _verbose(ctx)
    of_workers = programs(pool, devices, processes=workers, verbose=verbose)
    return _run([scheduler(len(of_workers), verbose=verbose), *of_workers])


@click.command()
@click.option(
    "--metrics-port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    default=9465,
    show_default=True,
    help="Serve /metrics, /healthz and /readyz there; whatever LADING_METRICS_PORT says, which is for workers and schedulers.",
)
@click.option(
    "--metrics-bind", metavar="ADDRESS", help="The address for that.  [default: LADING_METRICS_BIND, else 127.0.0.1]"
)
def exporter(metrics_port: int, metrics_bind: str | None) -> int:
    """Serve the metrics of the broker and of all pools' queues until told to stop.

    Reads Redis at each scrape, with the rights of a user of its own (deploy/redis/exporter.acl).
    """
    from ..config.settings import load
    from ..schedulers import pools
    from ..schedulers.connection import Broker
    from ..schedulers.endpoint import Endpoint
    from ..schedulers.exporter import TIMEOUT_S, Exporter
    from .interrupt import orderly_stop

    settings = load()
    one = Exporter(Broker.connect(settings.broker_url, timeout_s=TIMEOUT_S), pools.load())
    endpoint = Endpoint(metrics_bind or settings.metrics_bind, metrics_port, one.book.registry, unready=one.unready)
    with orderly_stop(b"") as stop:
        stop.wait()
    endpoint.close()
    return 0


@click.command()
@click.option(
    "--pool",
    "named",
    metavar="NAME",
    multiple=True,
    help="Whose workers to start and stop (pools.yaml); repeat it.  [default: cpu]",
)
@click.option(
    "--devices",
    metavar="LIST",
    default="",
    help="A list like cuda:0,cuda:1; workers are spread over them.  [default: all]",
)
@opt.options(ROOTS, opt.METRICS)
@click.option(
    "--max",
    "most",
    metavar="N",
    type=opt.COUNT,
    help="Workers of each pool, at most.  [default: one for each device, and max_workers of the pool]",
)
@click.option("--min", "least", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Always.")
@click.option(
    "--poll",
    metavar="SECONDS",
    type=opt.SECONDS,
    default=2.0,
    show_default=True,
    help="Between two looks at the queues.",
)
@click.option(
    "--cooldown",
    metavar="SECONDS",
    type=opt.SECONDS,
    default=300.0,
    show_default=True,
    help="Without any message, before the last workers go.",
)
@click.option(
    "--settle",
    metavar="SECONDS",
    type=opt.SECONDS,
    default=300.0,
    show_default=True,
    help="For which fewer must have been enough, before some go.",
)
@click.option(
    "--with-scheduler/--without-scheduler", "scheduler", default=True, show_default=True, help="Run it as well."
)
@click.pass_context
def autoscale(
    ctx: click.Context,
    named: Sequence[str],
    devices: str,
    allow: Sequence[str],
    most: int | None,
    least: int,
    poll: float,
    cooldown: float,
    settle: float,
    scheduler: bool,
    metrics_port: int | None,
    metrics_bind: str | None,
) -> int:
    """Start and stop workers of this machine as the queues ask, from none to --max; and the scheduler.

    With what KEDA does in a cluster, on the same numbers. One line for each change, with its reason. A worker that is stopped finishes
    what fits into its grace and gives the rest back. Ctrl-C or SIGTERM stops all of them; a second one cuts the grace short.
    """
    from ..config.errors import UsageError
    from ..config.settings import load as load_settings
    from ..schedulers.autoscale import Behaviour
    from ..schedulers.celery_settings import pool_name
    from ..schedulers.connection import ALIVE_S, Broker
    from ..schedulers.pools import find, load
    from ..workers import programs
    from ..workers.scaling import Staff
    from ..workers.scaling import autoscale as run

    _settle(allow, metrics_port, metrics_bind)
    pools, settings, staffs = load(), load_settings(), list[Staff]()
    for name in dict.fromkeys(named or [pool_name("")]):
        first = sum(len(staff.slots) for staff in staffs)
        slots = programs.slots(name, devices, most or 0, first=first, verbose=_verbose(ctx))
        if least > len(slots):
            raise UsageError(
                f"pool {name}: --min {least} is more than the {len(slots)} workers that there may be (--max)"
            )
        staffs.append(Staff(find(pools, name), slots))
    with _asked() as (stop, hurry):
        return run(
            Broker.connect(settings.broker_url),
            staffs,
            [programs.scheduler(sum(len(staff.slots) for staff in staffs), verbose=_verbose(ctx))] if scheduler else [],
            Behaviour(most=1, least=least, polling_s=poll, sync_s=poll, cooldown_s=cooldown, settling_s=settle),
            stop,
            hurry,
            patience_s=settings.grace_s + BEYOND_GRACE_S,
            alive_s=max(ALIVE_S, settings.lease_s),
            say=click.echo,
        )


def _settle(roots: Sequence[str], metrics_port: int | None, metrics_bind: str | None) -> None:
    """For the processes that are started, in place of what their environment says."""
    if roots:
        os.environ["LADING_ROOTS"] = ",".join(roots)
    if metrics_port is not None:
        os.environ["LADING_METRICS_PORT"] = str(metrics_port)
    if metrics_bind is not None:
        os.environ["LADING_METRICS_BIND"] = metrics_bind


def _verbose(ctx: click.Context) -> int:
    return ctx.parent.params.get("verbose", 0) if ctx.parent else 0


def _run(programs: Sequence[Program]) -> int:
    from ..config.settings import load
    from ..workers.supervise import supervise

    with _asked() as (stop, hurry):
        return supervise(programs, stop, hurry, patience_s=load().grace_s + BEYOND_GRACE_S)


@contextmanager
def _asked() -> Generator[tuple[threading.Event, threading.Event]]:
    """Set by the first and by the second SIGINT or SIGTERM."""
    stop, hurry = threading.Event(), threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        (hurry if stop.is_set() else stop).set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop, hurry
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


VERBS = (worker, up, autoscale, exporter)
