"""The verbs that keep running: a pool's workers, and on one machine all that is needed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from ..config.errors import UsageError
from . import options as opt

if TYPE_CHECKING:
    from ..workers.supervise import Program

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


@click.command()
@opt.options(DEVICES, ROOTS)
@click.pass_context
def worker(ctx: click.Context, pool: str, devices: str, allow: Sequence[str]) -> int:
    """Work for a pool until told to stop.

    Takes shards and requests from the broker at LADING_BROKER_URL. Ctrl-C or SIGTERM: nothing more is taken, what fits into the grace is
    finished, the rest given back; a second one cuts that short.
    """
    return _run(_workers(pool, devices, allow, verbose=_verbose(ctx)))


@click.command()
@opt.options(DEVICES, ROOTS)
@click.option(
    "--workers",
    metavar="N",
    type=opt.COUNT,
    default=1,
    show_default=True,
    help="Processes, where the pool's device is a CPU.",
)
@click.pass_context
def up(ctx: click.Context, pool: str, devices: str, allow: Sequence[str], workers: int) -> int:
    """Run all that a single machine needs: workers and the scheduler, stopping together. The broker is yours."""
    from ..workers.supervise import Program

    scheduler = Program("scheduler", [sys.executable, "-P", "-m", "lading.cli", "scheduler"])
    return _run([scheduler, *_workers(pool, devices, allow, processes=workers, verbose=_verbose(ctx))])


def _verbose(ctx: click.Context) -> bool:
    return bool(ctx.parent and ctx.parent.params.get("verbose"))


def _workers(pool: str, devices: str, allow: Sequence[str], *, processes: int = 1, verbose: bool) -> list[Program]:
    """What to run, all that can be refused refused first."""
    from ..adapters import check_device
    from ..config.settings import load
    from ..schedulers import pools
    from ..schedulers.celery_settings import pool_name
    from ..schedulers.connection import Broker
    from ..workers.supervise import worker as program

    if allow:
        os.environ["LADING_ROOTS"] = ",".join(allow)
    kind = pools.find(pools.load(), pool_name(pool))
    Broker.connect(load().broker_url)  # its URL is looked at; that nobody answers yet is no reason not to wait
    named = _devices(devices, kind.device) * processes
    for device in set(named):
        if not device.startswith(kind.device):
            raise UsageError(f"device {device} is none for pool {kind.name}, whose device is {kind.device}")
        check_device(device)
    return [program(kind.name, number, device, verbose=verbose) for number, device in enumerate(named)]


def _devices(wanted: str, kind: str) -> list[str]:
    if wanted == "all" and kind == "cuda":
        from ..adapters.devices import count

        return [f"cuda:{number}" for number in range(count())] or [kind]
    return [kind] if wanted in ("", "all") else [one.strip() for one in wanted.split(",")]


def _run(programs: Sequence[Program]) -> int:
    from ..workers.supervise import supervise

    with _asked() as (stop, hurry):
        return supervise(programs, stop, hurry)


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


VERBS = (worker, up)
