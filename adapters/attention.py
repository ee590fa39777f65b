"""Variable-length attention over packed texts: the one place that knows which kernel runs, and why.

transformers calls `packed_attention` for every layer; the segments of the batch in flight come from
`attending`, because not every model hands keyword arguments down to its attention. Knows no model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Generator
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ..config.errors import ModelError

log = logging.getLogger(__name__)

IMPLEMENTATION = "lading_packed"  # the name under which transformers knows `packed_attention`
OVERRIDE = "LADING_ATTENTION"  # environment: force a backend by name, for tests and bug reports


@dataclasses.dataclass(frozen=True, slots=True)
class Segments:
    """Where each text of a packed batch lies. Texts of equal length that are neighbours form a run."""

    lengths: torch.Tensor  # int64 (texts,), on the CPU
    edges: torch.Tensor  # int32 (texts + 1,), on the device: cumulative lengths from 0
    longest: int
    runs: list[tuple[int, int, int]]  # (first token, texts, tokens per text)
    keys: torch.Tensor | None = (
        None  # int64 (texts,), on the device: only so many first tokens of each are seen; None: all
    )

    @classmethod
    def of(cls, lengths: torch.Tensor, device: torch.device) -> Segments:
        """`lengths`: int64 (texts,), on the CPU, each at least 1."""
        edges = F.pad(lengths.cumsum(0), (1, 0))
        sizes, counts = torch.unique_consecutive(lengths, return_counts=True)
        runs, start = [], 0
        for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
            runs.append((start, count, size))
            start += size * count
        return cls(lengths, edges.to(device, torch.int32), int(lengths.max()), runs)


# query and key of equally long texts (texts, heads, size, width) -> what their scores get on top, (texts or 1, heads, size, size)
Bias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """How one layer attends: all that a kernel needs beside the tensors."""

    scale: float
    causal: bool
    window: int | None  # a token sees those closer than this; None: all
    softcap: float | None = None  # scores are squeezed into (-softcap, softcap)
    bias: Bias | None = None  # added to the scores


# (query (tokens, heads, width), key and value (tokens, key heads, width), ...) -> (tokens, heads, width)
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Segments, Shape], torch.Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """A kernel, its name for logs and receipts, and what is lost by running it instead of a faster one."""

    name: str
    attend: Kernel
    warning: str = ""


class _InFlight(threading.local):
    segments: Segments | None = None
    backend: Backend | None = None


_in_flight = _InFlight()


@contextlib.contextmanager
def attending(segments: Segments, backend: Backend) -> Generator[None]:
    """While inside, this thread's forward passes are packed batches cut as `segments` says."""
    _in_flight.segments, _in_flight.backend = segments, backend
    try:
        yield
    finally:
        _in_flight.segments = _in_flight.backend = None


def segments_in_flight() -> Segments | None:
    """What `attending` was given, or None outside of it."""
    return _in_flight.segments


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function given to transformers: (1, heads, tokens, width) in, (1, tokens, heads, width) out.

    Raises ModelError where the layer asks for what packing cannot give, and when no packed batch is in
    flight: a padded batch must never pass for a packed one.
    """
    segments, backend = _in_flight.segments, _in_flight.backend
    if segments is None or backend is None or query.shape[0] != 1:
        raise ModelError("packed attention was called outside of a packed forward pass")
    if attention_mask is not None:
        raise ModelError("a mask reached packed attention; packed batches have none")
    bias, softcap = options.get("position_bias"), options.get("softcap")
    if options.get("s_aux") is not None:
        raise ModelError("packed attention has no s_aux")
    if isinstance(bias, torch.Tensor | float):  # over all tokens of the batch; bucketed.py gives it as a function
        raise ModelError("packed attention has no position_bias")
    decoder = bool(getattr(module, "is_causal", False))
    causal = decoder if is_causal is None else is_causal
    if decoder and not (causal and getattr(getattr(module, "config", None), "is_causal", True)):
        # Its checkpoint says that texts are read both ways. transformers' mask then counts the window's edge in.
        causal, sliding_window = False, sliding_window and sliding_window + 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    shape = Shape(scale, causal, sliding_window, softcap, bias)
    plain = bias is None and softcap is None
    if segments.keys is not None:
        if not plain:
            raise ModelError("tokens that nobody looks at go with neither relative positions nor a softcap")
        return attend_to_some(q, k, v, segments, shape)[None], None
    attend = backend.attend if plain else attend_in_runs
    return attend(q, k, v, segments, shape)[None], None


def no_mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> None:
    """The mask function given to transformers. Raises ModelError if anything is masked out."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ModelError("a padding mask reached packed attention; packed batches have none")


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, no_mask)


# -- kernels


def attend_in_runs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, shape: Shape
) -> torch.Tensor:
    """torch's SDPA, once per run of equally long texts. Any device, any dtype."""
    out = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
    for start, count, size in segments.runs:
        stop = start + count * size
        q, k, v, o = (t[start:stop].unflatten(0, (count, size)).transpose(1, 2) for t in (query, key, value, out))
        o.copy_(_sdpa(q, k, v, size, shape))
    return out


def attend_to_some(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, shape: Shape
) -> torch.Tensor:
    """torch's SDPA, once per run of equally long texts, where a text's last tokens see the others and nobody sees them."""
    assert segments.keys is not None
    out, first = query.new_empty(query.shape[0], query.shape[1], value.shape[2]), 0
    for start, count, size in segments.runs:
        stop = start + count * size
        q, k, v, o = (t[start:stop].unflatten(0, (count, size)).transpose(1, 2) for t in (query, key, value, out))
        places = torch.arange(size, device=q.device)
        seen = (places < segments.keys[first : first + count, None])[:, None, None]  # (texts, 1, 1, keys)
        distance = places[:, None] - places[None, :]
        if shape.window is not None:
            seen = seen & (distance.abs() < shape.window)
        if shape.causal:
            seen = seen & (distance >= 0)
        o.copy_(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=seen, scale=shape.scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        )
        first += count
    return out


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, size: int, shape: Shape) -> torch.Tensor:
    grouped = q.shape[1] != k.shape[1]
    seen = _seen(size, shape, q.device)
    if shape.softcap is not None:
        if grouped:
            k, v = (one.repeat_interleave(q.shape[1] // k.shape[1], 1) for one in (k, v))
        scores = torch.tanh(q @ k.transpose(2, 3) * (shape.scale / shape.softcap)) * shape.softcap
        scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    mask = seen
    if shape.bias is not None:
        bias = shape.bias(q, k)
        mask = bias if seen is None else bias.masked_fill(~seen, -torch.inf)
    causal = shape.causal and mask is None
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=shape.scale, enable_gqa=grouped
    )


def _seen(size: int, shape: Shape, device: torch.device) -> torch.Tensor | None:
    """Which token sees which, bool (size, size); None for all of them, or all before itself where SDPA has a word for it."""
    window = size if shape.window is None else shape.window
    if size <= window and (not shape.causal or (shape.softcap is None and shape.bias is None)):
        return None
    places = torch.arange(size, device=device)
    distance = places[:, None] - places[None, :]
    seen = distance.abs() < window
    return seen & (distance >= 0) if shape.causal else seen


SCORES_IN_CACHE = 2**18  # elements of the score matrix that one bmm makes: 512 KiB of bfloat16 stay in L2


def attend_by_matmul(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, shape: Shape
) -> torch.Tensor:
    """Two batched matrix products and a softmax, in pieces that stay in cache. CPU, half precision.

    On CPUs with bfloat16 matrix instructions this runs at 1.2 to 1.5 times the speed of torch's SDPA (head
    size 32, 16 to 512 tokens): SDPA's own loop converts to float32 and back.
    """
    if shape.causal or shape.window is not None or query.shape[1:] != key.shape[1:] or key.shape != value.shape:
        return attend_in_runs(query, key, value, segments, shape)
    heads, width = query.shape[1:]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for start, count, size in segments.runs:
        step = max(1, SCORES_IN_CACHE // (heads * size * size))
        for first in range(0, count, step):
            texts = min(step, count - first)
            rows = slice(start + first * size, start + (first + texts) * size)
            q, k, v = (
                t[rows].unflatten(0, (texts, size)).transpose(1, 2).reshape(texts * heads, size, width)
                for t in (query, key, value)
            )
            empty = q.new_empty(1, 1, 1).expand(texts * heads, size, size)
            scores = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=shape.scale)
            mixed = torch.bmm(torch.softmax(scores, -1), v).view(texts, heads, size, width)
            out[rows].unflatten(0, (texts, size)).copy_(mixed.transpose(1, 2))
    return out


NATIVE_WIDTHS = (16, 32, 64, 96, 128)  # head sizes that _attention.c is compiled for


def attend_natively(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, shape: Shape
) -> torch.Tensor:
    """Our own kernel (_attention.c), all texts and heads in one call. CPU with AVX-512, float32 and bfloat16.

    On Zen 4 it takes 0.4 of the time of `attend_by_matmul` in bfloat16, with half the error, and 0.75 of that of SDPA in
    float32.
    """
    # C trusts what it is given: whatever a model may hand over, it is looked at here.
    tokens, heads, width = query.shape
    if width not in NATIVE_WIDTHS:
        raise ModelError(f"the native attention kernel has no head size {width}; set {OVERRIDE}=sdpa-runs")
    given = {(one.device.type, one.dtype) for one in (query, key, value)}
    known = given <= {("cpu", torch.float32)} or given <= {("cpu", torch.bfloat16)}
    alike = key.shape == value.shape == (tokens, key.shape[1], width) and heads % key.shape[1] == 0
    if not (known and alike and tokens == int(segments.edges[-1])):
        shapes = ", ".join(f"{tuple(one.shape)} {one.dtype} on {one.device}" for one in (query, key, value))
        raise ModelError(f"the native attention kernel cannot take {shapes}; set {OVERRIDE}=sdpa-runs")
    query, key, value = (one if one.stride(2) == 1 else one.contiguous() for one in (query, key, value))
    out = torch.empty(query.shape, dtype=query.dtype)
    edges = segments.edges
    placed = [argument for one in (query, key, value) for argument in (one.data_ptr(), one.stride()[:2])]
    sizes = len(segments.lengths), heads, heads // key.shape[1], width
    half = query.dtype == torch.bfloat16
    rules = shape.scale, shape.window or 0, shape.causal, half
    _native().attend(*placed, out.data_ptr(), edges.data_ptr(), *sizes, *rules)
    return out


def _flash_attn(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, shape: Shape
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    edges, longest = segments.edges, segments.longest
    return flash_attn_varlen_func(
        query,
        key,
        value,
        edges,
        edges,
        longest,
        longest,
        softmax_scale=shape.scale,
        causal=shape.causal,
        window_size=_window(shape),
    )


def _torch_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, shape: Shape
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    edges, longest = segments.edges, segments.longest
    mixed = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        edges,
        edges,
        longest,
        longest,
        scale=shape.scale,
        window_size=_window(shape),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed if isinstance(mixed, torch.Tensor) else mixed[0]


def _window(shape: Shape) -> tuple[int, int]:
    """Tokens seen to the left and right, -1 for all, as both flash kernels count them."""
    left = -1 if shape.window is None else shape.window - 1
    return left, 0 if shape.causal else left


# -- the choice


BACKENDS = {
    "flash-attn": Backend("flash-attn", _flash_attn),
    "torch-varlen": Backend("torch-varlen", _torch_varlen),
    "sdpa-runs": Backend("sdpa-runs", attend_in_runs),
    "matmul-runs": Backend("matmul-runs", attend_by_matmul),
    "native": Backend("native", attend_natively),
}


def choose(device: torch.device, dtype: torch.dtype, width: int, asks: str = "") -> Backend:
    """The fastest kernel that this device, dtype, head size and installation have; what is missing is logged.

    asks: what the model adds to its scores that torch's SDPA alone gives, if anything.

    LADING_ATTENTION forces one by name; a name that is unknown, or cannot run here, raises ModelError.
    """
    forced = os.environ.get(OVERRIDE)
    if asks:
        slower = f"attention with {asks} runs as one SDPA call per run of equal lengths, which is slower"
        backend = dataclasses.replace(BACKENDS["sdpa-runs"], warning=slower if device.type == "cuda" else "")
    elif forced:
        if forced not in BACKENDS:
            raise ModelError(f"{OVERRIDE}={forced} is not a backend; valid: {', '.join(sorted(BACKENDS))}")
        lack = _lack_of_native(device, dtype, width) if forced == "native" else ""
        if lack:
            raise ModelError(f"{OVERRIDE}=native cannot run: {lack}")
        backend = BACKENDS[forced]
    else:
        backend = _fastest(device, dtype, width)
    if backend.warning:
        log.warning(backend.warning)
    log.info("attention: %s on %s in %s", backend.name, device.type, str(dtype).removeprefix("torch."))
    return backend


def _fastest(device: torch.device, dtype: torch.dtype, width: int) -> Backend:
    half = dtype in (torch.float16, torch.bfloat16)
    if device.type == "cpu":
        lack = _lack_of_native(device, dtype, width)
        if not lack:
            return BACKENDS["native"]
        log.info("attention: not by the native kernel: %s", lack)
        return BACKENDS["matmul-runs" if dtype == torch.bfloat16 else "sdpa-runs"]
    if device.type != "cuda" or not half:
        reason = f"no variable-length attention kernel for {str(dtype).removeprefix('torch.')} on {device.type}"
        return dataclasses.replace(
            BACKENDS["sdpa-runs"], warning=f"{reason}: one SDPA call per run of equal lengths, which is slower"
        )
    if _has_flash_attn():
        return BACKENDS["flash-attn"]
    if _has_torch_varlen():
        return BACKENDS["torch-varlen"]
    return dataclasses.replace(
        BACKENDS["sdpa-runs"],
        warning="neither flash-attn nor torch's varlen kernel is installed: one SDPA call per run of equal lengths, "
        "which is slower; install torch >= 2.10, or lading[cuda]",
    )


def _lack_of_native(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Why the native kernel cannot run, "" if it can."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return f"it has no {str(dtype).removeprefix('torch.')} on {device.type}"
    if width not in NATIVE_WIDTHS:
        return f"it has no head size {width}, only {', '.join(map(str, NATIVE_WIDTHS))}"
    try:
        supported = _native().supports()[dtype == torch.bfloat16]
    except ImportError:
        return "lading was installed without a C compiler, so it is not there"
    return "" if supported else "this CPU has no AVX-512" + (" with bfloat16" if dtype == torch.bfloat16 else "")


def _native() -> Any:
    """The compiled module. Raises ImportError where it was not built."""
    from . import _attention  # pyright: ignore[reportAttributeAccessIssue]

    return _attention


def _has_flash_attn() -> bool:
    try:
        import flash_attn  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError:
        return False
    return True


def _has_torch_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    return True
