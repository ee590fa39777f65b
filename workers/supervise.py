"""Keeps processes running beside each other: restarts what dies, stops those that are wanted no more, or all of them. Loads nothing heavy.

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
LOOK_S = 0.1  # between two looks whether one has died
REFUSED = 2  # exit code of a process that will not start however often it is tried


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """What to run."""

    name: str  # no two that run beside each other have the same
    arguments: Sequence[str]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stays: bool = False  # started again also when it has ended with 0 by itself


@dataclasses.dataclass(slots=True)
class _Child:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    again_at: float = 0.0
    over: bool = False
    told_at: float = 0.0  # when it was told to end; 0: it was not
    given_up: bool = False  # killed: no more can be done

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def late(self, patience_s: float) -> bool:
        return not self.given_up and time.monotonic() - self.told_at > patience_s

    def tell(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def tell_once(self) -> None:
        if not self.told_at:
            self.told_at = time.monotonic()
            self.tell()


def supervise(
    programs: Sequence[Program], stop: threading.Event, hurry: threading.Event, *, patience_s: float = 60.0
) -> int:
    """Run them until `stop` is set or all have ended; the exit code. `hurry` tells them a second time to stop.

    One that refuses to start (exit code 2) ends them all; one that ends with 0 is not started again unless it `stays`. One that was told to stop and has
    not ended after `patience_s` is killed. If this process dies, they are told to stop.
    """
    crew = Crew(patience_s)
    crew.want(programs)
    while not stop.is_set():
        crew.look()
        if crew.refused or crew.over:
            break
        stop.wait(LOOK_S)
    return crew.end(hurry)


class Crew:
    """The processes of the programs that are wanted at the moment. Used by one thread, which must outlive them (prctl(2))."""

    def __init__(self, patience_s: float) -> None:
        """`patience_s`: for a process that was told to end."""
        self.refused = False  # one will not start however often it is tried
        self._patience_s = patience_s
        self._wanted: dict[str, Program] = {}
        self._children: dict[str, _Child] = {}

    @property
    def over(self) -> bool:
        """All have ended by themselves."""
        return all(child.over for child in self._children.values())

    def want(self, programs: Sequence[Program]) -> None:
        """From now on these. One that was told to end, and is wanted again before it has, is started anew when it has."""
        self._wanted = {program.name: program for program in programs}

    def look(self) -> None:
        """Start what should run and does not, tell what is not wanted to end, kill what was told so long ago."""
        for name, program in self._wanted.items():
            self._children.setdefault(name, _Child(program))
        for name, child in list(self._children.items()):
            if name not in self._wanted:
                child.tell_once()
            if not child.told_at:
                _look_after(child)
                self.refused |= child.over and child.process is not None and child.process.returncode == REFUSED
            elif not child.running:
                del self._children[name]
            elif child.late(self._patience_s):
                self._kill([child])

    def pid(self, program: Program) -> int | None:
        """The process that runs it, if one does."""
        child = self._children.get(program.name)
        return child.process.pid if child and child.process and child.running else None

    def end(self, hurry: threading.Event) -> int:
        """Tell all to end and wait until they have; the exit code."""
        children, hurried = list(self._children.values()), False
        for child in children:
            child.tell_once()
        while running := [child for child in children if child.running and not child.given_up]:
            self._kill([child for child in running if child.late(self._patience_s)])
            if hurry.is_set() and not hurried:
                hurried = True
                for child in running:
                    child.tell()
            time.sleep(LOOK_S / 2)
        if self.refused:
            return REFUSED
        return next((code for child in children if (code := _code(child))), 0)

    def _kill(self, children: Sequence[_Child]) -> None:
        until = time.monotonic() + KILLED_S
        for child in children:
            tell(log, "process killed", program=child.program.name, seconds=self._patience_s)
            assert child.process is not None
            child.process.kill()
        for child in children:
            assert child.process is not None
            child.given_up = True
            try:
                child.process.wait(max(until - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:  # in the kernel, in a driver say
                tell(log, "process unkillable", pid=child.process.pid)


def _code(child: _Child) -> int:
    """What came of it; one that our SIGTERM met before it had begun has ended well."""
    code = child.process.returncode if child.process else 0
    if code is None:
        return int(signal.SIGKILL)
    return 0 if code == -signal.SIGTERM else abs(code)


def _look_after(child: _Child) -> None:
    """Start it, see whether it still runs, start it again."""
    if child.over or child.running:
        return
    if child.process is not None and not child.again_at:
        code = child.process.returncode
        if code == REFUSED or (code == 0 and not child.program.stays):
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


def _end_with_parent() -> None:
    """In the child: SIGTERM to it when its parent dies, where the system can (Linux)."""
    if _PRCTL is not None:
        _PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


PR_SET_PDEATHSIG = 1  # prctl(2)
_PRCTL: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # found before any fork
