"""Keeps processes running beside each other: restarts what dies, stops all of them together. Loads nothing heavy.

A process that a row of some document kills must come back for the row to be found (pipelines/strikes.py).
"""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.events import tell

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # before a restart, doubled each time
SETTLED_S = 60.0  # a process that lived so long has begun well: the next pause is the first again
KILLED_S = 10.0  # for a killed process to be gone
REFUSED = 2  # exit code of a process that will not start however often it is tried


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """What to run."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class _Child:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    again_at: float = 0.0
    over: bool = False


def supervise(
    programs: Sequence[Program], stop: threading.Event, hurry: threading.Event, *, patience_s: float = 60.0
) -> int:
    """Run them until `stop` is set or all have ended; the exit code. `hurry` tells them a second time to stop.

    One that refuses to start (exit code 2) ends them all. One that was told to stop and has not ended after
    `patience_s` is killed. If this process dies, they are told to stop.
    """
    children = [_Child(one) for one in programs]
    refused = hurried = False
    while not stop.is_set():
        for child in children:
            _look_after(child)
        refused = any(child.over and child.process and child.process.returncode == REFUSED for child in children)
        if refused or all(child.over for child in children):
            break
        stop.wait(0.1)
    _tell(children)
    until = time.monotonic() + patience_s
    while any(child.process and child.process.poll() is None for child in children):
        if time.monotonic() > until:
            _kill(children, patience_s)
            break
        if hurry.is_set() and not hurried:
            hurried = True
            _tell(children)
        time.sleep(0.05)
    if refused:
        return REFUSED
    return next((code for child in children if (code := _code(child))), 0)


def _code(child: _Child) -> int:
    """What came of it; one that our SIGTERM met before it had begun has ended well."""
    code = child.process.returncode if child.process else 0
    if code is None:
        return int(signal.SIGKILL)
    return 0 if code == -signal.SIGTERM else abs(code)


def _look_after(child: _Child) -> None:
    """Start it, see whether it still runs, start it again."""
    if child.over or (child.process and child.process.poll() is None):
        return
    if child.process is not None and not child.again_at:
        code = child.process.returncode
        if code in (0, REFUSED):
            child.over = True
            return
        lived = time.monotonic() - child.began
        child.pause_s = FIRST_PAUSE_S if lived > SETTLED_S else child.pause_s
        child.again_at = time.monotonic() + child.pause_s
        died = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        tell(log, "process restarts", program=child.program.name, how=died, seconds=child.pause_s)
        child.pause_s = min(2 * child.pause_s, LONGEST_PAUSE_S)
    if child.process is None or time.monotonic() >= child.again_at:
        environment = {**os.environ, **child.program.environment}
        # A group of its own: Ctrl-C on the terminal reaches it through us alone, once.
        child.process = subprocess.Popen(
            child.program.arguments, env=environment, start_new_session=True, preexec_fn=_end_with_parent
        )
        child.began, child.again_at = time.monotonic(), 0.0
        tell(log, "process started", program=child.program.name, pid=child.process.pid)


def _tell(children: Sequence[_Child]) -> None:
    for child in children:
        if child.process and child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)


def _kill(children: Sequence[_Child], patience_s: float) -> None:
    for child in children:
        if child.process and child.process.poll() is None:
            tell(log, "process killed", program=child.program.name, seconds=patience_s)
            child.process.kill()
    until = time.monotonic() + KILLED_S
    for process in (child.process for child in children if child.process):
        try:
            process.wait(max(until - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:  # in the kernel, in a driver say
            tell(log, "process unkillable", pid=process.pid)


def _end_with_parent() -> None:
    """In the child: SIGTERM to it when its parent dies, where the system can (Linux)."""
    if _PRCTL is not None:
        _PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


PR_SET_PDEATHSIG = 1  # prctl(2)
_PRCTL: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # found before any fork
