"""Linear layers in int8 on CPUs with AVX512_VNNI: weights with a scale for each output, activations with one for each row.

Products of whole numbers are exact and a row's scale is its own, so that a row's result depends on no neighbour, not even in its
last bit. What a scale for each batch would save is not worth that.
"""

from __future__ import annotations

import logging
import re

import torch
from torch import nn

from ..config.errors import ModelError
from . import lora

try:
    from . import _int8 as native  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:  # installed without a C compiler
    native = None

log = logging.getLogger(__name__)

PROBABLE_ROWS = 2048  # of a batch: what the layout of packed weights is chosen for
SMALLEST = 1e-30  # of a row's largest value, as in _int8.c
_BLOCKS = re.compile(r"(^|\.)\d+\.").search  # the names of layers in a transformer's blocks; what comes before and after stays


class Int8Linear(nn.Module):
    """`nn.Linear` whose product is of int8 weights and rows of uint8 activations, zero at 128; the rest is in the dtype of x."""

    adapts = True  # it asks lora.py itself

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        self.scales = weight.abs().amax(1).clamp_(min=SMALLEST) / 127  # float32 (out,)
        whole = (weight / self.scales[:, None]).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(whole, [PROBABLE_ROWS, self.in_features])
        self.zeros = torch.zeros(self.out_features, dtype=torch.int32)
        self.bias = linear.bias
        linear.__dict__["became"] = self  # for lora.now; no submodule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        whole, steps = quantise(rows)
        y = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, 128, self.packed, self.scales, self.zeros, None, 1.0, 0, x.dtype, "none", [], ""
        )
        steps = steps[:, None].to(x.dtype) if x.dtype != torch.float32 else steps[:, None]
        y = y.mul_(steps) if self.bias is None else torch.addcmul(self.bias, y, steps, out=y)
        y = y.view(*x.shape[:-1], self.out_features)
        more = lora.delta(self, x)
        return y if more is None else y.add_(more)


def quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n, width), float32 or bfloat16, as uint8 (n, width) with the zero at 128 and the size of a step, float32 (n,).

    Of a row that is not finite the step is not finite.
    """
    if native is not None:
        rows = rows.contiguous()
        whole, steps = torch.empty(rows.shape, dtype=torch.uint8), torch.empty(len(rows))
        half = rows.dtype == torch.bfloat16
        native.quantise(rows.data_ptr(), *rows.shape, whole.data_ptr(), steps.data_ptr(), half)
        return whole, steps
    rows = rows.float()
    most = rows.abs().amax(1).clamp_(min=SMALLEST)
    return (rows * (127 / most)[:, None]).round_().add_(128).to(torch.uint8), most / 127


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
            if type(child) is nn.Linear and _BLOCKS(f"{parent_name}.{name}"):
                setattr(parent, name, Int8Linear(child))
                done += 1
    if not done:
        raise ModelError("precision int8: the model has no linear layers in its blocks; use float32 or bfloat16")
    log.info("linear layers: %d in int8, quantised by %s", done, "torch" if native is None else "the native kernel")
