"""What an error of Redis means: what the user is told of it, and whether waiting helps.

Commands are never repeated below this: a repeated `pull` whose first reply was lost would take twice.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Generator
from typing import TypeVar

import redis
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
)

from ..config.errors import BrokerError, QueueFull
from ..config.events import tell

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
# Refusals that pass: of a server that starts, fails over, has no memory or no disk, or runs something long. Of most
# redis-py makes a class and cuts the code off the text; a script of 6.2 wraps its own errors in text, code and all.
PASSING_TYPES = (redis.ConnectionError, redis.TimeoutError, OutOfMemoryError, ReadOnlyError, MasterDownError)
PASSING = ("OOM", "READONLY", "MASTERDOWN", "MISCONF", "NOREPLICAS", "BUSY ")
DENIED = ("NOPERM", "executing the script can't")  # inside a script

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def translated(url: str) -> Generator[None]:
    """Turns errors of Redis in the block into a BrokerError that names `url`, which is already redacted."""
    try:
        yield
    except redis.RedisError as error:
        raise explained(error, url) from error


def explained(error: redis.RedisError, url: str) -> BrokerError:
    """What the user is told: what failed, where, what to do."""
    text = " ".join(str(error).split()) or type(error).__name__
    where = f"the broker at {url}"
    if isinstance(error, OutOfMemoryError) or "OOM command" in text:
        return QueueFull(f"{where} has no memory left (maxmemory): wait for the workers, or give it more")
    if isinstance(error, AuthenticationError | AuthorizationError) or text.startswith(("WRONGPASS", "NOAUTH")):
        return BrokerError(f"{where} refuses this user: {text}; check user and password in LADING_BROKER_URL")
    if isinstance(error, NoPermissionError) or any(sign in text for sign in DENIED):
        return BrokerError(f"{where} does not let this user do that: {text}; deploy/redis has what each user needs")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return BrokerError(
            f"{where} cannot be verified: {text}; name its CA with ?ssl_ca_certs=FILE in LADING_BROKER_URL"
        )
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return BrokerError(f"cannot reach {where}: {text}; start it, or name another in LADING_BROKER_URL")
    return BrokerError(f"{where} refuses: {text}")


def passes(error: BaseException | None) -> bool:
    """Whether the same call may succeed later, with nothing changed on our side."""
    if isinstance(error, BrokerError):
        return passes(error.__cause__)
    if isinstance(error, AuthenticationError | AuthorizationError):
        return False
    if isinstance(error, PASSING_TYPES):
        return True
    return isinstance(error, redis.ResponseError) and any(sign in str(error) for sign in PASSING)


def patiently(call: Callable[[], Result], stopping: threading.Event) -> Result | None:
    """The result of `call`, repeated with growing pauses through an outage; None if `stopping` is set during one.

    A call that was repeated may have been done by its first try as well: an `ack` then counts 0. Logs once when the
    outage begins and once when it is over, for all threads together. Raises what does not pass.
    """
    wait_s = FIRST_WAIT_S
    while True:
        try:
            result = call()
        except (BrokerError, redis.RedisError) as error:
            if not passes(error):
                raise
            _outage.began(error)
        else:
            _outage.ended()
            return result
        if stopping.wait(wait_s * random.uniform(0.5, 1)):
            return None
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


class _Outage:
    """Whether this process has said that the broker is away."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None

    def began(self, error: Exception) -> None:
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                tell(_log, "broker away", why=error)

    def ended(self) -> None:
        if self._since is None:  # read without the lock: the usual case, after every call
            return
        with self._lock:
            since, self._since = self._since, None
        if since is not None:  # pyright: ignore[reportUnnecessaryComparison]  another thread may have been first
            tell(_log, "broker back", seconds=round(time.monotonic() - since, 1))


_outage = _Outage()
