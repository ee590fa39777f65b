"""One queue: a Redis list, the leases on what was taken from it, the strikes against it and its dead letters.

Owns these keys and every step on them (docs/architecture.md); knows nothing of what a message says. Leases lie in
kombu's `unacked` form, one pair of keys per list. A lease is named by a token that only the pull that made it knows, so
a worker that was thought dead finds nothing of its own to acknowledge, renew or give back. Time is Redis' own.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from redis.client import Pipeline
from redis.exceptions import OutOfMemoryError

from ..config.errors import QueueFull
from ..config.events import tell
from . import scripts
from .outages import translated

if TYPE_CHECKING:
    from .connection import Broker

LONGEST_WAIT_S = 10.0  # less than the connection's timeout for a reply
MOST_LETTERS = 1000  # dead letters per queue
PER_STEP = 1000  # of releases and replays: a step blocks the server while it runs

_log = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """A message in the hands of one worker."""

    token: str
    number: int
    raw: bytes
    suspect: int | None  # None: never restored. Else how many deaths were counted while it ran alone

    @property
    def field(self) -> str:
        """Its name in Redis. Padded, so that leases of one pull sort in the order of their messages."""
        return f"{self.token}:{self.number:05d}"


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    waiting: int
    in_flight: int
    dead: int
    oldest_age_s: float | None  # of the next message; None where there is none, or it does not say when it was sent


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up. `entry` is what lies in Redis; `id` is short for it."""

    id: str
    reason: str
    when: float
    raw: bytes
    entry: bytes


class Queue:
    """The queue in one list. Every method raises BrokerError if Redis cannot be reached, and may be called from any thread."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.name = name
        self._broker = broker
        self._client: Any = broker.client  # the types of redis-py are those of both its clients at once
        self._unacked, self._index = f"unacked:{name}", f"unacked_index:{name}"
        self._strikes, self._dead = f"strikes:{name}", f"dead:{name}"
        self._tail = f', "", {json.dumps(name)}]'
        self._keys = [name, self._unacked, self._index, self._strikes]

    def send(self, raws: Sequence[bytes], *, limit: int = 0) -> None:
        """Add messages in their order, in one step. Raises QueueFull, and adds none, if more than `limit` would then wait."""
        if raws:
            command, check = sending(self.name, raws, limit)
            with translated(self._broker.url):
                check(self._client.execute_command(*command))

    def pull(self, most: int, max_bytes: int) -> list[Lease]:
        """Take and lease the oldest messages in one step: at most `most`, and `max_bytes` unless the first alone is larger.

        If the reply is lost on its way, nobody knows the token: the leases run out and the messages come back.
        """
        if most < 1:
            return []
        token = uuid.uuid4().hex[:20]
        raws, deaths = self._broker.run(scripts.PULL, self._keys, token, most, max_bytes, self._tail)
        if not deaths:
            return [Lease(token, number, raw, None) for number, raw in enumerate(raws, 1)]
        return [
            Lease(token, number, raw, None if count < 0 else count)
            for number, (raw, count) in enumerate(zip(raws, deaths, strict=True), 1)
        ]

    def wait(self, timeout_s: float) -> bool:
        """Wait until a message is there, 10 s at most; False if none came. It takes nothing, so nothing can be lost."""
        timeout_s = max(min(timeout_s, LONGEST_WAIT_S), 0.01)  # 0 would be for ever
        with translated(self._broker.url):
            try:
                # The next message moves from its place to its place.
                moved = self._client.blmove(self.name, self.name, timeout_s, "RIGHT", "RIGHT")
            except OutOfMemoryError:
                # A full Redis refuses to move what it lets us pull.
                time.sleep(min(timeout_s, 0.2))
                return bool(self._client.llen(self.name))
        return moved is not None

    def ack(self, leases: Sequence[Lease]) -> int:
        """These are done; how many were still ours. Clears what was held against those under suspicion."""
        return self._broker.run(*self._ack(leases)) if leases else 0

    def ack_in(self, pipeline: Pipeline, leases: Sequence[Lease]) -> None:
        """`ack` as one command of a pipeline, beside the results of the same messages."""
        if leases:
            script, keys, *values = self._ack(leases)
            pipeline.eval(script, len(keys), *keys, *values)

    def renew(self, leases: Sequence[Lease]) -> int:
        """Start the leases anew; how many were still ours."""
        return self._broker.run(scripts.RENEW, [self._index], *[lease.field for lease in leases]) if leases else 0

    def release(self, leases: Sequence[Lease]) -> int:
        """Give back in good order, the first to be pulled next, nothing held against them; how many were still ours."""
        back = 0
        for part in reversed(_parts(leases)):
            values = [word for lease in part for word in (lease.field, "" if lease.suspect is None else lease.suspect)]
            back += self._broker.run(scripts.RELEASE, self._keys, self._tail, *values)
        return back

    def restore(self, lease_s: float, most: int = 100) -> int:
        """Give back what nobody renewed for `lease_s`, and put it under suspicion; how many messages.

        Any process may call this at any time.
        """
        return self._broker.run(scripts.RESTORE, self._keys, self._tail, lease_s, most)

    def begin_alone(self, lease: Lease) -> int:
        """Count a death in advance, before a message under suspicion runs alone; `ack` and `release` take it back.

        How many there are with this one, or 0 if the lease is no longer ours: then leave the message to others.
        """
        if lease.suspect is None:
            raise ValueError("only a message under suspicion runs alone: `ack` and `release` look at no other's deaths")
        deaths = lease.suspect + 1
        keys = [self._unacked, self._strikes]
        return deaths * self._broker.run(scripts.BEGIN_ALONE, keys, lease.field, _hash(lease.raw), deaths)

    def bury(self, lease: Lease, reason: str) -> bool:
        """Move a message to the dead letters in one step; False if the lease was no longer ours."""
        letter = json.dumps({"reason": reason, "when": time.time(), **_as_text(lease.raw)})
        keys = [self._unacked, self._index, self._strikes, self._dead]
        letters = self._broker.run(scripts.BURY, keys, lease.field, _hash(lease.raw), letter, MOST_LETTERS)
        if letters > MOST_LETTERS:
            tell(_log, "dead letter dropped", queue=self.name, most=MOST_LETTERS)
        return letters > 0

    def counts(self) -> Counts:
        """How much lies where, at one moment."""
        waiting, in_flight, dead, oldest, (seconds, _) = self._look(
            ("LLEN", self.name), ("HLEN", self._unacked), ("LLEN", self._dead), ("LINDEX", self.name, -1), ("TIME",)
        )
        sent = _sent(oldest)
        return Counts(waiting, in_flight, dead, max(seconds - sent, 0.0) if sent else None)

    def snapshot(self) -> list[bytes]:
        """Every message that waits or is leased, at one moment."""
        waiting, leased = self._look(("LRANGE", self.name, 0, -1), ("HVALS", self._unacked))
        return waiting + [value[1 : -len(self._tail)] for value in leased]

    def dead(self, start: int = 0, count: int = 100) -> list[DeadLetter]:
        """Dead letters, the newest first."""
        with translated(self._broker.url):
            entries = self._client.lrange(self._dead, start, start + count - 1)
        return [_letter(entry) for entry in entries]

    def replay(self, letters: Sequence[DeadLetter]) -> int:
        """Send the messages of dead letters again; how many were still there."""
        back = 0
        for part in _parts(letters):
            values = [word for letter in part for word in (letter.entry, letter.raw)]
            back += self._broker.run(scripts.REPLAY, [self.name, self._dead], *values)
        return back

    def drop(self, letters: Sequence[DeadLetter]) -> int:
        """Forget dead letters; how many were still there."""
        return sum(self._look(*[("LREM", self._dead, 1, letter.entry) for letter in letters]))

    def _ack(self, leases: Sequence[Lease]) -> tuple[Any, ...]:
        plain = [lease.field for lease in leases if lease.suspect is None]
        pairs = [word for one in leases if one.suspect is not None for word in (one.field, _hash(one.raw))]
        return scripts.ACK, [self._unacked, self._index, self._strikes], len(pairs) // 2, *pairs, *plain

    def _look(self, *commands: tuple[Any, ...]) -> list[Any]:
        with translated(self._broker.url), self._client.pipeline(transaction=True) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return pipe.execute()


def sending(name: str, raws: Sequence[bytes], limit: int) -> tuple[list[Any], Callable[[int], None]]:
    """The command that sends, and what to do with its reply: raises QueueFull."""

    def check(reply: int) -> None:
        if reply < 0:
            raise QueueFull(
                f"{name} has {-1 - reply:,} messages waiting and takes no more than {limit:,}: wait, or add workers"
            )

    if limit:
        return ["EVAL", scripts.SEND, 1, name, limit, *raws], check
    return ["LPUSH", name, *raws], check


def _parts(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[start : start + PER_STEP] for start in range(0, len(items), PER_STEP)]


def _hash(raw: bytes) -> str:
    return hashlib.sha1(raw, usedforsecurity=False).hexdigest()  # as redis.sha1hex in the scripts


def _sent(raw: bytes | None) -> float:
    """When a message says it was sent; 0.0 if it does not."""
    try:
        sent = json.loads(raw or b"")["headers"]["lading_sent"]
        return float(sent) if 0 < sent < 1e12 else 0.0
    except (ValueError, LookupError, TypeError, RecursionError):
        return 0.0


def _as_text(raw: bytes) -> dict[str, str]:
    try:
        return {"message": raw.decode(), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"message": base64.b64encode(raw).decode(), "encoding": "base64"}


def _letter(entry: bytes) -> DeadLetter:
    written = json.loads(entry)
    text = written["message"]
    raw = base64.b64decode(text) if written["encoding"] == "base64" else text.encode()
    return DeadLetter(_hash(entry)[:12], written["reason"], written["when"], raw, entry)
