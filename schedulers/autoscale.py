"""How many workers a pool should have, from how much waits and is in flight. Pure: the time and the lengths are given.

Two parts, as in a cluster, with the same numbers. Between none and some decides KEDA's state machine: any message wakes the pool,
and it goes to sleep when there was none for the cooldown (https://keda.sh/docs/latest/concepts/scaling-deployments, cooldownPeriod in
https://keda.sh/docs/latest/reference/scaledobject-spec). Between one and many decides the arithmetic of Kubernetes' autoscaler for
AverageValue metrics, with its tolerance, its limits and its stabilisation window
(https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale, algorithm details and scaling behaviour).
Nothing is decided from an error: while the lengths cannot be read, the number of workers stays.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence

from .admission import window
from .pools import Pool


@dataclasses.dataclass(frozen=True, slots=True)
class Trigger:
    """A length in Redis and how much of it asks for one worker: `listName` and `listLength` of KEDA's redis scaler."""

    name: str
    key: str  # a list, or the hash of what was taken from it and not acknowledged
    per_worker: int


def triggers(pool: Pool) -> tuple[Trigger, ...]:
    """What waits and what is in flight, of both queues of a pool.

    One message asks for one worker, and a full window of shards for `max_workers`: waiting and leased, it holds twice what these take
    at once, so that the larger of the two numbers asks for all of them however it is split. What is in flight keeps workers
    that work from being stopped, and asks for no more than the same messages did while they waited.
    """
    shards = max(window(pool) // (2 * pool.max_workers), 1)  # pull_shards, but for windows that are cut short
    return (
        Trigger("shards", pool.shards, shards),
        Trigger("requests", pool.requests, pool.pull_requests),
        Trigger("shards-inflight", f"unacked:{pool.shards}", shards),
        Trigger("requests-inflight", f"unacked:{pool.requests}", pool.pull_requests),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How fast, and between which bounds. The defaults are those of the chart; their names there are in docs/autoscaling.md."""

    most: int
    least: int = 0
    polling_s: float = 15.0  # between two looks whether there is anything at all
    cooldown_s: float = 300.0  # without any message, before the last workers go
    sync_s: float = 15.0  # between two calculations of how many
    tolerance: float = 0.1  # of the ratio of what is to what was asked for: within it nothing changes
    up_share: float = 1.0  # in each `up_period_s`, the larger of this share more
    up_workers: int = 4  # and of so many more
    up_period_s: float = 15.0
    settling_s: float = 300.0  # what was asked for within it, at most, is kept
    down_workers: int = 1  # fewer in each `down_period_s`; going to none is not limited by it
    down_period_s: float = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """From how many workers to how many."""

    before: int
    after: int
    why: str


def wanted(triggers: Sequence[Trigger], lengths: Sequence[int], workers: int, tolerance: float) -> int:
    """How many workers the lengths ask for while there are `workers` (at least 1), without limits: the most that any one asks for."""

    def one(length: int, per_worker: int) -> int:
        return workers if abs(length / (per_worker * workers) - 1) <= tolerance else math.ceil(length / per_worker)

    return max(one(length, trigger.per_worker) for trigger, length in zip(triggers, lengths, strict=True))


class Scaler:
    """One pool's number of workers. Any clock will do whose seconds grow."""

    def __init__(self, triggers: Sequence[Trigger], behaviour: Behaviour) -> None:
        self.workers = 0
        self._triggers, self._behaviour = triggers, behaviour
        self._polled = self._synced = -math.inf
        self._active = -math.inf  # when there was a message last
        self._asked: deque[tuple[float, int]] = deque()  # within the settling time
        self._changes: deque[tuple[float, int]] = deque()  # by the arithmetic, within the longest period of its limits

    def due(self, now: float) -> bool:
        """Whether `step` has something to decide."""
        return now >= min(self._polled + self._behaviour.polling_s, self._next_sync())

    def step(self, now: float, lengths: Sequence[int] | None) -> Change | None:
        """Decide what is due. `lengths` are those of the triggers, in their order; None where they could not be read."""
        before = self.workers
        if now >= self._polled + self._behaviour.polling_s:
            self._polled = now
            if lengths is not None and (why := self._poll(now, any(lengths))):
                return Change(before, self.workers, why)
        if now >= self._next_sync():
            self._synced = now
            if lengths is not None and (why := self._sync(now, lengths)):
                return Change(before, self.workers, why)
        return None

    def _next_sync(self) -> float:
        return self._synced + self._behaviour.sync_s if self.workers else math.inf

    def _poll(self, now: float, active: bool) -> str:
        """Between none and some. Why something changed, "" if nothing did."""
        least = self._behaviour.least
        if active:
            self._active = now
            if self.workers == 0:
                return self._wake(max(least, 1), "there is work")
        elif self.workers < least:
            return self._wake(least, f"{least} are always there")
        elif self.workers and not least and now - self._active > self._behaviour.cooldown_s:
            self.workers = 0
            self._asked.clear()
            return f"nothing to do for {self._behaviour.cooldown_s:g} s"
        return ""

    def _wake(self, workers: int, why: str) -> str:
        self.workers = workers
        self._changes.clear()
        return why

    def _sync(self, now: float, lengths: Sequence[int]) -> str:
        """Between one and many. Why something changed, "" if nothing did."""
        how, current = self._behaviour, self.workers
        asked = wanted(self._triggers, lengths, current, how.tolerance)
        asked = min(max(asked, how.least, 1), how.most)
        self._asked.append((now, asked))
        while now - self._asked[0][0] > how.settling_s:
            self._asked.popleft()
        if asked > current:
            self.workers = min(asked, self._highest(now))
        elif asked < current:
            settled = max(most for _, most in self._asked)
            self.workers = min(max(settled, self._lowest(now)), current)
        if self.workers == current:
            return ""
        self._changes.append((now, self.workers - current))
        return "more work" if self.workers > current else f"less work for {how.settling_s:g} s"

    def _highest(self, now: float) -> int:
        how = self._behaviour
        began = self.workers - self._changed(now, how.up_period_s)
        return max(math.ceil(began * (1 + how.up_share)), began + how.up_workers, self.workers)

    def _lowest(self, now: float) -> int:
        how = self._behaviour
        return self.workers - self._changed(now, how.down_period_s) - how.down_workers

    def _changed(self, now: float, period_s: float) -> int:
        """By how many workers there are more than a period ago."""
        longest = max(self._behaviour.up_period_s, self._behaviour.down_period_s)
        while self._changes and now - self._changes[0][0] >= longest:
            self._changes.popleft()
        return sum(by for when, by in self._changes if now - when < period_s)
