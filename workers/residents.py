"""The models that this process holds loaded, by recipe: least recently used ones go before a load that would not fit."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from .. import adapters
from ..config.errors import LadingError, ModelError
from ..config.recipe import Recipe
from ..config.weights import weight_bytes

log = logging.getLogger(__name__)


class Residents:
    """Loaded models. Threads may ask at the same time; one model is loaded at a time."""

    def __init__(
        self,
        device: str,
        threads: int,
        memory_bytes: int,
        *,
        loading: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """memory_bytes: for weights; 0 is no limit. `loading` is told when a load begins (True) and ends (False)."""
        self.device, self.threads = device, threads
        self._memory, self._loading = memory_bytes, loading
        self._lock, self._one_load = threading.Lock(), threading.Lock()
        # Recipe hash -> model, its own bytes. A base is used whenever one of its LoRA adapters is, and stands behind them.
        self._loaded: OrderedDict[str, tuple[adapters.Adapter, int]] = OrderedDict()

    def at_hand(self, recipe: Recipe) -> adapters.Adapter | None:
        """The model of a recipe if it is loaded."""
        with self._lock:
            if found := self._loaded.get(recipe.hash):
                self._loaded.move_to_end(recipe.hash)
                if recipe.adapter:
                    self._loaded.move_to_end(recipe.base.hash)
            return found and found[0]

    def get(self, recipe: Recipe, folder: Path, adapter: Path | None = None) -> adapters.Adapter:
        """The model of a recipe, loaded if it is not. Raises ModelError where it cannot be.

        `adapter`: the folder of its LoRA adapter. Recipes that differ in nothing else share one loaded base.
        """
        with self._one_load:
            if (found := self.at_hand(recipe)) is not None:
                return found
            base = self.at_hand(recipe.base) if recipe.adapter else None
            if base is None:
                needed = weight_bytes(folder, recipe.precision)
                own = lambda: adapters.load(recipe.base, folder, device=self.device, threads=self.threads)  # noqa: E731
                base = self._add(recipe.base, folder, needed, own)
            if not recipe.adapter:
                return base
            if adapter is None:
                raise ModelError(f"recipe {recipe.hash} names an adapter, and its folder was not given")
            needed = weight_bytes(adapter, recipe.precision)
            return self._add(recipe, adapter, needed, lambda: adapters.adapted(base, recipe, adapter))

    def _add(self, recipe: Recipe, folder: Path, needed: int, load: Callable[[], adapters.Adapter]) -> adapters.Adapter:
        """The model that `load` makes of the weights in `folder`, with room made for it first."""
        with self._lock:
            below = self._loaded[recipe.base.hash][1] if recipe.adapter else 0  # what must stay beside it
        if self._memory and needed + below > self._memory:
            raise ModelError(
                f"{folder} needs {needed + below:,} bytes in {recipe.precision}, this pool's models have {self._memory:,}: "
                "send it to a larger pool, or raise memory_bytes in pools.yaml"
            )
        self._make_room(needed)
        began = time.monotonic()
        self._loading(True)
        try:
            loaded = load()
        except LadingError:
            raise
        except Exception as error:  # no memory on the device, say
            raise ModelError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
        finally:
            self._loading(False)
        with self._lock:
            self._loaded[recipe.hash] = loaded, needed
            self._loaded.move_to_end(recipe.base.hash)
        log.info("loaded %s (recipe %s) in %.1f s", folder, recipe.hash, time.monotonic() - began)
        return loaded

    def _make_room(self, needed: int) -> None:
        """Let go of the least recently used; batches that still run hold theirs until they end."""
        with self._lock:
            while (
                self._memory and self._loaded and needed + sum(size for _, size in self._loaded.values()) > self._memory
            ):
                name, (_, size) = self._loaded.popitem(last=False)
                log.info("let go of recipe %s (%s bytes)", name, f"{size:,}")
