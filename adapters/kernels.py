"""Attention kernels for packed texts of different lengths, and what each is told. Knows no model, and not which one is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.errors import ModelError

OVERRIDE = "LADING_ATTENTION"  # environment: force a kernel by name, for tests and bug reports


@dataclasses.dataclass(frozen=True, slots=True)
class Segments:
    """Where each text of a packed batch lies. Texts of equal length that are neighbours form a run."""

    lengths: Tensor  # int64 (texts,), on the CPU
    edges: Tensor  # int32 (texts + 1,), on the device: cumulative lengths from 0
    longest: int
    runs: list[tuple[int, int, int]]  # (first token, texts, tokens per text)
    keys: Tensor | None = None  # int64 (texts,), on the device: so many first tokens of each are seen; None: all

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> Segments:
        """`lengths`: int64 (texts,), on the CPU, each at least 1."""
        edges = F.pad(lengths.cumsum(0), (1, 0))
        sizes, counts = torch.unique_consecutive(lengths, return_counts=True)
        starts = (sizes * counts).cumsum(0) - sizes * counts
        runs = list(zip(starts.tolist(), counts.tolist(), sizes.tolist(), strict=True))
        return cls(lengths, edges.to(device, torch.int32), int(lengths.max()), runs)


# query and key of equally long texts (texts, heads, size, width) -> what their scores get on top, (texts or 1, heads, size, size)
Bias = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """How one layer attends: all that a kernel needs beside the tensors."""

    scale: float
    causal: bool
    window: int | None  # a token sees those closer than this; None: all
    softcap: float | None = None  # scores are squeezed into (-softcap, softcap)
    bias: Bias | None = None  # added to the scores


# (query (tokens, heads, width), key and value (tokens, key heads, width), ...) -> (tokens, heads, width)
Kernel = Callable[[Tensor, Tensor, Tensor, Segments, Shape], Tensor]


def attend_in_runs(query: Tensor, key: Tensor, value: Tensor, segments: Segments, shape: Shape) -> Tensor:
    """torch's SDPA, once per run of equally long texts. Any device, dtype and shape; the only one that knows `Segments.keys`."""
    out, first = query.new_empty(*query.shape[:2], value.shape[2]), 0
    for start, count, size in segments.runs:
        stop = start + count * size
        q, k, v, o = (t[start:stop].unflatten(0, (count, size)).transpose(1, 2) for t in (query, key, value, out))
        keys = None if segments.keys is None else segments.keys[first : first + count]
        o.copy_(_sdpa(q, k, v, _seen(size, shape, keys, q.device), shape))
        first += count
    return out


def _seen(size: int, shape: Shape, keys: Tensor | None, device: torch.device) -> Tensor | None:
    """Which token sees which, bool (size, size) or, with `keys`, (texts, 1, size, size).

    None for all of them, or all before itself where SDPA has a word for it.
    """
    window = size if shape.window is None else shape.window
    said = not shape.causal or (shape.softcap is None and shape.bias is None)
    if keys is None and size <= window and said:
        return None
    places = torch.arange(size, device=device)
    distance = places[:, None] - places
    seen = distance.abs() < window
    if shape.causal:
        seen &= distance >= 0
    return seen if keys is None else seen & (places < keys[:, None])[:, None, None]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, shape: Shape) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
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


SCORES_IN_CACHE = 2**18  # elements of the score matrix that one bmm makes: 512 KiB of bfloat16 stay in L2


def attend_by_matmul(query: Tensor, key: Tensor, value: Tensor, segments: Segments, shape: Shape) -> Tensor:
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


def attend_natively(query: Tensor, key: Tensor, value: Tensor, segments: Segments, shape: Shape) -> Tensor:
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
    placed = [argument for one in (query, key, value) for argument in (one.data_ptr(), one.stride()[:2])]
    sizes = len(segments.lengths), heads, heads // key.shape[1], width
    rules = shape.scale, shape.window or 0, shape.causal, query.dtype == torch.bfloat16
    native().attend(*placed, out.data_ptr(), segments.edges.data_ptr(), *sizes, *rules)
    return out


def native() -> Any:
    """The compiled module. Raises ImportError where it was not built."""
    from . import _attention  # pyright: ignore[reportAttributeAccessIssue]

    return _attention


def attend_by_flash_attn(query: Tensor, key: Tensor, value: Tensor, segments: Segments, shape: Shape) -> Tensor:
    """The package flash-attn. CUDA, half precision."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    rules = {"softmax_scale": shape.scale, "window_size": _window(shape)}
    return flash_attn_varlen_func(query, key, value, *_cuts(segments), causal=shape.causal, **rules)


def attend_by_varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments, shape: Shape) -> Tensor:
    """torch's kernel of the same kind."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (one.contiguous() for one in (query, key, value))
    rules: dict[str, Any] = {"scale": shape.scale, "window_size": _window(shape)}
    mixed = varlen_attn(query, key, value, *_cuts(segments), enable_gqa=query.shape[1] != key.shape[1], **rules)
    return mixed if isinstance(mixed, Tensor) else mixed[0]


def _cuts(segments: Segments) -> tuple[Tensor, Tensor, int, int]:
    """Edges and longest text of queries, and of keys, as both flash kernels take them."""
    return segments.edges, segments.edges, segments.longest, segments.longest


def _window(shape: Shape) -> tuple[int, int]:
    """Tokens seen to the left and right, -1 for all, as both flash kernels count them."""
    left = -1 if shape.window is None else shape.window - 1
    return left, 0 if shape.causal else left
