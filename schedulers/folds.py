"""What bringing a job's results into view has cost, added up over all processes that do it. A cache: whoever loses it loses numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

from .connection import Broker
from .outages import translated

KEPT_S = 7 * 86_400

# KEYS: folds of a job. ARGV: commits, conflicts, seconds, seconds to keep.
_ADD = """
redis.call('HINCRBY', KEYS[1], 'commits', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'conflicts', ARGV[2])
redis.call('HINCRBYFLOAT', KEYS[1], 'seconds', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
"""


@dataclasses.dataclass(frozen=True, slots=True)
class FoldCosts:
    """Of one job so far."""

    commits: int = 0
    conflicts: int = 0  # other writers who were first
    seconds: float = 0.0  # of all processes, the looks that found nothing to commit included


def add(broker: Broker, job: str, costs: FoldCosts) -> None:
    """Raises BrokerError."""
    broker.run(_ADD, [key(job)], costs.commits, costs.conflicts, costs.seconds, KEPT_S)


def read(broker: Broker, job: str) -> FoldCosts:
    """Zeros for a job of which nothing is known (any more). Raises BrokerError."""
    client: Any = broker.client
    with translated(broker.url):
        found = client.hmget(key(job), "commits", "conflicts", "seconds")
    return FoldCosts(int(found[0] or 0), int(found[1] or 0), float(found[2] or 0.0))


def key(job: str) -> str:
    return f"lading.folds:{job}"
