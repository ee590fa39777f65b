"""Ctrl-C: the first asks for an orderly stop, the second is one at once. SIGTERM, a container's stop, is the first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

ASKED = b"\nlading: finishing the shard in flight; again to stop at once; resume with the same command\n"
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it, and leaving at once skips the bar's own clean-up


@contextmanager
def orderly_stop(asked: bytes = ASKED) -> Generator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets, which says `asked`. The second leaves the process with 130 (SIGTERM: 143).

    Leaving means leaving: threads may be inside a kernel for seconds, and nothing needs to be tidied up, since what
    is not published does not count.
    """
    stop = threading.Event()

    def ask(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            if os.isatty(2):
                os.write(2, SHOW_CURSOR)
            os._exit(128 + signum)
        stop.set()
        os.write(2, asked)  # a handler may not touch buffered streams: they could be in the middle of a write

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
