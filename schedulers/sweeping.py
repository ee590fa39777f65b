"""What the processes that sweep tell each other through Redis: whose turn it is, and how much is waiting in all.

Turns save work and nothing more: two sweeps at once send some shards twice, which whoever gets them second finds done.
"""

from __future__ import annotations

import secrets
from typing import Any

from .connection import Broker
from .outages import translated

TURN = "lading.sweep"
TURN_S = 10  # longer than nearly every pass: an expiry frees the turn of a process that died in one
LAST = "lading.swept"
TOTAL_S = 600  # a total that nobody has renewed for so long is not shown any more

LEAD = "lading.sweeper"

# KEYS: lead. ARGV: who, milliseconds. Returns whether the lead is theirs.
_LEAD = """
local led = redis.call('GET', KEYS[1])
if led and led ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_END = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Turns:
    """One process's turns at sweeping."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._client: Any = broker.client
        self._who = secrets.token_hex(8)

    def lead(self, seconds: float) -> bool:
        """Whether sweeping is this process's for so long, again and again: what it remembers then stays true. Raises BrokerError."""
        return bool(self._broker.run(_LEAD, [LEAD], self._who, max(round(seconds * 1000), 1)))

    def begin(self) -> bool:
        """Take the turn if it is free. Raises BrokerError."""
        with translated(self._broker.url):
            return bool(self._client.set(TURN, self._who, nx=True, ex=TURN_S))

    def alone(self) -> bool:
        """Whether nobody swept, nor asked for a new look, since this process last asked this. Raises BrokerError."""
        with translated(self._broker.url):
            return self._client.set(LAST, self._who, get=True) == self._who.encode()

    def end(self) -> None:
        """Give the turn back, unless it ran out and is another's. Raises BrokerError."""
        self._broker.run(_END, [TURN], self._who)


def look_anew(broker: Broker) -> None:
    """Whoever sweeps next does not go by what it remembers of jobs: one of them has something to do again."""
    with translated(broker.url):
        broker.client.delete(LAST)


def publish_totals(broker: Broker, totals: dict[str, int]) -> None:
    """By pool, the shards that are not done yet, those that are not in Redis included: for autoscalers and people."""
    with translated(broker.url), broker.client.pipeline(transaction=False) as pipe:
        for pool, shards in totals.items():
            pipe.set(total_key(pool), shards, ex=TOTAL_S)
        pipe.execute()


def total(broker: Broker, pool: str) -> int | None:
    """What was published last for a pool; None if nobody sweeps."""
    client: Any = broker.client
    with translated(broker.url):
        stored = client.get(total_key(pool))
    return None if stored is None else int(stored)


def total_key(pool: str) -> str:
    return f"lading.{pool}.left"
