"""What the failure of a disk or a store is to a job: StopJob, in words that say what, where and what to do."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Generator
from pathlib import Path

from ..config.errors import LadingError, StopJob


@contextlib.contextmanager
def stopping(action: str, where: str | Path) -> Generator[None, None, None]:
    """Turn a failing disk or store into StopJob, which says what could not be done, where, and what to do."""
    try:
        yield
    except Exception as error:
        if not is_outside(error):
            raise
        # Lance reports the errno only in its text.
        full = getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error)
        remedy = "free space" if full else "put that right"
        if isinstance(error, PermissionError) and "://" in str(where):
            remedy = "see what the environment's credentials allow"
        raise StopJob(
            f"could not {action} {where}: {reason(error)}. Nothing half-written counts: {remedy} and run the same command again"
        ) from error


def is_outside(error: Exception) -> bool:
    """Whether a disk or a store is to blame, and not this code.

    The clients of stores have errors of their own (botocore's are no OSErrors); to list them would mean to know every client.
    """
    foreign = type(error).__module__ not in ("builtins", "pyarrow.lib")
    return isinstance(error, OSError) or (foreign and not isinstance(error, LadingError | ValueError))


def reason(error: Exception) -> str:
    """What a disk or a store says, in one line: without the place in Lance's source, or S3's answer but for what it means."""
    said = getattr(error, "strerror", None) or str(error)
    if answer := re.search("<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", said, re.DOTALL):
        said = f"{answer[1]}: {answer[2]}"
    return re.split(r",? /(?:home|rustc)/", said)[0].strip().partition("\n")[0].rstrip(".")
