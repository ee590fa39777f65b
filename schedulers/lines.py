"""A client's line to the broker: sends requests, listens for results. One for threads, one for asyncio.

Each carries out the steps of awaiting.py, one call at a time; a client has as many as it has calls at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import TimeoutError

from ..config.errors import LadingError
from .awaiting import Found, Steps
from .connection import AsyncBroker, Broker
from .outages import translated
from .results import KEY

CONNECTIONS = 10_000  # each call at once takes two; redis-py's own limit of 100 would refuse the 51st thread


class Line:
    """For one thread at a time. Stays connected between calls."""

    def __init__(self, broker: Broker, limit: int) -> None:
        """`limit`: so many messages may wait in a queue, 0 for any number."""
        self._broker, self._queue, self._limit = broker, "", limit
        self._client: Any = broker.client
        self._client.connection_pool.max_connections = CONNECTIONS
        self._ear: Any = None
        self._channels: list[str] = []

    def run(self, queue: str, steps: Steps) -> Found:
        """Carry out all steps, sending to `queue`; the line can be used again unless this raises."""
        self._queue = queue
        try:
            step = next(steps)
            while True:
                try:
                    reply = getattr(self, step.name)(*step.arguments)
                except LadingError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as done:
            return done.value

    def listen_for(self, ids: Sequence[str]) -> None:
        """Returns when the broker has confirmed: what is published from now on is heard."""
        before, self._channels = self._channels, [KEY + id for id in ids]
        with translated(self._broker.url):
            if self._ear is None:
                self._ear = self._client.pubsub()
            elif before:
                self._ear.unsubscribe(*before)
            self._ear.subscribe(*self._channels)
            left = len(self._channels)
            while left:
                heard = self._ear.get_message(timeout=self._ear.connection.socket_timeout)
                if heard is None:
                    raise TimeoutError("no reply to SUBSCRIBE")
                left -= heard["type"] == "subscribe"

    def send(self, raws: Sequence[bytes]) -> None:
        self._broker.queue(self._queue).send(raws, limit=self._limit)

    def look_up(self, ids: Sequence[str]) -> list[bytes | None]:
        with translated(self._broker.url):
            return self._client.mget([KEY + id for id in ids])

    def hear(self, seconds: float) -> tuple[str, bytes] | None:
        """The next result; None if none came in time."""
        until = time.monotonic() + seconds
        with translated(self._broker.url):
            while True:
                heard = self._ear.get_message(timeout=max(until - time.monotonic(), 0.0))
                if heard is None:
                    return None
                if heard["type"] == "message":
                    return heard["channel"].decode()[len(KEY) :], heard["data"]

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def forget(self, ids: Sequence[str]) -> None:
        with translated(self._broker.url):
            self._client.delete(*(KEY + id for id in ids))

    def hang_up(self) -> None:
        ear, self._ear, self._channels = self._ear, None, []
        if ear is not None:
            ear.close()


class AsyncLine:
    """For one task at a time, all of one event loop. The methods are those of Line."""

    def __init__(self, broker: AsyncBroker, limit: int) -> None:
        self._broker, self._queue, self._limit = broker, "", limit
        self._client: Any = broker.client
        self._client.connection_pool.max_connections = CONNECTIONS
        self._ear: Any = None
        self._channels: list[str] = []

    async def run(self, queue: str, steps: Steps) -> Found:
        self._queue = queue
        try:
            step = next(steps)
            while True:
                try:
                    reply = await getattr(self, step.name)(*step.arguments)
                except LadingError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as done:
            return done.value

    async def listen_for(self, ids: Sequence[str]) -> None:
        before, self._channels = self._channels, [KEY + id for id in ids]
        with translated(self._broker.url):
            if self._ear is None:
                self._ear = self._client.pubsub()
            elif before:
                await self._ear.unsubscribe(*before)
            await self._ear.subscribe(*self._channels)
            left = len(self._channels)
            while left:
                heard = await self._ear.get_message(timeout=self._ear.connection.socket_timeout)
                if heard is None:
                    raise TimeoutError("no reply to SUBSCRIBE")
                left -= heard["type"] == "subscribe"

    async def send(self, raws: Sequence[bytes]) -> None:
        await self._broker.send(self._queue, raws, limit=self._limit)

    async def look_up(self, ids: Sequence[str]) -> list[bytes | None]:
        with translated(self._broker.url):
            return await self._client.mget([KEY + id for id in ids])

    async def hear(self, seconds: float) -> tuple[str, bytes] | None:
        until = time.monotonic() + seconds
        with translated(self._broker.url):
            while True:
                heard = await self._ear.get_message(timeout=max(until - time.monotonic(), 0.0))
                if heard is None:
                    return None
                if heard["type"] == "message":
                    return heard["channel"].decode()[len(KEY) :], heard["data"]

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def forget(self, ids: Sequence[str]) -> None:
        with translated(self._broker.url):
            await self._client.delete(*(KEY + id for id in ids))

    async def hang_up(self) -> None:
        ear, self._ear, self._channels = self._ear, None, []
        if ear is not None:
            await ear.aclose()
