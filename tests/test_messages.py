"""What may stand in a queue: our messages, those of any plain Celery producer, and everything else refused with its reason."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import threading
import time
from typing import Any

import celery
import kombu
import pytest
import redis
from celery.contrib.testing.worker import start_worker
from hypothesis import given
from hypothesis import strategies as st

from lading.config.columns import OUTPUTS
from lading.config.errors import BadMessage
from lading.schedulers.messages import (
    INPUT_BYTES,
    INPUTS,
    MESSAGE_BYTES,
    Message,
    Request,
    RequestOptions,
    ShardPointer,
    decode,
    request_message,
    shard_message,
)
from tests.redis_server import RedisServer

QUEUE = "lading.cpu.requests"
GOOD = {"version": 1, "verb": "encode", "model": "m", "inputs": ["a", "b"]}
SHARD = {"version": 1, "job": "j1", "shard": 0, "generation": 0, "recipe": "0" * 16}


def envelope(body: Any = None, *, headers: dict[str, Any] | None = None, **changed: Any) -> bytes:
    """A message whose body is `body`, or a call with the arguments `kwargs` in `changed`."""
    kwargs = changed.pop("kwargs", GOOD)
    body = [[], kwargs, {}] if body is None else body
    text = body if isinstance(body, str) else json.dumps(body)
    whole = {
        "body": base64.b64encode(text.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "lading.request", "id": "id-1"} | (headers or {}),
        "properties": {"body_encoding": "base64"},
    }
    return json.dumps(whole | changed).encode()


def refusal(raw: bytes) -> str:
    with pytest.raises(BadMessage) as caught:
        decode(raw)
    return str(caught.value)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
OPTIONS = st.builds(
    RequestOptions,
    revision=TEXTS,
    adapter=TEXTS,
    max_tokens=st.integers(0, 8192),
    precision=st.sampled_from(["float32", "bfloat16", "float16", "int8"]),
    long_text=st.sampled_from(["truncate", "reject"]),
)
ENCODE = st.builds(
    RequestOptions,
    dims=st.integers(0, 512).map(lambda n: 8 * n),
    vector_type=st.sampled_from(["float16", "binary"]),
    outputs=st.lists(st.sampled_from(OUTPUTS), unique=True).map(tuple),
    top_k=st.integers(0, 99),
    threshold=st.floats(0, 9),
    token_pooling=st.integers(1, 9),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    verb = draw(st.sampled_from(["encode", "score", "extract"]))
    one = st.tuples(TEXTS, TEXTS) if verb == "score" else TEXTS
    inputs: Any = draw(st.lists(one, min_size=1, max_size=8))
    into = draw(st.sampled_from(["", "lancedb://db/docs"]))
    ids = draw(st.lists(NAMES, min_size=len(inputs), max_size=len(inputs), unique=True)) if into else ()
    options = draw(OPTIONS | ENCODE if verb == "encode" else OPTIONS)
    return Request(verb, draw(NAMES), inputs, options, into, ids)


@given(requests(), st.floats(1e9, 2e9), st.floats(0, 2e9))
def test_a_request_comes_back_as_it_was_sent(request: Request, now: float, expires: float) -> None:
    """Decoding is the inverse of encoding, times included (the expiry to the microsecond that ISO 8601 has)."""
    expires = 0.0 if expires < 1 else expires
    message = decode(request_message(request, id="id-1", now=now, expires=expires))
    assert message == Message("id-1", now, message.expires, request)
    assert math.isclose(message.expires, expires, abs_tol=1e-6)


@given(st.integers(0, 2**31 - 1), st.integers(0, 1000), st.floats(1e9, 2e9))
def test_a_pointer_comes_back_as_it_was_sent(shard: int, generation: int, now: float) -> None:
    """Decoding is the inverse of encoding."""
    pointer = ShardPointer("3f2a9c0b7d41", shard, generation, "0123456789abcdef")
    assert decode(shard_message(pointer, now=now)) == Message(f"3f2a9c0b7d41/{shard}.{generation}", now, 0.0, pointer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
SOMEWHERE = st.sampled_from(
    [
        "body",
        "content-type",
        "headers",
        "headers.id",
        "headers.task",
        "headers.expires",
        "headers.lading_sent",
        "properties",
    ]
    + [f"kwargs.{name}" for name in ("version", "verb", "model", "inputs", "options", "into", "ids", "shard", "job")]
    + [f"kwargs.options.{name}" for name in ("dims", "prompt", "vector_type", "other")]
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_message_or_its_refusal(raw: bytes) -> None:
    """No other exception leaves the decoder."""
    refusal(raw)


@given(SOMEWHERE, JSON, st.sampled_from([GOOD, SHARD]))
def test_anything_anywhere_gives_a_message_or_its_refusal(place: str, value: Any, kwargs: dict[str, Any]) -> None:
    """One field of a good message replaced by any JSON value, NaN and half surrogates included."""
    task = "lading.request" if kwargs is GOOD else "lading.shard"
    kwargs = json.loads(json.dumps(kwargs))
    whole = json.loads(envelope(headers={"task": task}))
    at: Any = {**whole, "kwargs": kwargs}
    *path, last = place.split(".")
    for name in path:
        at = at.setdefault(name, {})
    at[last] = value
    if place.startswith("kwargs"):
        whole["body"] = base64.b64encode(json.dumps([[], kwargs, None]).encode()).decode()
    elif "." not in place:
        whole[place] = value
    with contextlib.suppress(BadMessage):
        assert isinstance(decode(json.dumps(whole).encode()), Message)


@given(st.binary(min_size=1, max_size=4), st.integers(0, 10_000))
def test_a_damaged_message_gives_a_message_or_its_refusal(damage: bytes, place: int) -> None:
    """Bytes changed anywhere."""
    raw = bytearray(request_message(Request("encode", "m", ["a", "ü"]), id="i", now=1.5, expires=9e8))
    start = place % len(raw)
    raw[start : start + len(damage)] = damage
    with contextlib.suppress(BadMessage):
        decode(bytes(raw))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff", "the message is not JSON"),
        (b"[" * 100_000, "the message is not JSON"),
        (b"1" * 10_000, "the message is not JSON"),
        (b"[NaN]", "NaN is not JSON"),
        (b"3", "not a JSON object"),
        (b" " * (MESSAGE_BYTES + 1), f"the limit is {MESSAGE_BYTES:,}"),
        (b'{"task": "lading.request", "id": "1", "args": [], "kwargs": {}}', "protocol 2"),
        (envelope(headers={"id": 5}), "headers.id: expected 1 to 255 printable"),
        (envelope(headers={"id": "a\nb"}), "headers.id"),
        (envelope(headers={"task": "os.system"}), "unknown task 'os.system'; known: lading.shard, lading.request"),
        (envelope(headers={"expires": "soon"}), "headers.expires: expected an ISO 8601 time, found 'soon'"),
        (envelope(headers={"eta": "2030-01-01T00:00:00"}), "headers.eta"),
        (envelope(headers={"compression": "application/x-gzip"}), "compressed"),
        (
            envelope(**{"content-type": "application/x-python-serialize"}),
            "content-type 'application/x-python-serialize'",
        ),
        (envelope(**{"content-encoding": "binary"}), "content-encoding 'binary'"),
        (envelope(properties={"body_encoding": "rot13"}), "body_encoding 'rot13'"),
        (envelope(body={"id": "1", "task": "lading.request"}), "the body is not [args, kwargs, embed]"),
        (envelope("[" * 100_000), "the body is not JSON"),
        (envelope(body=[[], GOOD, {"chord": {"task": "x"}}]), "chord"),
        (envelope(body=[[], GOOD, {"callbacks": [{"task": "x"}]}]), "callbacks"),
        (envelope(body=[[1] * 8, {}, {}]), "8 positional arguments"),
        (envelope(body=[[1], GOOD, {}]), "version is given twice"),
        (envelope(kwargs=GOOD | {"version": 2}), "message version 2 is not 1"),
        (envelope(kwargs=GOOD | {"version": True}), "message version True is not 1"),
        (envelope(kwargs={"version": 1}), "verb: is missing"),
        (envelope(kwargs=GOOD | {"modle": "m"}), "modle: unknown field; did you mean 'model'?"),
        (envelope(kwargs=GOOD | {"verb": "embed"}), "verb: expected one of encode, score, extract, found 'embed'"),
        (envelope(kwargs=GOOD | {"verb": ["encode"]}), "verb: expected one of"),
        (envelope(kwargs=GOOD | {"model": ""}), "model: is empty"),
        (envelope(kwargs=GOOD | {"inputs": []}), "inputs: expected a list with at least one input"),
        (envelope(kwargs=GOOD | {"inputs": ["a", None]}), "inputs[1]: expected text, found None"),
        (envelope(kwargs=GOOD | {"inputs": ["a"] * (INPUTS + 1)}), "inputs: 4,097 of them, the limit is 4,096"),
        (envelope(kwargs=GOOD | {"inputs": ["é" * (INPUT_BYTES // 2), "a"]}), "inputs: 65,537 bytes of text"),
        (envelope(kwargs=GOOD | {"inputs": ["\ud800"]}), "inputs: half of a surrogate pair"),
        (envelope(kwargs=GOOD | {"model": "\udfff"}), "model: half of a surrogate pair"),
        (envelope(kwargs=GOOD | {"verb": "score", "inputs": [["a"]]}), "inputs[0]: expected a pair of texts"),
        (envelope(kwargs=GOOD | {"options": {"dimms": 8}}), "options.dimms: unknown; did you mean 'dims'?"),
        (envelope(kwargs=GOOD | {"options": {"dims": 2**31}}), "options.dims: expected a whole number from 0"),
        (envelope(kwargs=GOOD | {"options": {"dims": 8.0}}), "options.dims: expected a whole number from 0"),
        (
            envelope(kwargs=GOOD | {"options": {"activation": "sigmoid"}}),
            "options.activation: only score has this option",
        ),
        (
            envelope(kwargs=GOOD | {"options": {"long_text": "chunk"}}),
            "options.long_text: expected one of truncate, reject",
        ),
        (envelope(kwargs=GOOD | {"options": {"vector_type": "binary", "dims": 12}}), "options.dims: binary packs 8"),
        (envelope(kwargs=GOOD | {"options": {"prompt": "query", "prompt_text": "x"}}), "options.prompt_text"),
        (
            envelope(kwargs=GOOD | {"options": {"outputs": ["spares"]}}),
            "options.outputs: expected a list of dense, sparse",
        ),
        (
            envelope(kwargs=GOOD | {"options": {"outputs": "dense"}}),
            "options.outputs: expected a list of dense, sparse",
        ),
        (
            envelope(kwargs=GOOD | {"options": {"token_pooling": 0}}),
            "options.token_pooling: expected a whole number from 1",
        ),
        (envelope(kwargs=GOOD | {"options": {"threshold": -1}}), "options.threshold: expected a number from 0"),
        (envelope(kwargs=GOOD | {"options": {"threshold": True}}), "options.threshold: expected a number from 0"),
        (envelope(kwargs=GOOD | {"into": "t", "ids": ["1"]}), "ids: expected a list of 2 texts"),
        (envelope(kwargs=GOOD | {"into": "t", "ids": ["1", "1"]}), "ids: '1' is there twice"),
        (envelope(kwargs=GOOD | {"into": "t", "ids": ["1", ""]}), "ids[1]: is empty"),
        (envelope(kwargs=GOOD | {"ids": ["1", "2"]}), "ids: name rows of a table"),
        (envelope(kwargs=SHARD | {"job": "../x"}, headers={"task": "lading.shard"}), "job: expected a job's id"),
        (envelope(kwargs=SHARD | {"shard": -1}, headers={"task": "lading.shard"}), "shard: expected a whole number"),
        (
            envelope(kwargs=SHARD | {"shard": 10**4000}, headers={"task": "lading.shard"}),
            "shard: expected a whole number",
        ),
        (envelope(kwargs=SHARD | {"recipe": "x"}, headers={"task": "lading.shard"}), "recipe: expected 16 hex digits"),
    ],
)
def test_refusals_name_the_field(raw: bytes, reason: str) -> None:
    """What is wrong, and where, in words for who reads the dead letters."""
    assert reason in refusal(raw)


def test_a_refusal_knows_who_waits() -> None:
    """The task id is known as soon as it can be read, so that the sender can be told."""
    with pytest.raises(BadMessage) as caught:
        decode(envelope(kwargs=GOOD | {"verb": "embed"}))
    assert caught.value.id == "id-1"
    with pytest.raises(BadMessage) as caught:
        decode(b"")
    assert caught.value.id == ""


def test_what_producers_leave_open() -> None:
    """Positional arguments, a plain body, an expiry without a zone, a time of sending that is none."""
    options = {"dims": 8}
    by_position = decode(envelope(body=[list(GOOD.values()), {"options": options}, None]))
    assert by_position.body == Request("encode", "m", ["a", "b"], RequestOptions(dims=8))
    assert decode(envelope(properties={}, body="x").replace(b'"eA=="', json.dumps(json.dumps([[], GOOD, {}])).encode()))
    assert decode(envelope(headers={"expires": "2026-01-01T00:00:00"})).expires == 1767225600
    assert decode(envelope(headers={"expires": "2026-01-01T00:00:00Z"})).expires == 1767225600
    assert decode(envelope(headers={"expires": "1970-01-01T00:00:00Z"})).expires > 0
    assert decode(envelope(headers={"lading_sent": "yesterday"})).sent == 0.0


def test_a_message_of_plain_celery_is_understood(redis_server: RedisServer) -> None:
    """Whatever `send_task` writes to the list decodes, with its id and expiry."""
    app = celery.Celery(broker=redis_server.url)
    before = time.time()
    sent = app.send_task("lading.request", kwargs=GOOD, queue=QUEUE, expires=60)
    app.send_task("lading.request", args=("1",), kwargs={"verb": "encode"}, queue=QUEUE)
    app.close()
    with redis.Redis(port=redis_server.port) as client:
        first, second = client.rpop(QUEUE), client.rpop(QUEUE)  # pyright: ignore
    message = decode(first)  # pyright: ignore
    assert (message.id, message.sent, message.body) == (sent.id, 0.0, Request("encode", "m", ["a", "b"]))
    assert before + 60 <= message.expires <= time.time() + 60
    assert "message version '1' is not 1" in refusal(second)  # pyright: ignore


def test_plain_celery_consumes_ours(redis_server: RedisServer) -> None:
    """A Celery worker runs a task of that name with our arguments, and knows its id."""
    app = celery.Celery(broker=redis_server.url, set_as_current=False)
    app.conf.update(broker_transport_options={"priority_steps": [0]}, worker_pool="solo")
    got: list[tuple[str, dict[str, Any]]] = []
    ran = threading.Event()

    @app.task(name="lading.request", bind=True)
    def take(self: Any, **kwargs: Any) -> None:
        got.append((self.request.id, kwargs))
        ran.set()

    request = Request("score", "m", [("a", "ü")], RequestOptions(activation="sigmoid"))
    with redis.Redis(port=redis_server.port) as client:
        client.lpush(QUEUE, request_message(request, id="id-1", now=time.time(), expires=time.time() + 600))
    app.conf.task_queues = [kombu.Queue(QUEUE, exchange=kombu.Exchange(""), no_declare=True)]
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=60):
        assert ran.wait(60)
    inputs = {"inputs": [["a", "ü"]], "options": {"activation": "sigmoid"}}
    assert got == [("id-1", {"version": 1, "verb": "score", "model": "m"} | inputs)]
