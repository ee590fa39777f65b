"""workers/supervise.py on real processes: those that do not end are killed, and none outlives the supervisor."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lading.workers.supervise import Crew, Program, supervise
from tests.processes import until

STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""
POLITE = """
import os, pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1] + ".told").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(600)
"""
SUPERVISOR = """
import sys, threading
from lading.workers.supervise import Program, supervise
supervise([Program("child", [sys.executable, "-c", *sys.argv[1:]])], threading.Event(), threading.Event())
"""


BRIEF = """
import pathlib, sys
with open(sys.argv[1], "a") as file:
    file.write("x")
"""


def python(name: str, source: str, *arguments: str) -> Program:
    return Program(name, [sys.executable, "-c", source, *arguments])


def test_a_child_that_does_not_end_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ready, stop, codes = tmp_path / "ready", threading.Event(), list[int]()
    programs = [python("stubborn", STUBBORN, str(ready))]
    supervisor = threading.Thread(
        target=lambda: codes.append(supervise(programs, stop, threading.Event(), patience_s=0.5))
    )
    with caplog.at_level(logging.ERROR):
        supervisor.start()
        until(ready.exists)
        stop.set()
        supervisor.join()
    assert codes == [signal.SIGKILL]
    assert "process killed: program=stubborn" in caplog.text


def test_one_that_is_wanted_no_more_ends_in_good_order(tmp_path: Path) -> None:
    """It is told, the others are left alone; wanted again it is started anew, once it has ended."""
    crew = Crew(60.0)
    first, second = (python(name, POLITE, str(tmp_path / name)) for name in ("first", "second"))

    def look(claim: Callable[[], object]) -> None:
        until(lambda: (crew.look(), claim())[1])

    try:
        crew.want([first, second])
        look(
            lambda: all(
                (tmp_path / name).exists() and crew.pid(one) for name, one in (("first", first), ("second", second))
            )
        )
        before, other = crew.pid(first), crew.pid(second)
        crew.want([second])
        look(lambda: crew.pid(first) is None)
        assert (tmp_path / "first.told").exists()
        crew.want([first, second])
        look(lambda: crew.pid(first))
        assert crew.pid(first) != before
        assert crew.pid(second) == other
        assert not crew.over
    finally:
        assert crew.end(threading.Event()) == 0
    assert (tmp_path / "second.told").exists()


def test_what_is_wanted_no_more_and_does_not_end_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After the patience, with the others running on."""
    crew, ready = Crew(0.2), tmp_path / "ready"
    crew.want([python("stubborn", STUBBORN, str(ready))])
    until(lambda: (crew.look(), ready.exists())[1])
    crew.want([])
    with caplog.at_level(logging.ERROR):
        until(lambda: (crew.look(), "process killed: program=stubborn" in caplog.text)[1])
    assert crew.end(threading.Event()) in (0, signal.SIGKILL)


@pytest.mark.parametrize("stays", [False, True])
def test_exit_code_0_is_the_end(stays: bool, tmp_path: Path) -> None:
    """Unless the program is to stay."""
    runs, crew = tmp_path / "runs", Crew(60.0)
    crew.want([dataclasses.replace(python("brief", BRIEF, str(runs)), stays=stays)])
    until(lambda: (crew.look(), crew.over or (runs.exists() and len(runs.read_text()) > 1))[1])
    assert crew.over != stays
    assert crew.end(threading.Event()) == 0
    assert (len(runs.read_text()) > 1) == stays


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_children_are_told_when_the_supervisor_dies(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, POLITE, str(ready)])
    until(lambda: ready.exists() and ready.read_text())
    try:
        supervisor.kill()
        supervisor.wait()
        until(Path(f"{ready}.told").exists)
    finally:
        if not Path(f"{ready}.told").exists():
            os.kill(int(ready.read_text()), signal.SIGKILL)
