"""workers/supervise.py on real processes: those that do not end are killed, and none outlives the supervisor."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lading.workers.supervise import Program, supervise
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
