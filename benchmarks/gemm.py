"""How fast this machine multiplies matrices of a model's shapes, and how many operations its forward pass takes.

The bound that no implementation in the same precision passes; a share of it says more than a rate.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode

Clock = Callable[[], float]
ROWS = (512, 1024, 2048, 4096)  # tokens at once; the best counts
ROUNDS = 7


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """A BERT-like encoder as far as the operation count depends on it."""

    layers: int
    width: int
    inner: int

    def operations(self, lengths: Sequence[int]) -> int:
        """Floating-point operations of texts with these many tokens, unpadded: linear layers and attention."""
        linears = 2 * self.layers * (4 * self.width**2 + 2 * self.width * self.inner) * sum(lengths)
        attention = 4 * self.layers * self.width * sum(length**2 for length in lengths)
        return linears + attention

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """(inputs, outputs, how often per layer) of the linear layers; query, key and value as one."""
        width, inner = self.width, self.inner
        return [(width, 3 * width, 1), (width, width, 1), (width, inner, 1), (inner, width, 1)]


def counted(model: torch.nn.Module, at: int = 16) -> Callable[[Sequence[int]], int]:
    """The floating-point operations of a model over texts with these many tokens, unpadded, as torch counts those of three short ones.

    They grow with a text's length and its square (attention, windows counted as if they were whole).
    """
    model.requires_grad_(False)  # torch's counter trips over parameters that are given as arguments
    found: list[int] = []
    for length in (at, 2 * at, 3 * at):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(input_ids=torch.full((1, length), 5), attention_mask=torch.ones(1, length, dtype=torch.long))
        found.append(counter.get_total_flops())
    square = (found[2] - 2 * found[1] + found[0]) / (2 * at * at)
    linear_ = (found[1] - found[0]) / at - 3 * at * square
    return lambda lengths: round(sum(linear_ * length + square * length**2 for length in lengths))


def peak(sizes: Sizes, dtype: torch.dtype, *, prepacked: bool = True, clock: Clock = time.perf_counter) -> float:
    """GFLOP/s over the model's linear layers on torch's threads: oneDNN with prepacked weights, or torch's own. With one thread
    `time.process_time` leaves out what other programs took of the core."""
    taken = operations = 0.0
    with torch.inference_mode():
        for inputs, outputs, times in sizes.products:
            rate = max(_rate(rows, inputs, outputs, dtype, prepacked, clock) for rows in ROWS)
            work = 2.0 * inputs * outputs * times
            operations, taken = operations + work, taken + work / rate
    return operations / taken / 1e9


def _rate(rows: int, inputs: int, outputs: int, dtype: torch.dtype, prepacked: bool, clock: Clock) -> float:
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    if prepacked:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        seconds = _best(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""), clock)
    else:
        seconds = _best(lambda: linear(x, weight, bias), clock)
    return 2.0 * rows * inputs * outputs / seconds


def _best(call: Callable[[], object], clock: Clock) -> float:
    call()
    best = float("inf")
    for _ in range(ROUNDS):
        began = clock()
        call()
        best = min(best, clock() - began)
    return best
