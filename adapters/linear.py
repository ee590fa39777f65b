"""Faster linear layers on CPUs: oneDNN with weights packed ahead, activation and residual add fused in.

Which of torch's own product and oneDNN's wins differs from CPU to CPU, so a short probe of the model's own
shapes decides. Knows layers and shapes, no model beyond the attribute names in its tables.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import time
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.errors import ModelError
from ..config.events import tell
from . import lora

log = logging.getLogger(__name__)

# Children of one module where the second is applied to the output of the first and to nothing else.
# fmt: off
FEED_FORWARD = (
    ("dense", "intermediate_act_fn"), ("lin1", "activation"), ("ffn", "activation"), ("fc1", "activation_fn"), ("wi", "act"),
    ("gate_proj", "act_fn"), ("wi_0", "act"),
)
# fmt: on
# Children of a gated feed-forward block: the layer with the activation, the one that it is multiplied with, the last.
GATED = (("gate_proj", "act_fn", "up_proj", "down_proj"), ("wi_0", "act", "wi_1", "wo"))
# Activation class -> how oneDNN calls it: (attribute, algorithm).
FUSED = {
    "GELUActivation": ("gelu", "none"),
    "GELU": ("gelu", "none"),
    "NewGELUActivation": ("gelu", "tanh"),
    "GELUTanh": ("gelu", "tanh"),
    "ReLU": ("relu", ""),
    "SiLUActivation": ("swish", ""),
    "SiLU": ("swish", ""),
}
# The same, where it cannot be fused.
ACTIVATIONS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("none", ""): lambda y: y,
    ("gelu", "none"): F.gelu,
    ("gelu", "tanh"): functools.partial(F.gelu, approximate="tanh"),
    ("relu", ""): F.relu,
    ("swish", ""): F.silu,
}
PROBE_TOKENS = 1024
PROBE_S = 0.05
# oneDNN is taken unless its bare product is clearly slower: fusing saves passes over memory that the probe does
# not see, and a choice near the border would differ from run to run, and the last bits of the results with it.
WORTH = 0.9
OVERRIDE = "LADING_LINEAR"  # environment: torch or onednn, without a probe


class PackedLinear(lora.Replacement):
    """`nn.Linear` with its weight in oneDNN's own blocked layout, followed by an activation if one is named.

    Where a LoRA adapter changes the layer, nothing can be fused to the product: what it adds comes first.
    """

    packed: Tensor

    def __init__(self, linear: nn.Linear, activation: tuple[str, str] = ("none", "")) -> None:
        super().__init__(linear)
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PROBE_TOKENS)
        self.register_buffer("packed", packed, persistent=False)
        self.bias, self.activation = linear.bias, activation

    def forward(self, x: Tensor) -> Tensor:
        name, algorithm = self.activation
        more = lora.delta(self, x)
        if more is None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, name, [], algorithm)
        y = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "").add_(more)
        return ACTIVATIONS[name, algorithm](y)

    def combined(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """The product, then `other` added ("add") or multiplied ("mul") to it in the same pass."""
        more = lora.delta(self, x)
        if more is None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, operation)
        y = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "").add_(more)
        return y.add_(other) if operation == "add" else y.mul_(other)


class Gated(nn.Module):
    """A gated feed-forward block: last(activation(gate(x)) * up(x)), activation and product fused into the layers before.

    In float32 its first two layers run at 1.15 times the speed (768 and 1024 to 3072, Zen 4). One layer of both widths gains
    nothing, nor does one for queries, keys and values; in bfloat16 the fused product loses.
    """

    def __init__(self, gate: PackedLinear, up: nn.Linear, last: nn.Linear) -> None:
        super().__init__()
        self.gate, self.up, self.last = gate, PackedLinear(up), PackedLinear(last)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up.combined(x, self.gate(x), "mul"))


class ResidualNorm(nn.Module):
    """Projection, residual add and layer norm, as the output blocks of the BERT family do them."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.dense = PackedLinear(block.get_submodule("dense"))  # pyright: ignore[reportArgumentType]
        self.LayerNorm = block.get_submodule("LayerNorm")

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.LayerNorm(self.dense.combined(hidden_states, input_tensor, "add"))


def speed_up(model: nn.Module) -> str:
    """Replace the model's linear layers in place where that pays; returns what now runs them, for receipts.

    The model must be on the CPU, in eval mode. Its own linear weights are given up.
    """
    dtype = next(model.parameters()).dtype
    choice = os.environ.get(OVERRIDE, "")
    if choice not in ("", "torch", "onednn"):
        raise ModelError(f"{OVERRIDE}={choice} is not known; valid: torch, onednn")
    if not _available(dtype):
        tell(log, "linear layers chosen", kernel="torch", why=f"oneDNN has no kernel for {dtype} here")
        return "torch"
    gain = 1.0 if choice else probe(model)
    if choice == "torch" or gain < WORTH:
        tell(log, "linear layers chosen", kernel="torch", why=f"oneDNN alone runs at {gain:.2f} of its speed")
        return "torch"
    replaced: set[nn.Module] = set()
    for block in list(model.modules()):
        if block not in replaced:
            _fuse(block, replaced)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
    tell(log, "linear layers chosen", kernel="onednn", why=f"{gain:.2f} times the speed of torch's before fusing")
    return "onednn"


def _available(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def probe(model: nn.Module) -> float:
    """How much faster oneDNN is on this model's shapes: torch's time divided by oneDNN's. Takes some 50 ms, the first time."""
    shapes = Counter((m.in_features, m.out_features) for m in model.modules() if type(m) is nn.Linear)
    return _gain(next(model.parameters()).dtype, tuple(sorted(shapes.items())))


@functools.cache  # a model that is loaded again runs on the same product, and gives the same bits
def _gain(dtype: torch.dtype, counted: tuple[tuple[tuple[int, int], int], ...]) -> float:
    """counted: how many layers there are of each (in, out)."""
    shapes = dict(counted)
    heavy = sorted(shapes, key=lambda shape: -shape[0] * shape[1] * shapes[shape])[:3]
    theirs = ours = 0.0
    with torch.inference_mode():
        for wide, high in heavy:
            linear = nn.Linear(wide, high, dtype=dtype)
            packed = PackedLinear(linear)
            x = torch.randn(PROBE_TOKENS, wide, dtype=dtype)
            times = _race(lambda: linear(x), lambda: packed(x), PROBE_S / len(heavy))  # noqa: B023
            theirs += times[0] * shapes[wide, high]
            ours += times[1] * shapes[wide, high]
    return theirs / ours if ours else 1.0


def _race(first: Callable[[], object], second: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Best time of each, taken by turns for about `seconds` after one unmeasured call."""
    first()
    second()
    best = [float("inf"), float("inf")]
    end = time.perf_counter() + seconds
    while True:
        for place, call in enumerate((first, second)):
            began = time.thread_time()  # torch has one thread, and other programs disturb this clock less
            call()
            best[place] = min(best[place], time.thread_time() - began)
        if time.perf_counter() > end:
            return best[0], best[1]


def _fuse(block: nn.Module, replaced: set[nn.Module]) -> None:
    """Put packed layers with a fused activation or residual into one block, where its shape is a known one; `replaced`: what gave way."""
    for linear, activation in FEED_FORWARD:
        layer, function = getattr(block, linear, None), getattr(block, activation, None)
        fused = FUSED.get(type(function).__name__)
        if type(layer) is nn.Linear and fused:
            setattr(block, linear, PackedLinear(layer, fused))
            setattr(block, activation, nn.Identity())
    for name, child in list(block.named_children()):
        if _is_residual_norm(child):
            setattr(block, name, ResidualNorm(child))
        elif gated := _gated(child):
            setattr(block, name, gated)
            replaced.add(child)


def _gated(block: nn.Module) -> Gated | None:
    """What takes the place of a gated feed-forward block; None for any other, told by what it makes of a few numbers."""
    for names in GATED:
        gate, act, up, last = (getattr(block, name, None) for name in names)
        fused = FUSED.get(type(act).__name__)
        if not (fused and isinstance(gate, nn.Linear) and isinstance(up, nn.Linear) and isinstance(last, nn.Linear)):
            continue
        if gate.weight.dtype != torch.float32:
            continue
        made = Gated(PackedLinear(gate, fused), up, last)
        with torch.inference_mode():
            x = torch.randn(3, gate.in_features, generator=torch.Generator().manual_seed(0))
            expected, found = block(x), made(x)
        if isinstance(expected, Tensor) and torch.allclose(found, expected, rtol=1e-3, atol=1e-5):
            return made
    return None


def _is_residual_norm(block: nn.Module) -> bool:
    if {name for name, _ in block.named_children()} != {"dense", "LayerNorm", "dropout"}:
        return False
    if list(inspect.signature(block.forward).parameters) != ["hidden_states", "input_tensor"]:
        return False
    return type(block.get_submodule("dense")) is nn.Linear and type(block.get_submodule("LayerNorm")) is nn.LayerNorm
