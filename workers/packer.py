"""Forms device batches from item costs. Pure: it knows costs and a budget, neither models nor texts."""

from __future__ import annotations

import numpy as np


class Packing:
    """Items that are cut into batches one by one, dearest first.

    Neighbours in a batch have like costs, so that kernels meet runs of equal length and a batch that is
    padded after all wastes little. Equal costs keep their order, so the same costs always give the same batches.
    """

    def __init__(self, costs: np.ndarray) -> None:
        """costs: int64 (items,)."""
        self._order = np.argsort(-costs, kind="stable")
        self._ends = np.cumsum(costs[self._order])
        self._start, self._stop = 0, len(self._order)  # what is left: dear ones from the start, cheap ones to the stop

    def __bool__(self) -> bool:
        return self._start < self._stop

    @property
    def cost(self) -> int:
        """Of what is left."""
        return self._spent(self._stop) - self._spent(self._start)

    def take(self, budget: int) -> np.ndarray:
        """The next batch: int64 item indices, at most `budget` in cost and about as dear as those that follow.

        Even batches cost no more fill than full ones and a rest, and streams that run them side by side end
        together. An item above the budget is alone. Raises ValueError for a budget below 1.
        """
        if budget < 1:
            raise ValueError(f"the budget must be at least 1, not {budget}")
        spent = self._spent(self._start)
        left = self._spent(self._stop) - spent
        share = max(1, -(-left // max(1, -(-left // budget))))  # of the fewest batches that could take what is left
        stop = self._reach(spent + share) + 1  # the item that reaches it goes in, where it fits
        if stop > self._stop or self._spent(stop) > spent + budget:
            stop = int(np.searchsorted(self._ends, spent + budget, side="right"))
        return self._cut(min(max(stop, self._start + 1), self._stop))

    def fill(self, room: int) -> np.ndarray:
        """Items to top up a batch that has `room` left: the dearest ones as far as they fit, else the cheapest; maybe none."""
        spent = self._spent(self._start)
        stop = min(int(np.searchsorted(self._ends, spent + room, side="right")), self._stop)
        if stop > self._start:
            return self._cut(stop)
        first = self._reach(self._spent(self._stop) - room)
        first = max(first + 1, self._start)
        if first >= self._stop:
            return np.empty(0, np.int64)
        cheap = self._order[first : self._stop]
        self._stop = first
        return cheap

    def _cut(self, stop: int) -> np.ndarray:
        batch = self._order[self._start : stop]
        self._start = stop
        return batch

    def _spent(self, place: int) -> int:
        """Cost of the items before a place in the order."""
        return int(self._ends[place - 1]) if place else 0

    def _reach(self, cost: int) -> int:
        """The first place at whose end so much is spent."""
        return int(np.searchsorted(self._ends, cost))


def pack(costs: np.ndarray, budget: int) -> list[np.ndarray]:
    """All of the batches (see `Packing.take`)."""
    packing = Packing(costs)
    batches: list[np.ndarray] = []
    while packing:
        batches.append(packing.take(budget))
    return batches


def fill_ratio(costs: np.ndarray, batches: list[np.ndarray], budget: int) -> float:
    """Share of the offered budget that was used, 0..1; 1.0 for no batches."""
    offered = sum(max(budget, int(costs[batch].sum())) for batch in batches)
    return float(costs.sum()) / offered if offered else 1.0
