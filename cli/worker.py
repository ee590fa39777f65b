"""The verbs that keep running: a pool's workers, and on one machine all that is needed; and a look at what workers hold."""

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
@click.pass_context
def worker(
    ctx: click.Context,
    pool: str,
    devices: str,
    allow: Sequence[str],
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

        if pool or devices or allow or metrics_port is not None or metrics_bind is not None:
            raise UsageError("options of a worker that is started go without `status`, its own behind it")
        return 0
    from ..workers.programs import workers

    _settle(allow, metrics_port, metrics_bind)
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


VERBS = (worker, up, exporter)
