"""Variable-length attention over packed texts: the one place that knows which kernel runs, and why.

transformers calls `packed_attention` for every layer; the segments of the batch in flight come from
`attending`, because not every model hands keyword arguments down to its attention. Knows no model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Generator
from contextvars import ContextVar
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ..config.errors import ModelError
from ..config.events import tell
from . import kernels
from .kernels import NATIVE_WIDTHS, OVERRIDE, Kernel, Segments, Shape

log = logging.getLogger(__name__)

IMPLEMENTATION = "lading_packed"  # the name under which transformers knows `packed_attention`


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """A kernel, and its name for logs and receipts."""

    name: str
    attend: Kernel


BACKENDS = {
    "flash-attn": Backend("flash-attn", kernels.attend_by_flash_attn),
    "torch-varlen": Backend("torch-varlen", kernels.attend_by_varlen),
    "sdpa-runs": Backend("sdpa-runs", kernels.attend_in_runs),
    "matmul-runs": Backend("matmul-runs", kernels.attend_by_matmul),
    "native": Backend("native", kernels.attend_natively),
}

# Every thread has a value of its own.
_in_flight: ContextVar[tuple[Segments, Backend] | None] = ContextVar("_in_flight", default=None)


@contextlib.contextmanager
def attending(segments: Segments, backend: Backend) -> Generator[None]:
    """While inside, this thread's forward passes are packed batches cut as `segments` says."""
    before = _in_flight.set((segments, backend))
    try:
        yield
    finally:
        _in_flight.reset(before)


def segments_in_flight() -> Segments | None:
    """What `attending` was given, or None outside of it."""
    found = _in_flight.get()
    return found and found[0]


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function given to transformers: (1, heads, tokens, width) in, (1, tokens, heads, width) out.

    Raises ModelError where the layer asks for what packing cannot give, and when no packed batch is in
    flight: a padded batch must never pass for a packed one.
    """
    in_flight = _in_flight.get()
    if in_flight is None or query.shape[0] != 1:
        raise ModelError("packed attention was called outside of a packed forward pass")
    if attention_mask is not None:
        raise ModelError("a mask reached packed attention; packed batches have none")
    bias, softcap = options.get("position_bias"), options.get("softcap")
    if options.get("s_aux") is not None:
        raise ModelError("packed attention has no s_aux")
    if isinstance(bias, Tensor | float):  # over all tokens of the batch; bucketed.py gives it as a function
        raise ModelError("packed attention has no position_bias")
    decoder = bool(getattr(module, "is_causal", False))
    causal = decoder if is_causal is None else is_causal
    if decoder and not (causal and getattr(getattr(module, "config", None), "is_causal", True)):
        # Its checkpoint says that texts are read both ways. transformers' mask then counts the window's edge in.
        causal, sliding_window = False, sliding_window and sliding_window + 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    segments, backend = in_flight
    plain = bias is None and softcap is None
    if segments.keys is not None and not plain:
        raise ModelError("tokens that nobody looks at go with neither relative positions nor a softcap")
    attend = backend.attend if plain and segments.keys is None else kernels.attend_in_runs
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return attend(q, k, v, segments, Shape(scale, causal, sliding_window, softcap, bias))[None], None


def no_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """The mask function given to transformers. Raises ModelError if anything is masked out."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ModelError("a padding mask reached packed attention; packed batches have none")


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, no_mask)


# -- the choice


def choose(device: torch.device, dtype: torch.dtype, width: int, asks: str = "") -> Backend:
    """The fastest kernel that this device, dtype, head size and installation have; what is missing is logged.

    asks: what the model adds to its scores that torch's SDPA alone gives, if anything.

    LADING_ATTENTION forces one by name; a name that is unknown, or cannot run here, raises ModelError.
    """
    name = os.environ.get(OVERRIDE)
    if asks:
        name = "sdpa-runs" if device.type != "cuda" else _slower(f"attention with {asks} runs as")
    elif not name:
        name = _fastest(device, dtype, width)
    elif name not in BACKENDS:
        raise ModelError(f"{OVERRIDE}={name} is not a backend; valid: {', '.join(sorted(BACKENDS))}")
    elif name == "native" and (lack := _lack_of_native(device, dtype, width)):
        raise ModelError(f"{OVERRIDE}=native cannot run: {lack}")
    tell(log, "attention chosen", kernel=name, device=device.type, precision=_name(dtype))
    return BACKENDS[name]


def _fastest(device: torch.device, dtype: torch.dtype, width: int) -> str:
    if device.type == "cpu":
        lack = _lack_of_native(device, dtype, width)
        if not lack:
            return "native"
        tell(log, "attention not native", why=lack)
        return "matmul-runs" if dtype == torch.bfloat16 else "sdpa-runs"
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return _slower(f"no variable-length attention kernel for {_name(dtype)} on {device.type}:")
    if _is_there("flash_attn"):
        return "flash-attn"
    if _is_there("torch.nn.attention.varlen"):
        return "torch-varlen"
    return _slower("neither flash-attn (lading[cuda]) nor torch's varlen kernel (torch >= 2.10) is installed:")


def _slower(why: str) -> str:
    tell(log, "attention slow", why=f"{why} one SDPA call per run of equal lengths")
    return "sdpa-runs"


def _lack_of_native(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Why the native kernel cannot run, "" if it can."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return f"it has no {_name(dtype)} on {device.type}"
    if width not in NATIVE_WIDTHS:
        return f"it has no head size {width}, only {', '.join(map(str, NATIVE_WIDTHS))}"
    try:
        supported = kernels.native().supports()[dtype == torch.bfloat16]
    except ImportError:
        return "lading was installed without a C compiler, so it is not there"
    return "" if supported else "this CPU has no AVX-512" + (" with bfloat16" if dtype == torch.bfloat16 else "")


def _is_there(module: str) -> bool:
    """Whether it can be imported, which is more than that its files are there."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
