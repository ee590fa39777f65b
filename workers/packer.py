"""Forms device batches from item costs. Pure: it knows costs and a budget, neither models nor texts."""

from __future__ import annotations

import numpy as np


def pack(costs: np.ndarray, budget: int) -> list[np.ndarray]:
    """Batches of item indices (int64), each at most `budget` in cost and about as dear as the others, dearest items first.

    Neighbours in a batch have like costs, so that kernels meet runs of equal length and a batch that is
    padded after all wastes little. Even batches cost no more fill than full ones and a rest, and streams that run them side
    by side end together. An item above the budget runs alone. Equal costs keep their order, so the same costs always give
    the same batches.
    """
    if budget < 1:
        raise ValueError(f"the budget must be at least 1, not {budget}")
    order = np.argsort(-costs, kind="stable")
    ends = np.cumsum(costs[order])
    batches: list[np.ndarray] = []
    start, spent = 0, 0
    while start < len(order):
        left = int(ends[-1]) - spent
        share = max(1, -(-left // max(1, -(-left // budget))))  # of the fewest batches that could take what is left
        stop = int(np.searchsorted(ends, spent + share)) + 1  # the item that reaches it goes in, where it fits
        if stop > len(order) or ends[stop - 1] > spent + budget:
            stop = int(np.searchsorted(ends, spent + budget, side="right"))
        stop = max(stop, start + 1)
        batches.append(order[start:stop])
        start, spent = stop, int(ends[stop - 1])
    return batches


def fill_ratio(costs: np.ndarray, batches: list[np.ndarray], budget: int) -> float:
    """Share of the offered budget that was used, 0..1; 1.0 for no batches."""
    offered = sum(max(budget, int(costs[batch].sum())) for batch in batches)
    return float(costs.sum()) / offered if offered else 1.0
