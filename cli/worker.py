"""The verbs that keep running: a pool's workers, and on one machine all that is needed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

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


@click.command()
@opt.options(DEVICES, ROOTS)
@click.pass_context
def worker(ctx: click.Context, pool: str, devices: str, allow: Sequence[str]) -> int:
    """Work for a pool until told to stop.

    Takes shards and requests from the broker at LADING_BROKER_URL. Ctrl-C or SIGTERM: nothing more is taken, what fits into the grace is
    finished, the rest given back; a second one cuts that short.
    """
    from ..workers.programs import workers

    _allow(allow)
    return _run(workers(pool, devices, verbose=_verbose(ctx)))


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
    from ..workers.programs import scheduler
    from ..workers.programs import workers as programs

    _allow(allow)
    return _run([scheduler(), *programs(pool, devices, processes=workers, verbose=_verbose(ctx))])


def _allow(roots: Sequence[str]) -> None:
    if roots:
        os.environ["LADING_ROOTS"] = ",".join(roots)


def _verbose(ctx: click.Context) -> bool:
    return bool(ctx.parent and ctx.parent.params.get("verbose"))


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


VERBS = (worker, up)
