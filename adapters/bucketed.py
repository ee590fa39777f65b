"""Attention with relative positions in its scores (MPNet, DeBERTa-v2, T5 encoders), which no kernel for packed texts takes.

Linear layers stay packed. Attention alone runs once for all texts of one length, and the bias is handed to it as a function
of that length: made once for the longest text so far, shorter ones have a corner of it.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config.errors import ModelError
from .attention import packed_attention

ROUND = 64  # lengths are rounded up to this when a table is made, so that a slightly longer text needs no new one


class Corner:
    """A table over pairs of places that depends on their distance alone. Threads share one."""

    def __init__(self, make: Callable[[int], Tensor]) -> None:
        """make: size -> (..., size, size)."""
        self._make, self._lock = make, threading.Lock()
        self._made: Tensor | None = None

    def of(self, size: int) -> Tensor:
        made = self._made
        if made is None or made.shape[-1] < size:
            with self._lock:
                self._made = made = self._make(-(-size // ROUND) * ROUND)
        return made[..., :size, :size]

    def __call__(self, query: Tensor, _key: Tensor) -> Tensor:
        """As a bias: see `attention.Bias`."""
        return self.of(query.shape[2])


def adapt(model: nn.Module) -> str:
    """Make the model's attention run packed where it has relative positions; returns what they are called, "" if none.

    Raises ModelError for a variant that mixes neighbouring tokens outside of its attention.
    """
    found = [(shim, module) for module in model.modules() if (shim := SHIMS.get(type(module).__name__))]
    for shim, module in found:
        shim(module)
    return "relative positions" if found else ""


# -- T5: one bias for all layers (umT5: one each), from the first layer's attention to the next as `position_bias`


def _t5(module: Any) -> None:
    make = module.compute_bias
    if module.has_relative_attention_bias:
        corner = Corner(lambda size: make(size, size))
        module.compute_bias = lambda *_args, **_options: corner


# -- MPNet: one bias for all layers, from the encoder


def _mpnet_encoder(module: Any) -> None:
    make, weight = module.compute_position_bias, module.relative_attention_bias.weight
    corner = Corner(lambda size: make(weight.new_empty(1, size, 1)))
    module.compute_position_bias = lambda *_args, **_options: corner


def _mpnet_attention(module: Any) -> None:
    def forward(hidden: Tensor, _mask: Any = None, position_bias: Any = None, **_options: Any) -> Any:
        q, k, v = (_heads(layer(hidden), module) for layer in (module.q, module.k, module.v))
        mixed, _ = packed_attention(module, q, k, v, None, position_bias=position_bias)
        return (module.o(mixed.flatten(2)),)

    module.forward = forward


# -- DeBERTa-v2: every layer has its own products of contents and distances (https://arxiv.org/abs/2006.03654, section 3.1)


def _deberta_encoder(module: Any) -> None:
    if module.conv is not None:
        raise ModelError("it has a convolution over neighbouring tokens (conv_kernel_size)")
    # Both would make a matrix over all pairs of tokens of a batch, and `_deberta_attention` needs neither.
    module.get_attention_mask = lambda mask: mask
    module.get_rel_pos = lambda *_args, **_options: None


def _deberta_attention(module: Any) -> None:
    terms = [kind for kind in ("c2p", "p2c") if kind in module.pos_att_type]
    scale = (module.attention_head_size * (1 + len(terms))) ** -0.5
    bias = Disentangled(module, scale) if module.relative_attention and terms else None

    def forward(
        hidden: Tensor, *_mask: Any, query_states: Any = None, relative_pos: Any = None, rel_embeddings: Any = None
    ) -> tuple[Tensor, None]:
        if query_states is not None or relative_pos is not None:
            raise ModelError("it hands queries or positions of its own to its attention")
        layers = module.query_proj, module.key_proj, module.value_proj
        q, k, v = (_heads(layer(hidden), module) for layer in layers)
        if bias is not None and rel_embeddings is not None:
            bias.project(rel_embeddings)
        mixed, _ = packed_attention(module, q, k, v, None, scaling=scale, position_bias=bias)
        return mixed.flatten(2), None

    module.forward = forward


def _of_distances(attention: Any) -> dict[str, nn.Module]:
    """The layers that distances go through: keys for contents to meet (c2p), queries to meet contents (p2c)."""
    before = "" if attention.share_att_key else "pos_"
    names = (("c2p", "key_proj"), ("p2c", "query_proj"))
    return {kind: getattr(attention, before + name) for kind, name in names if kind in attention.pos_att_type}


def made_once(model: nn.Module) -> set[nn.Module]:
    """The layers whose products with distances are kept, so that no LoRA adapter may change them."""
    shimmed = [module for module in model.modules() if SHIMS.get(type(module).__name__) is _deberta_attention]
    return {layer for module in shimmed for layer in _of_distances(module).values()}


_PROJECTED = {"c2p": "lading_distances_of_keys", "p2c": "lading_distances_of_queries"}


class Disentangled:
    """The bias of one layer: content to position, and position to content. Distances are projected once, not once a batch."""

    def __init__(self, attention: Any, scale: float) -> None:
        self.attention, self.scale, self.span = attention, scale, int(attention.pos_ebd_size)

    def project(self, distances: Tensor) -> None:
        """distances: (2 * span, hidden), the same in every batch."""
        layer = self.attention
        if any(hasattr(layer, name) for name in _PROJECTED.values()):
            return
        given = distances[None, : 2 * self.span]
        made = {kind: _heads(project(given), layer)[0] for kind, project in _of_distances(layer).items()}
        for kind, one in made.items():  # buffers, so that they come and go with the model's weights
            layer.register_buffer(_PROJECTED[kind], one * self.scale, persistent=False)

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        """See `attention.Bias`."""
        texts, heads, size, _ = query.shape
        layer = self.attention
        rule = type(layer), layer.position_buckets, layer.max_relative_positions
        distances, reach = _distances(*rule, query.device).of(size), _farthest(*rule, size)
        low, high = max(self.span - reach, 0), min(self.span + reach, 2 * self.span - 1)
        bias = query.new_zeros(())
        for kind, name in _PROJECTED.items():
            if (projected := getattr(layer, name, None)) is None:
                continue
            content, sign = (query, 1) if kind == "c2p" else (key, -1)
            places = (sign * distances + self.span).clamp(low, high) - low
            found = content @ projected[:, low : high + 1].transpose(1, 2)
            found = found.gather(-1, places.expand(texts, heads, size, size))
            bias = bias + (found if kind == "c2p" else found.transpose(2, 3))
        return bias


@functools.cache
def _distances(kind: type, buckets: int, most: int, device: torch.device) -> Corner:
    """From token to token, int64 (size, size), larger ones in buckets; all layers share them."""
    build = sys.modules[kind.__module__].build_relative_position

    def make(size: int) -> Tensor:
        places = torch.empty(size, 1, device=device)
        return build(places, places, bucket_size=buckets, max_position=most)[0]

    return Corner(make)


@functools.cache
def _farthest(kind: type, buckets: int, most: int, size: int) -> int:
    """The distance between a text's first and last token."""
    return int(_distances(kind, buckets, most, torch.device("cpu")).of(size)[-1, 0])


def _heads(x: Tensor, module: Any) -> Tensor:
    """(1, tokens, heads * width) -> (1, heads, tokens, width)."""
    return x.unflatten(2, (module.num_attention_heads, -1)).transpose(1, 2)


# Class of a module -> what makes it fit.
SHIMS: dict[str, Callable[[Any], None]] = {
    "T5Attention": _t5,
    "MT5Attention": _t5,
    "UMT5Attention": _t5,
    "MPNetEncoder": _mpnet_encoder,
    "MPNetSelfAttention": _mpnet_attention,
    "DebertaV2Encoder": _deberta_encoder,
    "DisentangledSelfAttention": _deberta_attention,
}
