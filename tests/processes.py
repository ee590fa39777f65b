"""The commands as users start them: real processes, whose output is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LADING = (sys.executable, "-P", "-m", "lading.cli")
CELERY = (sys.executable, "-P", "-m", "celery", "-A", "lading.workers.app", "worker")
DEADLINE_S = 120.0  # for anything: only a defect takes so long
LOOK_S = 0.02


class Process:
    """One command."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                arguments, env={**os.environ, **environment}, stdout=output, stderr=output, start_new_session=True
            )
        self.pid = self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        try:
            return self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.said()}") from None

    def running(self) -> bool:
        return self._process.poll() is None

    def children(self) -> list[int]:
        """The processes that it has started."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, claim: Callable[[], object]) -> None:
        """Wait for something that will be while it runs."""
        deadline = time.monotonic() + DEADLINE_S
        while not claim():
            assert self.running(), f"ended with {self._process.returncode}:\n{self.said()}"
            assert time.monotonic() < deadline, self.said()
            time.sleep(LOOK_S)

    def close(self) -> None:
        """Leave nothing behind: after SIGTERM if that is enough."""
        children = self.children() if self.running() else []
        self._process.kill()
        self._process.wait()
        for pid in children:  # they have groups of their own
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def until(claim: Callable[[], object]) -> None:
    """Wait for something that will be."""
    deadline = time.monotonic() + DEADLINE_S
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(LOOK_S)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
