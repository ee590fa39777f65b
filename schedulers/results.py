"""Results of requests, stored as Celery's Redis backend stores them: a plain AsyncResult reads them.

Under `celery-task-meta-<id>` for a while, and published once on the channel of that name, for who listens already.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from redis.client import Pipeline, Redis

KEY = "celery-task-meta-"
_DONE = ("SUCCESS", "FAILURE", "REVOKED")


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why a whole request has no result. `error` is the name of a class in config/errors.py."""

    error: str
    message: str


Result = bytes | Mapping[str, Any] | Failure  # bytes are a JSON object already


class NotAResult(ValueError):
    """What is stored under a result's key is none."""


def key(id: str) -> str:
    """Where the result of task `id` is stored, and the channel it is published on."""
    return KEY + id


def encode_result(id: str, result: Result, *, now: float) -> bytes:
    """What is stored and published for one task. Pure. `id` is one that `messages.decode` let pass: plain ASCII."""
    if isinstance(result, Failure):
        status, trace = b"FAILURE", json.dumps(f"{result.error}: {result.message}").encode("ascii")
        told = {"exc_type": result.error, "exc_message": [result.message], "exc_module": "lading.config.errors"}
        value = json.dumps(told).encode("ascii")
    else:
        status, trace = b"SUCCESS", b"null"
        value = result if isinstance(result, bytes) else json.dumps(result, allow_nan=False).encode("ascii")
    return b'{"status": "%s", "result": %s, "traceback": %s, "children": [], "date_done": "%s", "task_id": %s}' % (
        status,
        value,
        trace,
        datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat().encode("ascii"),
        json.dumps(id).encode("ascii"),
    )


# One script for many results: a tenth of the worker's cost of two commands for each, and each value is sent once. Its
# text goes along, so that a Redis that was restarted needs no second try. ARGV: seconds to keep, then a value per key.
_STORE = """
for place, key in ipairs(KEYS) do
  redis.call('SET', key, ARGV[place + 1], 'EX', ARGV[1])
  redis.call('PUBLISH', key, ARGV[place + 1])
end"""
_CALL_BYTES = 96 << 10  # larger calls are copied once more by the client, and keep others waiting


def add(pipeline: Pipeline, encoded: Sequence[tuple[str, bytes]], ttl_s: int) -> None:
    """The commands that store and publish encoded results, for a pipeline that has more to do."""
    ids: list[str] = []
    values: list[bytes] = []
    size = 0
    for id, value in encoded:
        if size + len(value) > _CALL_BYTES and ids:
            _call(pipeline, ids, values, ttl_s)
            ids, values, size = [], [], 0
        ids.append(id)
        values.append(value)
        size += len(value)
    if ids:
        _call(pipeline, ids, values, ttl_s)


def _call(pipeline: Pipeline, ids: list[str], values: list[bytes], ttl_s: int) -> None:
    pipeline.execute_command("EVAL", _STORE, len(ids), *(KEY + id for id in ids), ttl_s, *values)


def store(client: Redis, results: Iterable[tuple[str, Result]], ttl_s: int, *, now: float) -> None:
    """Store and publish the results of a batch in one round trip. Raises what redis raises; storing again is harmless.

    Acknowledge after this returned, not in the same pipeline: a Redis that is full refuses to store and still
    acknowledges.
    """
    with client.pipeline(transaction=False) as pipeline:
        add(pipeline, [(id, encode_result(id, result, now=now)) for id, result in results], ttl_s)
        pipeline.execute()


def decode_result(raw: bytes) -> dict[str, Any] | Failure | None:
    """The inverse of `encode_result`, for what any Celery worker stored too; None while it is not ready.

    Raises NotAResult.
    """
    try:
        meta = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise NotAResult(f"not JSON: {error}") from None
    status = meta.get("status") if isinstance(meta, dict) else None
    if status == "SUCCESS" and isinstance(meta.get("result"), dict):
        return meta["result"]
    if status == "FAILURE" or status == "REVOKED":
        return _failure(meta.get("result"), status)
    if status in ("PENDING", "RECEIVED", "STARTED", "RETRY"):
        return None
    _refuse(status)


def _failure(told: object, status: str) -> Failure:
    if not isinstance(told, dict):
        return Failure(status, str(told))
    message = told.get("exc_message", "")
    words = message if isinstance(message, list) else [message]
    return Failure(str(told.get("exc_type", status)), " ".join(map(str, words)))


def _refuse(status: object) -> NoReturn:
    raise NotAResult(f"status {status!r} with no JSON object as its result")
