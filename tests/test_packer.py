"""The packer: batches under a budget, nothing lost, the same for the same costs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.workers.packer import fill_ratio, pack

costs_lists = st.lists(st.integers(1, 600), max_size=300)


@given(costs_lists, st.integers(1, 1000))
def test_every_item_is_in_exactly_one_batch(costs, budget):
    """Packing is a partition of the items."""
    batches = pack(np.array(costs, np.int64), budget)
    assert sorted(int(item) for batch in batches for item in batch) == list(range(len(costs)))


@given(costs_lists, st.integers(1, 1000))
def test_no_batch_is_above_the_budget_unless_one_item_is(costs, budget):
    """Only an item that is itself above the budget makes a batch that is, and then it runs alone."""
    array = np.array(costs, np.int64)
    for batch in pack(array, budget):
        assert array[batch].sum() <= budget or len(batch) == 1


def filled_one_after_the_other(costs: list[int], budget: int) -> int:
    """How many batches there are when each is filled until the next item does not fit."""
    batches, spent = 0, budget
    for cost in sorted(costs, reverse=True):
        batches, spent = (batches, spent + cost) if spent + cost <= budget else (batches + 1, cost)
    return batches


@given(costs_lists, st.integers(1, 1000))
def test_even_batches_are_not_more_batches(costs, budget):
    """Sharing the items out evenly takes no more batches than filling one after the other does."""
    assert len(pack(np.array(costs, np.int64), budget)) <= filled_one_after_the_other(costs, budget)


@pytest.mark.parametrize("texts", [30, 100, 205, 206, 411, 1000])
def test_batches_are_about_equally_dear(texts):
    """What is left for the last batch is shared with the others: streams that run them side by side end together."""
    costs = np.random.default_rng(texts).integers(5, 35, texts)
    sums = [int(costs[batch].sum()) for batch in pack(costs, 1024)]
    assert max(sums) - min(sums) <= 2 * costs.max()


@given(costs_lists, st.integers(1, 1000))
def test_dearest_items_come_first_and_equal_ones_keep_their_order(costs, budget):
    """The order is by falling cost, stable: the same costs always give the same batches."""
    array = np.array(costs, np.int64)
    order = np.concatenate([*pack(array, budget), np.empty(0, np.int64)]).astype(np.int64)
    assert order.tolist() == sorted(range(len(costs)), key=lambda item: (-costs[item], item))


def test_fill_of_real_lengths_is_high():
    """On lengths like those of real texts a 4,096-token budget is filled to more than 95 %."""
    costs = np.clip(np.random.default_rng(0).lognormal(4, 0.9, 4000), 3, 512).astype(np.int64)
    assert fill_ratio(costs, pack(costs, 4096), 4096) > 0.95


def test_a_budget_below_one_is_refused():
    """A budget that nothing fits is an error, not an endless loop."""
    with pytest.raises(ValueError, match="at least 1"):
        pack(np.array([1], np.int64), 0)
