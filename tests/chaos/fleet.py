"""Worker processes and what a supervisor does for them: the dead are started again, and each death is counted."""

from __future__ import annotations

import collections
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.zygote import Child, Zygote

KILLED = -signal.SIGKILL
READY = "worker started"
DEADLINE_S = 240.0  # for anything: only a defect takes so long
LOOK_S = 0.02


@dataclasses.dataclass(slots=True)
class Worker:
    child: Child
    point: str  # where it is to die or freeze, "" nowhere
    killed: bool = False  # by the test, from outside

    def ready(self) -> bool:
        """Whether it has begun to pull, and takes a SIGTERM for what it is."""
        return READY in self.child.log()


class Fleet:
    """`size` workers of one pool, each started again when it has died. `points` arm those that are started, one after the other."""

    def __init__(self, zygote: Zygote, environment: dict[str, str], size: int, hooks: dict[str, Any]) -> None:
        self._zygote, self._environment, self._hooks = zygote, environment, hooks
        self.size = size
        self.workers: list[Worker] = []
        self.points: collections.deque[str] = collections.deque()
        self.deaths: collections.Counter[str] = collections.Counter()  # by point; "" is a kill from outside or a hook's
        self.logs: list[Path] = []
        self.endings = {KILLED}  # exit codes of workers that nobody told to end

    def arm(self, points: Iterable[str]) -> None:
        """Workers that are started from now on get these, one each."""
        self.points.extend(points)

    def start(self, point: str = "") -> Worker:
        child = self._zygote.worker(failpoint=point, hooks=self._hooks, **self._environment)
        self.logs.append(child.result.with_suffix(".log"))
        worker = Worker(child, point)
        self.workers.append(worker)
        return worker

    def tend(self) -> None:
        """See who died, and start others in their place."""
        for worker in list(self.workers):
            self._reap(worker)
        while len(self.workers) < self.size:
            self.start(self.points.popleft() if self.points else "")

    def alive(self) -> list[Worker]:
        """Those that the test did not kill."""
        return [worker for worker in self.workers if not worker.killed]

    def _reap(self, worker: Worker) -> bool:
        """Whether it has died; then it is counted."""
        code = worker.child.poll()
        if code is None:
            return False
        self.bury(worker)
        assert code in self.endings, f"a worker ended by itself with {code}:\n{worker.child.log()}"
        return True

    def kill(self, worker: Worker) -> None:
        """SIGKILL from outside; the next `tend` starts another."""
        worker.killed = True
        os.kill(worker.child.pid, signal.SIGKILL)

    def bury(self, worker: Worker) -> None:
        """Count one that was found dead, and was waited for."""
        self.workers.remove(worker)
        self.deaths["" if worker.killed else worker.point.partition("=")[0]] += 1

    def retire(self, worker: Worker) -> str:
        """SIGTERM: it must end with 0. What it said."""
        until(worker.ready, worker.child.log)
        worker.child.terminate()
        code = worker.child.wait()
        assert code == 0, worker.child.log()
        self.workers.remove(worker)
        return worker.child.log()

    def stop(self) -> None:
        """All of them, in good order."""
        for worker in list(self.workers):
            until(lambda worker=worker: self._reap(worker) or (worker.ready() and not worker.killed), worker.child.log)
        for worker in self.workers:
            worker.child.terminate()
        for worker in list(self.workers):
            code = worker.child.wait()
            died = code in self.endings and (worker.point or code != KILLED)
            assert code == 0 or died, f"{code}: {worker.child.log()}"
            if died:
                self.bury(worker)
            else:
                self.workers.remove(worker)

    def abandon(self) -> None:
        """After a failure: leave nobody behind."""
        while self.workers:
            self.workers.pop().child.kill()

    def said(self) -> str:
        """The logs of all that ever were, for a test that failed."""
        return "\n".join(f"== {log.name}\n{log.read_text()}" for log in self.logs)


def until(condition: Callable[[], Any], what: Callable[[], str], each: Callable[[], None] = lambda: None) -> None:
    """Return once `condition` holds; `what` says how things stand when it never does."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what()
        each()
        time.sleep(LOOK_S)
