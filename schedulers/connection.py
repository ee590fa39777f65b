"""The way to Redis: which URLs are taken, TLS that is always verified, timeouts, and no silent repeats."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from ..config.errors import UsageError, nearest
from . import scripts
from .outages import translated
from .queues import Queue, sending

CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = (
    15.0  # below the default lease: a heartbeat on a dead connection gets a second try. Queue.wait is shorter
)
ALIVE_S = 60.0  # a worker that said nothing for so long is not counted
FORGOTTEN_S = 86_400.0  # nor remembered
FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
VERIFIED = ("required", "cert_required")


class Broker:
    """A Redis server and the queues in it. Threads may share one; a forked child makes its connections anew.

    `url` is redacted. `client` is for the commands of others (results); its errors are theirs to translate.
    """

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client, self.url = client, url

    @classmethod
    def connect(cls, url: str, *, timeout_s: float = 0.0) -> Broker:
        """No connection is made before the first command. Raises UsageError for a URL that names no Redis, or unverified TLS.

        `timeout_s`: for each of connecting and a reply, where the usual ones are too long.
        """
        given = arguments(url)
        if timeout_s:
            given |= {"socket_connect_timeout": timeout_s, "socket_timeout": timeout_s}
        return cls(redis.Redis(**given, retry=Retry(NoBackoff(), 0)), redact(url))

    @staticmethod
    def connect_async(url: str) -> AsyncBroker:
        """The same for asyncio."""
        return AsyncBroker(redis.asyncio.Redis(**arguments(url), retry=AsyncRetry(NoBackoff(), 0)), redact(url))

    def check(self) -> None:
        """Raises BrokerError unless the server answers and takes this user."""
        with translated(self.url):
            self.client.ping()

    def queue(self, name: str) -> Queue:
        """The queue in the list `name`; costs nothing, need not exist."""
        return Queue(self, name)

    def run(self, script: str, keys: Sequence[str], *values: str | bytes | float) -> Any:
        """Run a script in one step. Sent whole each time: a restarted or flushed server knows no scripts by their hash."""
        with translated(self.url):
            return cast(Any, self.client).eval(script, len(keys), *keys, *values)

    def alive(self, pool: str, worker: str) -> None:
        """Note that a worker lives."""
        self.run(scripts.ALIVE, [workers_key(pool)], worker, FORGOTTEN_S)

    def gone(self, pool: str, worker: str) -> None:
        """Note that a worker has stopped in good order."""
        with translated(self.url):
            self.client.zrem(workers_key(pool), worker)
            self.client.hdel(reports_key(pool), worker)

    def workers(self, pool: str) -> int:
        """How many workers have lately said that they live."""
        return self.run(scripts.WORKERS, [workers_key(pool)], ALIVE_S)

    def living(self, pool: str, within_s: float = ALIVE_S) -> set[str]:
        """The names of those that said so within these seconds."""
        return {name.decode() for name in self.run(scripts.LIVING, [workers_key(pool)], within_s)}

    def publish_report(self, pool: str, worker: str, report: dict[str, Any], within_s: float = ALIVE_S) -> None:
        """Let others read what a living worker says of itself; reports of workers that were not heard of for `within_s` go."""
        keys = [workers_key(pool), reports_key(pool)]
        self.run(scripts.REPORT, keys, worker, json.dumps(report), within_s, round(FORGOTTEN_S))

    def reports(self, pool: str, within_s: float = ALIVE_S) -> dict[str, dict[str, Any]]:
        """By name, what the workers of a pool that lately said that they live last said of themselves (schedulers/reports.py)."""
        said: list[bytes] = self.run(scripts.REPORTS, [workers_key(pool), reports_key(pool)], within_s)
        found = {name.decode(): _object(report) for name, report in zip(said[::2], said[1::2], strict=True)}
        return {name: report for name, report in found.items() if report is not None}

    def turn(self, name: str, seconds: float) -> bool:
        """Whether it is the caller's turn at something that one process at a time should do, for so long. Saves work, promises nothing."""
        with translated(self.url):
            return bool(self.client.set(name, 1, nx=True, px=max(round(seconds * 1000), 1)))

    def close(self) -> None:
        self.client.close()

    def __repr__(self) -> str:
        return f"Broker({self.url!r})"


class AsyncBroker:
    """What a client needs of a Broker, for asyncio: to send, and the client for results."""

    def __init__(self, client: redis.asyncio.Redis, url: str) -> None:
        self.client, self.url = client, url

    async def send(self, name: str, raws: Sequence[bytes], *, limit: int = 0) -> None:
        """As Queue.send to the list `name`."""
        command, check = sending(name, raws, limit)
        with translated(self.url):
            check(await cast(Any, self.client).execute_command(*command))

    async def close(self) -> None:
        await self.client.aclose()

    def __repr__(self) -> str:
        return f"AsyncBroker({self.url!r})"


def workers_key(pool: str) -> str:
    return f"lading.workers.{pool}"


def reports_key(pool: str) -> str:
    return f"lading.residents.{pool}"


def _object(raw: bytes) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        found: object = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def redact(url: str) -> str:
    """The URL without user and password, also where these are badly quoted: all before the last @ may belong to them."""
    scheme = re.match(r"([a-z]+://)?", url)
    start = scheme.end() if scheme else 0
    _, at, host = url[start:].rpartition("@")
    host = re.sub(r"([?&][^=&]*(?:pass|user)[^=&]*=)[^&]*", r"\1***", host)
    return url[:start] + ("***@" if at else "") + host


def for_celery(url: str) -> str:
    """The URL as Celery wants it, whose results ask for `ssl_cert_reqs` in so many words."""
    arguments(url)
    if not url.startswith("rediss://") or "ssl_cert_reqs=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"


def arguments(url: str) -> dict[str, Any]:
    """The URL as arguments of redis-py's clients. Raises UsageError: not a Redis URL, or TLS that would not be verified."""

    def refused(why: str) -> UsageError:
        return UsageError(f"LADING_BROKER_URL: {redact(url)}: {why}")

    if not url.startswith(("redis://", "rediss://")):
        raise refused("must begin with redis:// or rediss://")
    try:
        parts = urlsplit(url)
        port, options = parts.port or 6379, dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        parts, port, options = None, 0, {}
    # The parser's own words quote what it took for the port, which may be half a password: they are not passed on.
    if parts is None or not parts.hostname or parts.fragment or not re.fullmatch(r"/?\d*", parts.path):
        raise refused("expected HOST:PORT/DB; in a password, write / as %2F, # as %23, ? as %3F, @ as %40")
    found: dict[str, Any] = {"host": parts.hostname, "port": port, "db": int(parts.path.strip("/") or 0)}
    found |= {
        "username": parts.username and unquote(parts.username),
        "password": parts.password and unquote(parts.password),
    }
    found |= {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": REPLY_TIMEOUT_S, "socket_keepalive": True}
    # Nothing is asked that an ACL must allow. The protocol's greeting is needed: without a first exchange redis-py takes
    # what TLS 1.3 sends after its handshake for a stray reply.
    found |= {"protocol": 3, "driver_info": None, "maint_notifications_config": MaintNotificationsConfig(enabled=False)}
    return found | _tls(parts.scheme, options, refused)


def _tls(scheme: str, options: dict[str, str], refused: Any) -> dict[str, Any]:
    for name, value in options.items():
        if name not in (*FILES, "ssl_cert_reqs"):
            raise refused(f"unknown parameter {name!r}{nearest(name, (*FILES, 'ssl_cert_reqs'))}")
        if scheme != "rediss":
            raise refused(f"{name} is for TLS, which begins with rediss://")
        if name == "ssl_cert_reqs" and value.lower() not in VERIFIED:
            raise refused(
                f"ssl_cert_reqs={value} would talk to any server unverified; leave it out, and name a private CA with ssl_ca_certs=FILE"
            )
        if name in FILES and not os.path.isfile(value):
            raise refused(f"{name}: no file {value}")
    if scheme != "rediss":
        return {}
    files = {name: options[name] for name in FILES if name in options}
    return {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True, **files}
