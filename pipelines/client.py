"""What an application uses to have a few texts encoded, scored or extracted by the workers of a pool. No torch, no Arrow.

client = Client()                                    # the broker that LADING_BROKER_URL names
vectors = client.encode("sentence-transformers/all-MiniLM-L6-v2", ["a text", "another"])
"""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Generic, Literal, Self, TypeVar, Unpack

from ..config.errors import UsageError
from ..config.settings import load
from ..schedulers import awaiting, pools
from ..schedulers.connection import Broker
from ..schedulers.lines import AsyncLine, Line
from ..schedulers.messages import request_message
from ..schedulers.routing import route
from .calls import (
    Call,
    Counted,
    Embeddings,
    EncodeOptions,
    Inputs,
    Options,
    ScoreOptions,
    SparseVector,
    Vectors,
    finished,
    merge,
    paired,
    plan,
)

__all__ = ["AsyncClient", "AsyncTicket", "Client", "Counted", "Embeddings", "SparseVector", "Ticket", "Vectors"]

OnError = Literal["raise", "return"]
WhenFull = Literal["wait", "fail"]
LONGEST_S = 1e9
Answered = TypeVar("Answered")
Ticketed = TypeVar("Ticketed")


@dataclasses.dataclass(frozen=True, slots=True)
class _Sent:
    """The messages of a call, and what their results will be put together by."""

    call: Call
    verb: str
    dims: int
    queue: str
    ids: list[str]
    raws: list[bytes]

    def result(self, found: awaiting.Found, on_error: str) -> Any:
        merged = merge(self.call, self.verb, [found[id] for id in self.ids], dims=self.dims)
        return finished(merged, self.call.count, on_error)


class _Verbs(Generic[Answered, Ticketed]):
    """The verbs, which both clients have: Client returns what is said here, AsyncClient awaitables of it.

    Of all calls: `timeout_s` bounds all waiting, for a place in the queue, for the answer and for a broker that is
    away, and a worker drops what nobody awaits any more. A full queue is waited for, or fails with QueueFull, as
    `when_full` says. Inputs that fail raise InputsFailed, which names them and has the result of the others; with
    `on_error="return"` a pair is returned, the result and a list of (index, code, detail). With `token_columns=True` the result
    is a `Counted`, which has the tokens of each input beside it. Further keywords are the
    options of a job's step, with the same defaults (docs/job-spec.md).

    Raises UsageError for what cannot be sent, RequestFailed in the worker's words, RequestTimeout, BrokerError.
    """

    def __init__(self, url: str = "", *, pool: str = "") -> None:
        """`url` of the broker, "" for the setting broker_url; `pool` that does the work, "" for the smallest that can.

        Connects when it is first used. Raises UsageError for a URL that is none and for an unknown pool.
        """
        settings = load()
        self._url, self._limit = url or settings.broker_url, settings.max_waiting_requests
        self._pools, self._pool = pools.load(), pool
        if pool:
            pools.find(self._pools, pool)

    def encode(
        self,
        model: str,
        texts: Sequence[str],
        *,
        timeout_s: float = 60.0,
        on_error: OnError = "raise",
        when_full: WhenFull = "wait",
        **options: Unpack[EncodeOptions],
    ) -> Answered:
        """One vector per text, in order: float32 (or float16) array (n, dims); Vectors for vector_type int8 and binary.

        Of a sparse model a list of SparseVector, of a multi-vector model a list of arrays (tokens, dims); Embeddings, which has
        each, if several `outputs` are asked for.
        """
        return self._ask("encode", model, texts, options, timeout_s, on_error, when_full)

    def score(
        self,
        model: str,
        pairs: Sequence[tuple[str, str]] | Sequence[str],
        *,
        query: str | None = None,
        timeout_s: float = 60.0,
        on_error: OnError = "raise",
        when_full: WhenFull = "wait",
        **options: Unpack[ScoreOptions],
    ) -> Answered:
        """One score per pair (query, document), in order: float32 array (n,). With `query` a list of documents is enough."""
        return self._ask("score", model, paired(pairs, query), options, timeout_s, on_error, when_full)

    def extract(
        self,
        model: str,
        texts: Sequence[str],
        *,
        timeout_s: float = 60.0,
        on_error: OnError = "raise",
        when_full: WhenFull = "wait",
        **options: Unpack[Options],
    ) -> Answered:
        """The entities of each text, in order: a list per text of dicts with text, label, score, start and end."""
        return self._ask("extract", model, texts, options, timeout_s, on_error, when_full)

    def submit_encode(
        self,
        model: str,
        texts: Sequence[str],
        *,
        into: str = "",
        ids: Sequence[str] = (),
        expires_s: float = 0.0,
        timeout_s: float = 60.0,
        when_full: WhenFull = "wait",
        **options: Unpack[EncodeOptions],
    ) -> Ticketed:
        """Send and do not wait: a ticket for the result of `encode`.

        `into` is a table that takes the results under `ids`, replacing what it has under them; the ticket's result is
        then the number of rows. After `expires_s` (0: never) a worker drops it unanswered.
        """
        return self._submit("encode", model, texts, options, into, ids, expires_s, timeout_s, when_full)

    def submit_score(
        self,
        model: str,
        pairs: Sequence[tuple[str, str]] | Sequence[str],
        *,
        query: str | None = None,
        into: str = "",
        ids: Sequence[str] = (),
        expires_s: float = 0.0,
        timeout_s: float = 60.0,
        when_full: WhenFull = "wait",
        **options: Unpack[ScoreOptions],
    ) -> Ticketed:
        """As `submit_encode`, for `score`."""
        return self._submit("score", model, paired(pairs, query), options, into, ids, expires_s, timeout_s, when_full)

    def submit_extract(
        self,
        model: str,
        texts: Sequence[str],
        *,
        into: str = "",
        ids: Sequence[str] = (),
        expires_s: float = 0.0,
        timeout_s: float = 60.0,
        when_full: WhenFull = "wait",
        **options: Unpack[Options],
    ) -> Ticketed:
        """As `submit_encode`, for `extract`."""
        return self._submit("extract", model, texts, options, into, ids, expires_s, timeout_s, when_full)

    def _ask(
        self,
        verb: str,
        model: str,
        inputs: Inputs,
        options: Mapping[str, Any],
        timeout_s: float,
        on_error: str,
        when_full: str,
    ) -> Answered:
        _check(timeout_s, on_error=on_error, when_full=when_full)
        sent = self._messages(plan(verb, model, inputs, options), verb, options, timeout_s)
        until = time.monotonic() + timeout_s
        steps = awaiting.exchange(sent.ids, sent.raws, until=until, clock=time.monotonic, when_full=when_full)
        return self._answer(steps, sent, on_error)

    def _submit(
        self,
        verb: str,
        model: str,
        inputs: Inputs,
        options: Mapping[str, Any],
        into: str,
        ids: Sequence[str],
        expires_s: float,
        timeout_s: float,
        when_full: str,
    ) -> Ticketed:
        _check(timeout_s, when_full=when_full)
        if not 0 <= expires_s < LONGEST_S:
            raise UsageError(f"expires_s: expected seconds, or 0 for never, found {expires_s!r}")
        sent = self._messages(plan(verb, model, inputs, options, into, ids), verb, options, expires_s)
        until = time.monotonic() + timeout_s
        steps = awaiting.deliver(sent.raws, until=until, clock=time.monotonic, when_full=when_full)
        return self._ticket(steps, sent)

    def _messages(self, call: Call, verb: str, options: Mapping[str, Any], expires_s: float) -> _Sent:
        now = time.time()
        ids = [str(uuid.uuid4()) for _ in call.requests]
        expires = now + expires_s if expires_s else 0.0
        raws = [
            request_message(one, id=id, now=now, expires=expires) for one, id in zip(call.requests, ids, strict=True)
        ]
        return _Sent(call, verb, options.get("dims", 0), self._queue(options), ids, raws)

    def _queue(self, options: Mapping[str, Any]) -> str:
        """The queue of requests with these options. What the model weighs, a client without models cannot know."""
        return route(options.get("precision", "float32"), 0, self._pools, self._pool).requests

    def _answer(self, steps: awaiting.Steps, sent: _Sent, on_error: str) -> Answered:
        raise NotImplementedError

    def _ticket(self, steps: awaiting.Steps, sent: _Sent) -> Ticketed:
        raise NotImplementedError


class Client(_Verbs[Any, "Ticket"]):
    """For threads: any number may share one, and a forked child makes its connections anew."""

    def __init__(self, url: str = "", *, pool: str = "") -> None:
        super().__init__(url, pool=pool)
        self._broker = Broker.connect(self._url)
        self._idle: deque[Line] = deque()
        self._process = os.getpid()

    def run(self, steps: awaiting.Steps, queue: str = "") -> awaiting.Found:
        """Carry out steps on a line that no other thread has. `queue` is needed where they send."""
        line = self._line()
        try:
            found = line.run(queue, steps)
        except BaseException:
            line.hang_up()  # it may be in the middle of something
            raise
        self._idle.append(line)
        return found

    def close(self) -> None:
        while self._idle:
            self._idle.pop().hang_up()
        self._broker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self) -> Line:
        if self._process != os.getpid():
            self._idle, self._process = deque(), os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return Line(self._broker, self._limit)

    def _answer(self, steps: awaiting.Steps, sent: _Sent, on_error: str) -> Any:
        return sent.result(self.run(steps, sent.queue), on_error)

    def _ticket(self, steps: awaiting.Steps, sent: _Sent) -> Ticket:
        self.run(steps, sent.queue)
        return Ticket(self, dataclasses.replace(sent, raws=[]))


class Ticket:
    """For the result of a submitted call, which is kept for the setting result_ttl_s."""

    def __init__(self, client: Client, sent: _Sent) -> None:
        self._client, self._sent = client, sent

    @property
    def ids(self) -> list[str]:
        """Celery's task ids: the call may have been split."""
        return self._sent.ids

    def done(self) -> bool:
        """Whether all of the result is there; `wait` then returns at once."""
        return len(self._client.run(awaiting.glance(self.ids))) == len(self.ids)

    def wait(self, timeout_s: float = 60.0, *, on_error: OnError = "raise") -> Any:
        """The result, as the client's verb returns it; with `into`, the number of rows. Raises as the verb does."""
        _check(timeout_s, on_error=on_error)
        until = time.monotonic() + timeout_s
        return self._sent.result(
            self._client.run(awaiting.collect(self.ids, until=until, clock=time.monotonic)), on_error
        )


class AsyncClient(_Verbs[Awaitable[Any], "Awaitable[AsyncTicket]"]):
    """For tasks of one asyncio loop: any number may share one. Close it before the loop ends."""

    def __init__(self, url: str = "", *, pool: str = "") -> None:
        super().__init__(url, pool=pool)
        self._broker = Broker.connect_async(self._url)
        self._idle: deque[AsyncLine] = deque()

    async def run(self, steps: awaiting.Steps, queue: str = "") -> awaiting.Found:
        """Carry out steps on a line that no other task has. `queue` is needed where they send."""
        line = self._idle.pop() if self._idle else AsyncLine(self._broker, self._limit)
        try:
            found = await line.run(queue, steps)
        except BaseException:
            await line.hang_up()
            raise
        self._idle.append(line)
        return found

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().hang_up()
        await self._broker.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _answer(self, steps: awaiting.Steps, sent: _Sent, on_error: str) -> Any:
        return sent.result(await self.run(steps, sent.queue), on_error)

    async def _ticket(self, steps: awaiting.Steps, sent: _Sent) -> AsyncTicket:
        await self.run(steps, sent.queue)
        return AsyncTicket(self, dataclasses.replace(sent, raws=[]))


class AsyncTicket:
    """As Ticket."""

    def __init__(self, client: AsyncClient, sent: _Sent) -> None:
        self._client, self._sent = client, sent

    @property
    def ids(self) -> list[str]:
        return self._sent.ids

    async def done(self) -> bool:
        return len(await self._client.run(awaiting.glance(self.ids))) == len(self.ids)

    async def wait(self, timeout_s: float = 60.0, *, on_error: OnError = "raise") -> Any:
        _check(timeout_s, on_error=on_error)
        until = time.monotonic() + timeout_s
        found = await self._client.run(awaiting.collect(self.ids, until=until, clock=time.monotonic))
        return self._sent.result(found, on_error)


def _check(timeout_s: float, *, on_error: str = "raise", when_full: str = "wait") -> None:
    if not 0 < timeout_s < LONGEST_S:
        raise UsageError(f"timeout_s: expected seconds above 0, found {timeout_s!r}")
    for name, value, valid in (("on_error", on_error, ("raise", "return")), ("when_full", when_full, ("wait", "fail"))):
        if value not in valid:
            raise UsageError(f"{name}: expected one of {', '.join(valid)}, found {value!r}")
