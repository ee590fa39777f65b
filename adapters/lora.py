"""LoRA adapters on a shared base: y = W x + scale * B (A x), added where a layer's product is made, never merged into W.

One base runs with any number of adapters at once: each thread chooses one for its forward pass, and the weights of the
base are never written to. Reads what PEFT saves.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Generator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..config.errors import ModelError
from ..config.lora import WEIGHTS, LoraSettings, read_settings
from .loading import read_tensors

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
Parts = dict[nn.Module, tuple[Tensor, Tensor]]  # layer -> A (r, in), scale * B (out, r)


# Every thread has a value of its own.
_in_flight: ContextVar[Parts | None] = ContextVar("_in_flight", default=None)


@contextlib.contextmanager
def adapting(parts: Parts | None) -> Generator[None]:
    """While inside, this thread's forward passes are those of the base with this adapter; None: of the base alone."""
    before = _in_flight.set(parts)
    try:
        yield
    finally:
        _in_flight.reset(before)


def delta(layer: nn.Module, x: Tensor) -> Tensor | None:
    """What this thread's adapter adds to the layer's product with x (..., in): (..., out); None where it changes nothing."""
    parts = _in_flight.get()
    part = None if parts is None else parts.get(layer)
    return None if part is None else F.linear(F.linear(x, part[0]), part[1])


class Replacement(nn.Module):
    """What took the place of a linear layer, and adds what `delta` says by itself."""

    weight = None  # T5 looks for its dtype: there is none to look at

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        linear.__dict__["became"] = self  # for `now`; no submodule


class _Listening:
    """Before a layer's own class: adds what `delta` says."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)  # pyright: ignore[reportAttributeAccessIssue]
        more = delta(self, x)  # pyright: ignore[reportArgumentType]
        return y if more is None else y + more


@functools.cache
def _listening(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_Listening, kind), {})


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that an adapter may change, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}


def now(layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The same by their old names, after faster ones (`became`) took the place of some."""
    return {name: getattr(layer, "became", layer) for name, layer in layers.items()}


def load(folder: Path, layers: dict[str, nn.Module], model: PreTrainedModel, home: Path) -> Parts:
    """The adapter in `folder` for the `layers` of a base that was loaded from `home`, in its dtype and on its device.

    Raises ModelError if the adapter is another base's.
    """
    settings, path = read_settings(folder), folder / WEIGHTS
    whose = f"adapter {folder}" + (f" (trained on {settings.base})" if settings.base else "")
    base, like = f"{home} ({model.config.model_type})", next(model.parameters())
    prefix = f"{model.base_model_prefix}."  # the name that a model with a head gives to the part that is loaded here
    dropped = "pooler." if getattr(model, "pooler", model) is None else None  # on disk, and no result needs it
    parts: Parts = {}
    absent: list[str] = []
    for name, (down, up) in _pairs(path, settings).items():
        ours = next((one for one in (name, name.removeprefix(prefix), prefix + name) if one in layers), None)
        if ours is None:
            if not (dropped and name.removeprefix(prefix).startswith(dropped)):
                absent.append(name)
            continue
        layer, (rank, scale) = layers[ours], settings.rank_and_scale(name)
        wide, high = _sizes(layer)
        if down.shape != (rank, wide) or up.shape != (high, rank):
            raise ModelError(
                f"{whose} does not fit {base}: at {name} it has A {tuple(down.shape)} and B {tuple(up.shape)}, rank {rank} on a layer "
                f"from {wide} to {high} takes {(rank, wide)} and {(high, rank)}: give the model that it was trained on"
            )
        parts[layer] = down.to(like.device, like.dtype), (up * scale).to(like.device, like.dtype)
    if absent:
        raise ModelError(
            f"{whose} does not fit {base}, which has no linear layers {_some(absent)}: give the model that it was trained on"
        )
    for layer in parts:
        if not isinstance(layer, Replacement | _Listening):
            layer.__class__ = _listening(type(layer))  # in one step, as other threads may be inside of the layer
    return parts


def _pairs(path: Path, settings: LoraSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every layer, by its name for PEFT. Raises ModelError: the file has anything else, or nothing."""
    pairs: dict[str, dict[str, Tensor]] = {}
    left: list[str] = []
    for key, weight in read_tensors(path).items():
        found = _KEY.fullmatch(key)
        if found is None or not settings.changes(found[1]):
            left.append(key)
        else:
            pairs.setdefault(found[1], {})[found[2]] = weight
    left += [f"{name} without its other half" for name, pair in pairs.items() if len(pair) != 2]
    if left:
        raise ModelError(
            f"{path}: {len(left)} weights are no LoRA weights of its target_modules: {_some(left)}; Lading applies all of an adapter or none "
            "of it"
        )
    if not pairs:
        raise ModelError(f"{path}: has no weights")
    return {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}


class Reached(dict[nn.Module, tuple[Tensor, Tensor]]):
    """Parts that note which of them a forward pass asked for."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.asked: set[nn.Module] = set()

    def get(self, layer: nn.Module, default: Any = None) -> Any:
        self.asked.add(layer)
        return super().get(layer, default)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    one: Any = layer
    return (one.nx, one.nf) if isinstance(layer, Conv1D) else (one.in_features, one.out_features)


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
