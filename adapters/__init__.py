"""One model: rows in, columns out. The only home of torch and transformers."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path
from typing import Any

from ..config.errors import ModelError
from ..config.recipe import Recipe
from .contract import Adapter, Outputs, Prepared
from .devices import check_device, streams

__all__ = ["Adapter", "Outputs", "Prepared", "adapted", "check_device", "load", "streams"]

# Task of a recipe -> module and class. Imported when asked for, so that importing this package needs no torch.
ADAPTERS = {
    "encode": ("encode", "Encoder"),
    "score": ("score", "Scorer"),
    "extract": ("extract", "TokenClassifier"),
}


def load(
    recipe: Recipe, folder: Path, *, adapter: Path | None = None, device: str = "auto", threads: int = 0
) -> Adapter:
    """The adapter for a recipe, with its model loaded from `folder` and ready to run; `adapter`: the folder of its LoRA adapter.

    device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1"; threads: CPU threads, each for a
    batch of its own (`Adapter.streams`), 0 for all cores.
    Raises ModelError, in words for the user, if the checkpoint is incomplete, unsafe or of a kind that does not fit;
    UsageError for a device that is not there.
    """
    check_device(device)
    module, name = ADAPTERS[recipe.task]
    base = getattr(import_module(f".{module}", __name__), name)(recipe.base, folder, device=device, threads=threads)
    if not recipe.adapter:
        return base
    if adapter is None:
        raise ModelError(f"recipe {recipe.hash} names an adapter, and its folder was not given")
    return adapted(base, recipe, adapter)


def adapted(base: Any, recipe: Recipe, folder: Path) -> Adapter:
    """An adapter of the same loaded model with the LoRA adapter in `folder`; `base` is one that `load` gave, and stays as it is.

    Any number may share a base and run at the same time. Raises ModelError where the two do not fit.
    """
    made = copy.copy(base)
    made.recipe, made.packed = recipe, base.packed.adapted(folder)
    made.kernel = made.packed.kernel
    return made
