"""Linear layers in int8 on CPUs with AVX512_VNNI: weights with a scale for each output, activations with one for each row.

Products of whole numbers are exact and a row's scale is its own, so that a row's result depends on no neighbour, not even in its
last bit. What a scale for each batch would save is not worth that.
"""

from __future__ import annotations

import logging
import re

import torch
from torch import Tensor, nn

from ..config.errors import ModelError
from ..config.events import tell
from . import lora

try:
    from . import _int8 as native  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:  # installed without a C compiler
    native = None

log = logging.getLogger(__name__)

PROBABLE_ROWS = 2048  # of a batch: what the layout of packed weights is chosen for
SMALLEST = 1e-30  # of a row's range, as in _int8.c
_BLOCKS = re.compile(r"(^|\.)\d+\.")  # names of layers in a transformer's blocks; others stay


class Int8Linear(lora.Replacement):
    """`nn.Linear` whose product is of int8 weights and rows of uint8 activations; what comes in and out is float32 or bfloat16.

    x = step * (whole - 128) + middle, so x W = step * (whole - 128) W + middle * (the sums over W's inputs).
    """

    packed: Tensor
    scales: Tensor
    sums: Tensor
    zeros: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(1).clamp_(min=SMALLEST) / 127  # float32 (out,)
        whole = (weight / scales[:, None]).round_()
        bias: Tensor | None = getattr(linear, "bias", None)
        held = {
            "scales": scales,
            "sums": whole.sum(1) * scales,
            "packed": torch.ops.onednn.qlinear_prepack(whole.to(torch.int8), [PROBABLE_ROWS, self.in_features]),
            "zeros": torch.zeros(self.out_features, dtype=torch.int32),
            "bias": torch.zeros(self.out_features) if bias is None else bias.detach().float(),
        }
        for name, tensor in held.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        whole, steps, middles = quantise(rows)
        # In float32: where a row has an outlier, its middle is large, and what is added for it would not cancel in bfloat16.
        y = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, 128, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = finish(y, steps, middles, self.sums, self.bias).to(x.dtype).view(*x.shape[:-1], self.out_features)
        more = lora.delta(self, x)
        return y if more is None else y.add_(more)


def quantise(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (n, width), float32 or bfloat16, as uint8 (n, width), with each row's step and middle, float32 (n,).

    The middle between a row's ends is at 128 and they are 127 steps away: after a GELU, which has hardly any values below zero,
    this is twice as fine as with zero there. Of a row that is not finite the step is not finite.
    """
    if native is not None:
        rows = rows.contiguous()
        whole, (steps, middles) = torch.empty(rows.shape, dtype=torch.uint8), torch.empty(2, len(rows))
        to = whole.data_ptr(), steps.data_ptr(), middles.data_ptr()
        native.quantise(rows.data_ptr(), *rows.shape, *to, rows.dtype == torch.bfloat16)
        return whole, steps, middles
    rows = rows.float()
    low, high = rows.aminmax(dim=1)
    span, middles = (high - low).clamp_(min=SMALLEST), high / 2 + low / 2
    whole = ((rows - middles[:, None]) * (254 / span)[:, None]).round_().add_(128).to(torch.uint8)
    return whole, span / 254, middles


def finish(y: Tensor, steps: Tensor, middles: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
    """y (n, out) * steps (n,) + middles (n,) * sums (out,) + bias (out,), computed in float32, in the dtype of y."""
    if native is not None and y.is_contiguous():
        given = steps.data_ptr(), middles.data_ptr(), sums.data_ptr(), bias.data_ptr()
        native.finish(y.data_ptr(), *y.shape, *given, y.dtype == torch.bfloat16)
        return y
    more = torch.addcmul(bias, middles[:, None], sums)
    return torch.addcmul(more, y.float(), steps[:, None]).to(y.dtype)


def check(device: torch.device) -> None:
    """Raises ModelError unless int8 products run here at the speed that they are there for."""
    if device.type != "cpu":
        raise ModelError(f"precision int8 runs on CPUs only, not on {device.type}: use bfloat16 or float16 there")
    if not torch.cpu._is_vnni_supported():
        raise ModelError("precision int8 needs a CPU with AVX512_VNNI, which this one lacks: use float32 or bfloat16")


def speed_up(model: nn.Module) -> None:
    """Replace the linear layers of the transformer's blocks in place; their own weights are given up."""
    done = 0
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _BLOCKS.search(f"{parent_name}.{name}"):
                setattr(parent, name, Int8Linear(child))
                done += 1
    if not done:
        raise ModelError("precision int8: the model has no linear layers in its blocks; use float32 or bfloat16")
    tell(log, "linear layers quantised", layers=done, kernel="torch" if native is None else "native")
