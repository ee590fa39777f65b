"""LoRA adapters on a shared base: y = W x + scale * B (A x), added where a layer's product is made, never merged into W.

One base runs with any number of adapters at once: each thread chooses one for its forward pass, and the weights of the
base are never written to. Reads what PEFT saves.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..config.errors import ModelError
from ..config.lora import WEIGHTS, LoraSettings, read_settings

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
Parts = dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]  # layer -> A (r, in), scale * B (out, r)


class _InFlight(threading.local):
    parts: Parts | None = None


_in_flight = _InFlight()


@contextlib.contextmanager
def adapting(parts: Parts | None) -> Generator[None]:
    """While inside, this thread's forward passes are those of the base with this adapter; None: of the base alone."""
    before, _in_flight.parts = _in_flight.parts, parts
    try:
        yield
    finally:
        _in_flight.parts = before


def delta(layer: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """What this thread's adapter adds to the layer's product with x (..., in): (..., out); None where it changes nothing."""
    parts = _in_flight.parts
    part = None if parts is None else parts.get(layer)
    return None if part is None else F.linear(F.linear(x, part[0]), part[1])


class _Listening:
    """Before a layer's own class: adds what `delta` says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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


def load(
    folder: Path, layers: dict[str, nn.Module], *, base: str, prefix: str, dropped: Iterable[str], like: torch.Tensor
) -> Parts:
    """The adapter in `folder` for the layers of a loaded base, in the dtype and on the device of `like`.

    base: what the base is, for messages. prefix: the name that a model with a head gives to the part that is loaded here.
    dropped: layers that the base has on disk and that no result needs. Raises ModelError if the adapter is another base's.
    """
    settings = read_settings(folder)
    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    left: list[str] = []
    for key, weight in stored.items():
        found = _KEY.fullmatch(key)
        if found is None or not settings.changes(found[1]):
            left.append(key)
        else:
            pairs.setdefault(found[1], {})[found[2]] = weight
    left += [f"{name} without its other half" for name, pair in pairs.items() if len(pair) != 2]
    if left:
        raise ModelError(
            f"{folder / WEIGHTS}: {len(left)} weights are no LoRA weights of its target_modules: {_some(left)}; Lading applies all of an "
            "adapter or none of it"
        )
    if not pairs:
        raise ModelError(f"{folder / WEIGHTS}: has no weights")
    return _placed(settings, pairs, layers, base, prefix, tuple(dropped), like)


def _placed(
    settings: LoraSettings,
    pairs: dict[str, dict[str, torch.Tensor]],
    layers: dict[str, nn.Module],
    base: str,
    prefix: str,
    dropped: tuple[str, ...],
    like: torch.Tensor,
) -> Parts:
    whose = f"adapter {settings.folder}" + (f" (trained on {settings.base})" if settings.base else "")
    parts: Parts = {}
    absent: list[str] = []
    for name, pair in pairs.items():
        ours = next((one for one in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}") if one in layers), None)
        if ours is None:
            if not name.removeprefix(f"{prefix}.").startswith(dropped):
                absent.append(name)
            continue
        layer, (rank, scale) = layers[ours], settings.rank_and_scale(name)
        down, up = pair["A"], pair["B"]
        wide, high = _sizes(layer)
        if down.shape != (rank, wide) or up.shape != (high, rank):
            raise ModelError(
                f"{whose} does not fit {base}: at {name} it has A {tuple(down.shape)} and B {tuple(up.shape)}, rank {rank} on a layer "
                f"from {wide} to {high} takes {(rank, wide)} and {(high, rank)}: give the model that it was trained on"
            )
        parts[layer] = down.to(like.device, like.dtype), (up.float() * scale).to(like.device, like.dtype)
    if absent:
        raise ModelError(
            f"{whose} does not fit {base}, which has no linear layers {_some(absent)}: give the model that it was trained on"
        )
    for layer in parts:
        if not hasattr(layer, "adapts") and not isinstance(layer, _Listening):
            layer.__class__ = _listening(type(layer))  # in one step, as other threads may be inside of the layer
    return parts


class Reached(dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]):
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
