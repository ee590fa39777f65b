"""Named places where a crash test may kill or freeze this process. Inert unless LADING_FAILPOINT is set.

LADING_FAILPOINT is `NAME=kill` or `NAME=stop`, optionally `NAME=kill@3` for the third time the place is
passed. `kill` is SIGKILL (nothing is flushed, no handler runs), `stop` is SIGSTOP (thawed by SIGCONT).
"""

from __future__ import annotations

import itertools
import os
import signal
import threading

# Every place of the way into an output where the order of steps matters; crash tests die at each, for each sink.
COMMIT_POINTS = (
    "plan.written",
    "register.before-commit",
    "register.committed",  # the job is in the table, its folder does not know yet
    "register.recorded",
    "stage.written",
    "rejects.written",
    "publish.before",
    "publish.linked",
    "fold.read",
    "fold.before-commit",
    "fold.committed",
    "close.before",
    "close.written",
    "unregister.committed",
)

# Places of a worker's way with what it took from a queue.
QUEUE_POINTS = (
    "shards.leased",
    "strike.noted",
    "shard.published",  # its message is not acknowledged
    "shard.acknowledged",
    "requests.leased",
    "answer.stored",
)

# Places of a model's way onto the device and off it.
RESIDENCY_POINTS = (
    "model.coming",
    "model.came",  # nobody knows yet
    "model.leaving",
    "model.left",
)

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_passed = itertools.count(1)


def failpoint(name: str) -> None:
    """Die or freeze here if LADING_FAILPOINT names this place; else do nothing."""
    wanted = os.environ.get("LADING_FAILPOINT")
    if not wanted or not wanted.startswith(name + "="):
        return
    action, _, count = wanted[len(name) + 1 :].partition("@")
    if next(_passed) == int(count or 1):
        # To this very thread: a SIGSTOP to the process is taken by any one, and this one would run on for a while.
        signal.pthread_kill(threading.get_ident(), _SIGNALS[action])
