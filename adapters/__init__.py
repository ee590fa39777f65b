"""One model: rows in, columns out. The only home of torch and transformers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ..config.recipe import Recipe
from .contract import Adapter, Outputs, Prepared
from .devices import check_device, streams

__all__ = ["Adapter", "Outputs", "Prepared", "check_device", "load", "streams"]

# Task of a recipe -> module and class. Imported when asked for, so that importing this package needs no torch.
ADAPTERS = {
    "encode": ("encode", "Encoder"),
    "score": ("score", "Scorer"),
    "extract": ("extract", "TokenClassifier"),
}


def load(recipe: Recipe, folder: Path, *, device: str = "auto", threads: int = 0) -> Adapter:
    """The adapter for a recipe, with its model loaded from `folder` and ready to run.

    device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1"; threads: CPU threads, each for a
    batch of its own (`Adapter.streams`), 0 for all cores.
    Raises ModelError, in words for the user, if the checkpoint is incomplete, unsafe or of a kind that does not fit;
    UsageError for a device that is not there.
    """
    check_device(device)
    module, name = ADAPTERS[recipe.task]
    return getattr(import_module(f".{module}", __name__), name)(recipe, folder, device=device, threads=threads)
