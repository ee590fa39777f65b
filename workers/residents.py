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
        self._loaded: OrderedDict[str, tuple[adapters.Adapter, int]] = OrderedDict()  # recipe hash -> model, bytes

    def at_hand(self, recipe: Recipe) -> adapters.Adapter | None:
        """The model of a recipe if it is loaded."""
        with self._lock:
            if found := self._loaded.get(recipe.hash):
                self._loaded.move_to_end(recipe.hash)
            return found and found[0]

    def get(self, recipe: Recipe, folder: Path) -> adapters.Adapter:
        """The model of a recipe, loaded if it is not. Raises ModelError where it cannot be."""
        with self._one_load:
            if (found := self.at_hand(recipe)) is not None:
                return found
            needed = weight_bytes(folder, recipe.precision)
            if self._memory and needed > self._memory:
                raise ModelError(
                    f"{folder} needs {needed:,} bytes in {recipe.precision}, this pool's models have {self._memory:,}: "
                    "send it to a larger pool, or raise memory_bytes in pools.yaml"
                )
            self._make_room(needed)
            began = time.monotonic()
            self._loading(True)
            try:
                adapter = adapters.load(recipe, folder, device=self.device, threads=self.threads)
            except LadingError:
                raise
            except Exception as error:  # no memory on the device, say
                raise ModelError(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
            finally:
                self._loading(False)
            with self._lock:
                self._loaded[recipe.hash] = adapter, needed
            log.info("loaded %s (recipe %s) in %.1f s", folder, recipe.hash, time.monotonic() - began)
            return adapter

    def _make_room(self, needed: int) -> None:
        """Let go of the least recently used; batches that still run hold theirs until they end."""
        with self._lock:
            while (
                self._memory and self._loaded and needed + sum(size for _, size in self._loaded.values()) > self._memory
            ):
                name, (_, size) = self._loaded.popitem(last=False)
                log.info("let go of recipe %s (%s bytes)", name, f"{size:,}")
