"""What stands in a queue: a pointer to a shard, or a whole request, in Celery's message protocol 2. Pure.

Written as kombu's Redis transport writes it, so that plain Celery producers and workers and ours understand each other.
The format is described for other languages in docs/message-format.md and docs/schemas.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

from ..config.errors import BadMessage
from .bodies import (
    INPUT_BYTES,
    INPUTS,
    REQUEST,
    SHARD,
    VERSION,
    Request,
    RequestOptions,
    ShardPointer,
    request,
    shard,
    show,
)

__all__ = [
    "INPUTS",
    "INPUT_BYTES",
    "TASK_REQUEST",
    "TASK_SHARD",
    "BadMessage",
    "Message",
    "Request",
    "RequestOptions",
    "ShardPointer",
    "decode",
    "request_message",
    "shard_message",
]

TASK_SHARD = "lading.shard"
TASK_REQUEST = "lading.request"
MESSAGE_BYTES = 1 << 20  # 64 KiB of inputs take this much when every character is escaped and all of it is base64
_NO_WORKFLOW = ("callbacks", "errbacks", "chain", "chord")
# By task: the arguments in the documented order, and what checks them.
_TASKS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], ShardPointer | Request]]] = {
    TASK_SHARD: (SHARD, shard),
    TASK_REQUEST: (REQUEST, request),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    id: str  # Celery's task id: the result is stored under it
    sent: float  # Unix time, 0.0 if the producer did not say
    expires: float  # Unix time after which nobody wants the answer, 0.0 for never
    body: ShardPointer | Request


def shard_message(pointer: ShardPointer, *, now: float) -> bytes:
    """The raw message for one shard, whose id says which."""
    id = f"{pointer.job}/{pointer.shard}.{pointer.generation}"
    return _envelope(TASK_SHARD, id, f"{id}@{now!r}", pointer.to_dict(), now, 0.0)


def request_message(asked: Request, *, id: str, now: float, expires: float = 0.0) -> bytes:
    """The raw message for one request. `id` is a fresh task id; `expires` the Unix time from which it may be dropped.

    Nothing is checked but that texts are UTF-8 (UnicodeEncodeError): the client has told the user what is wrong, and
    the worker does not trust it.
    """
    return _envelope(TASK_REQUEST, id, id, asked.to_dict(), now, expires)


def _envelope(task: str, id: str, tag: str, kwargs: dict[str, Any], now: float, expires: float) -> bytes:
    until = datetime.datetime.fromtimestamp(expires, datetime.UTC).isoformat() if expires else None
    body = json.dumps([[], kwargs, dict.fromkeys(_NO_WORKFLOW)], ensure_ascii=False, allow_nan=False).encode()
    headers = {"lang": "py", "task": task, "id": id, "root_id": id, "expires": until, "lading_sent": now}
    properties = {
        "correlation_id": id,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": ""},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": tag,  # kombu's name for its lease: no two messages may share one
    }
    whole = {
        "body": base64.b64encode(body).decode("ascii"),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    return json.dumps(whole).encode("ascii")


# -- decoding: as strict as the schemas, in a few microseconds, and no error but BadMessage


def decode(raw: bytes) -> Message:
    """The message, every field checked. Raises BadMessage saying what is wrong, and never another error."""
    if len(raw) > MESSAGE_BYTES:
        raise BadMessage(f"the message has {len(raw):,} bytes, the limit is {MESSAGE_BYTES:,}")
    whole = _parsed(raw, "the message")
    if not isinstance(whole, dict):
        raise BadMessage("the message is not a JSON object")
    headers, properties = whole.get("headers"), whole.get("properties")
    task = headers.get("task") if isinstance(headers, dict) else None
    if not isinstance(headers, dict) or not isinstance(properties, dict) or not isinstance(task, str):
        raise BadMessage("not Celery's message protocol 2: there is no task name in the headers")
    id = headers.get("id")
    if not isinstance(id, str) or not 0 < len(id) <= 255 or not id.isascii() or not id.isprintable():
        raise BadMessage(f"headers.id: expected 1 to 255 printable ASCII characters, found {show(id)}")
    try:
        if task not in _TASKS:
            raise BadMessage(f"unknown task {show(task)}; known: {', '.join(_TASKS)}")
        names, check = _TASKS[task]
        _check_delivery(headers, whole)
        body = check(_arguments(_body(whole.get("body"), properties.get("body_encoding")), names))
        return Message(id, _sent(headers.get("lading_sent")), _expires(headers.get("expires")), body)
    except BadMessage as bad:
        bad.id = id
        raise


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_no_constant)


def _parsed(raw: bytes | str, what: str) -> Any:
    try:
        return _JSON.decode(raw if isinstance(raw, str) else raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of too many digits, nested too deep
        raise BadMessage(f"{what} is not JSON: {str(error)[:200]}") from None


def _check_delivery(headers: dict[str, Any], whole: dict[str, Any]) -> None:
    kind, charset = whole.get("content-type"), whole.get("content-encoding")
    if kind != "application/json":
        raise BadMessage(f"content-type {show(kind)} is not read, only application/json")
    if charset not in ("utf-8", "us-ascii", None):
        raise BadMessage(f"content-encoding {show(charset)} is not read, only utf-8")
    if headers.get("compression"):
        raise BadMessage("the body is compressed, which is not read")
    if headers.get("eta") is not None:
        raise BadMessage("headers.eta: work cannot be put off (countdown, eta); send the message when it is due")


def _body(body: object, encoding: object) -> Any:
    if not isinstance(body, str):
        raise BadMessage(f"body: expected text, found {show(body)}")
    if encoding == "base64":
        try:
            return _parsed(binascii.a2b_base64(body), "the body")
        except ValueError as error:
            raise BadMessage(f"the body is not base64: {error}") from None
    if encoding:
        raise BadMessage(f"properties.body_encoding {show(encoding)} is not read, only base64 or none")
    return _parsed(body, "the body")


def _arguments(body: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Keyword arguments of the call; positional ones get the names that the documented order gives them."""
    match body:
        case [list() as args, dict() as kwargs, dict() as embed]:
            pass
        case [list() as args, dict() as kwargs, None]:
            embed: dict[str, Any] = {}
        case _:
            raise BadMessage("the body is not [args, kwargs, embed], as Celery's message protocol 2 has it")
    for name in _NO_WORKFLOW:
        if embed.get(name):
            raise BadMessage(f"{name} are not run by Lading's workers: await the result and go on from there")
    if args:
        if len(args) > len(names):
            raise BadMessage(f"{len(args)} positional arguments, the task takes {len(names)}")
        if twice := [name for name in names[: len(args)] if name in kwargs]:
            raise BadMessage(f"{twice[0]} is given twice, by position and by name")
        kwargs = dict(zip(names, args, strict=False)) | kwargs
    version = kwargs.get("version")
    if version.__class__ is not int or version != VERSION:  # to Python, true is 1
        raise BadMessage(f"message version {show(version)} is not {VERSION}, the one this release reads")
    return kwargs


def _sent(value: object) -> float:
    """A time for people and gauges: a producer that writes nonsense has not said when it sent."""
    return float(value) if isinstance(value, int | float) and 1 < value < 1e11 else 0.0


def _expires(value: object) -> float:
    """Celery's `expires` as Unix time; it is UTC where it names no zone."""
    if value is None:
        return 0.0
    try:
        when = datetime.datetime.fromisoformat(value)  # pyright: ignore[reportArgumentType]
        seconds = (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        raise BadMessage(f"headers.expires: expected an ISO 8601 time, found {show(value)}") from None
    return max(seconds, math.ulp(0.0))  # 0.0 would mean never
