"""Windows: rows of shards, of one model, that are sorted and packed together. Cut by the order of the rows alone, never by timing."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np

from ..adapters.contract import Adapter
from .packer import Packing
from .parts import Chosen, Part, ShardInFlight
from .stages import Ahead

WINDOW_PARTS = 128  # a window ends here too, or rows without cost (blank ones) would gather without end

# From the preparing thread: a shard with one of its parts, or with the reason of its end ("": all read); a shard alone: nothing
# more is at hand for the moment.
Prepared = tuple[ShardInFlight, Part | str] | ShardInFlight


@dataclasses.dataclass(slots=True)
class Window:
    """Parts whose items are given out in batches, and the shards that end with them. False when all are given out."""

    parts: list[Part]
    ends: list[ShardInFlight]
    packing: Packing
    owner: np.ndarray  # int64 (items,): the part of each item
    first: np.ndarray  # int64 (parts,): the first item of each part

    @classmethod
    def of(cls, group: list[ShardInFlight | Part]) -> Window:
        parts = [one for one in group if isinstance(one, Part) and not one.shard.failure]
        for part in parts:
            part.shard.begin()
        counts = [len(part.prepared.costs) for part in parts]
        costs = np.concatenate([np.empty(0, np.int64), *(part.prepared.costs for part in parts)])
        ends = [one for one in group if isinstance(one, ShardInFlight)]
        owner = np.repeat(np.arange(len(parts)), counts)
        return cls(parts, ends, Packing(costs), owner, np.cumsum([0, *counts]))

    @classmethod
    def none(cls) -> Window:
        return cls.of([])

    def __bool__(self) -> bool:
        return bool(self.packing)

    @property
    def adapter(self) -> Adapter:
        return self.parts[0].adapter

    def take(self, budget: int) -> list[Chosen]:
        """The next batch."""
        return self._chosen(self.packing.take(budget))

    def fill(self, room: int) -> list[Chosen]:
        """What fits into the rest of a batch of requests; maybe nothing."""
        return self._chosen(self.packing.fill(room))

    def give_up(self, why: str, *, later: bool = False) -> int:
        """Its shards fail (`later`: for now), and all that is left of it is dropped; how much that costs."""
        for part in self.parts:
            if not part.shard.failure:
                part.shard.failure, part.shard.later = why, later
        dropped, self.packing = self.packing.cost, Packing(np.empty(0, np.int64))
        return dropped

    def _chosen(self, batch: np.ndarray) -> list[Chosen]:
        if not len(batch):
            return []
        batch = batch[np.argsort(self.owner[batch], kind="stable")]  # items of one part together
        runs = np.split(batch, np.flatnonzero(np.diff(self.owner[batch])) + 1)
        return [(self.parts[self.owner[run[0]]], run - self.first[self.owner[run[0]]]) for run in runs]


class Windows:
    """Gathers what comes from the preparing thread, in order, into windows of about `window` cost, each of one adapter."""

    def __init__(self, prepared: Ahead[Prepared], window: int, stop: threading.Event) -> None:
        self._prepared, self._window, self._stop = prepared, window, stop
        self._group: list[ShardInFlight | Part] = []
        self._cost = 0
        self._adapter: Adapter | None = None  # of the group's parts
        self._held: tuple[ShardInFlight, Part] | None = None  # begins the next window: another adapter's
        self._dropped = 0

    @property
    def ended(self) -> bool:
        """Nothing is left and nothing more will come."""
        return self._prepared.ended and not self._group and self._held is None

    def dropped(self) -> int:
        """Cost of parts that will be in no batch, since this was asked last: their shard failed, or the work was stopped."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def next(self) -> Window | None:
        """The next window if it is whole by now, else None."""
        while True:
            if self._held is not None:
                one, self._held = self._held, None
            else:
                one = self._prepared.poll()
            if one is None:
                return self._close() if self._prepared.ended and self._group else None
            if isinstance(one, ShardInFlight):
                if self._group:
                    return self._close()
                continue
            shard, part = one
            if self._stop.is_set() and not shard.started:
                self._dropped += 0 if isinstance(part, str) else int(part.prepared.costs.sum())
                continue  # prepared ahead, not begun: left for the next run
            if isinstance(part, str):
                shard.failure = shard.failure or part  # it may have been given up before its end was read
                self._group.append(shard)
            elif self._adapter not in (None, part.adapter):
                self._held = (shard, part)
                return self._close()
            else:
                shard.parts.append(part)
                self._group.append(part)
                self._adapter = part.adapter
                self._cost += int(part.prepared.costs.sum())
            if self._cost >= self._window or len(self._group) >= WINDOW_PARTS:
                return self._close()

    def _close(self) -> Window:
        """The whole group; once stopped, what belongs to shards that earlier windows began."""
        group, self._group, cost, self._cost, self._adapter = self._group, [], self._cost, 0, None
        if self._stop.is_set():
            group = [one for one in group if (one if isinstance(one, ShardInFlight) else one.shard).started]
        window = Window.of(group)
        self._dropped += cost - window.packing.cost
        return window
