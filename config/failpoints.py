"""Named places where a crash test may kill or freeze this process. Inert unless LADING_FAILPOINT is set.

LADING_FAILPOINT is `NAME=kill` or `NAME=stop`, optionally `NAME=kill@3` for the third time the place is
passed. `kill` is SIGKILL (nothing is flushed, no handler runs), `stop` is SIGSTOP (thawed by SIGCONT).
"""

from __future__ import annotations

import itertools
import os
import signal

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_passed = itertools.count(1)


def failpoint(name: str) -> None:
    """Die or freeze here if LADING_FAILPOINT names this place; else do nothing."""
    wanted = os.environ.get("LADING_FAILPOINT")
    if not wanted or not wanted.startswith(name + "="):
        return
    action, _, count = wanted[len(name) + 1 :].partition("@")
    if next(_passed) == int(count or 1):
        os.kill(os.getpid(), _SIGNALS[action])
