"""Standard output and standard error: no letter stops what is printed, and a reader that leaves ends the command quietly."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Generator
from contextlib import contextmanager

READER_LEFT = 141  # 128 + SIGPIPE, as shells count, and what `yes | head` gives


class ReaderLeft(Exception):
    """Whoever read what is printed has seen enough (`lading rejects OUTPUT | head`)."""


def print_any_letter() -> None:
    """Show letters that the terminal's encoding lacks as `\\u2026` from now on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def noticing_readers() -> Generator[None]:
    """Raise ReaderLeft where a pipe that is printed to broke.

    click ends a command silently at any broken pipe, a store's connection included: none may get there as it is.
    """
    try:
        yield
    except BrokenPipeError as error:
        broken = _broken()
        if not broken:
            raise RuntimeError(f"a connection broke: {error}") from error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in broken:  # or the interpreter complains when it flushes what nobody will read
            os.dup2(nowhere, descriptor)
        raise ReaderLeft from error


def _broken() -> list[int]:
    """Those of standard output and standard error that are pipes without a reader."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return [descriptor for descriptor, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
