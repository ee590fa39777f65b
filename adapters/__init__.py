"""One model: rows in, columns out. The only home of torch and transformers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.errors import ModelError
from ..config.recipe import Recipe
from .contract import Adapter, DeviceLost, OutOfMemory, Outputs, Prepared
from .devices import check_device, streams

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Adapter", "DeviceLost", "OutOfMemory", "Outputs", "Prepared", "check_device", "load", "make", "streams"]

# Task of a recipe -> module and class. Imported when asked for, so that importing this package needs no torch.
ADAPTERS = {
    "encode": ("encode", "Encoder"),
    "score": ("score", "Scorer"),
    "extract": ("extract", "TokenClassifier"),
}


def make(recipe: Recipe, folder: Path, *, device: str = "auto", threads: int = 0) -> Model:
    """The adapter for a recipe, able to prepare; its model is not loaded from `folder` yet, and it has no LoRA adapter.

    device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1"; threads: CPU threads, each for a
    batch of its own (`Adapter.streams`), 0 for all cores.
    Raises ModelError, in words for the user, if the checkpoint is of a kind that does not fit; UsageError for a device that is
    not there.
    """
    check_device(device)
    module, name = ADAPTERS[recipe.task]
    return getattr(import_module(f".{module}", __name__), name)(recipe, folder, device=device, threads=threads)


def load(
    recipe: Recipe, folder: Path, *, adapter: Path | None = None, device: str = "auto", threads: int = 0
) -> Adapter:
    """The same, ready to run; `adapter`: the folder of its LoRA adapter. Raises ModelError also if the checkpoint is incomplete or unsafe."""
    made = make(recipe.base, folder, device=device, threads=threads)
    made.load()
    if recipe.adapter:
        if adapter is None:
            raise ModelError(f"recipe {recipe.hash} names an adapter, and its folder was not given")
        made = made.adapted(recipe, adapter)
        made.load()
    return made
