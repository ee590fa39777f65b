"""Which model a request means: its recipe, settled from the checkpoint's files and remembered for a while, and the loaded model."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adapters import Adapter
from ..config.checkpoint import locate, resolve
from ..config.errors import ModelError, UsageError
from ..config.lora import full_name, locate_adapter
from ..config.recipe import Recipe
from ..config.roots import check_under
from ..config.wishes import WISHES
from ..pipelines import upsert
from ..pipelines.output import output_paths
from ..schedulers.bodies import RequestOptions
from ..schedulers.pools import Preload
from .residents import Residents

MOST_SETTLED = 4096  # the oldest goes first
REMEMBERED_S = 60.0  # a checkpoint that is changed in its folder is seen after so long


@dataclasses.dataclass(frozen=True, slots=True)
class _Settled:
    recipe: Recipe
    folder: Path
    adapter: Path | None  # the LoRA adapter's folder
    model: dict[str, Any]  # what a table's metadata says of the checkpoint
    at: float


class RequestedModels:
    """From what a request names to a model, or to a table. `roots`: where folders may lie (config/roots.py)."""

    def __init__(self, residents: Residents, roots: Sequence[str], precisions: Sequence[str]) -> None:
        self._residents, self._roots, self._precisions = residents, roots, precisions
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, RequestOptions], _Settled] = {}

    def __call__(self, verb: str, model: str, options: RequestOptions) -> tuple[Recipe, Adapter, dict[str, Any]]:
        """Raises ModelError or UsageError, in words for whoever asked."""
        settled = self._settle(verb, model, options)
        adapter = self._residents.get(settled.recipe, settled.folder, settled.adapter, name=called(settled.model))
        return settled.recipe, adapter, settled.model

    def preload(self, one: Preload) -> None:
        """Load a model that nobody asked for yet. Raises ModelError, UsageError."""
        settled = self._settle(one.verb, one.model, one.options)
        self._residents.get(settled.recipe, settled.folder, settled.adapter, name=called(settled.model), pinned=one.pin)
        self._residents.ready(settled.recipe)

    def known(self, verb: str, model: str, options: RequestOptions) -> bool:
        """Whether the call takes no time."""
        settled = self._remembered((verb, model, options))
        return settled is not None and self._residents.known(settled.recipe)

    def check_table(self, url: str) -> None:
        """Raises UsageError unless rows may be put into this table by requests."""
        upsert.check(url)
        check_under(output_paths(url).data, self._roots, "the table")

    def _remembered(self, key: tuple[str, str, RequestOptions]) -> _Settled | None:
        with self._lock:
            known = self._known.get(key)
        return known if known is not None and time.monotonic() - known.at < REMEMBERED_S else None

    def _settle(self, verb: str, model: str, options: RequestOptions) -> _Settled:
        key = (verb, model, options)
        if (known := self._remembered(key)) is not None:
            return known
        if options.precision not in self._precisions:
            raise UsageError(
                f"precision {options.precision} is none of this pool's ({', '.join(self._precisions)}): ask another pool"
            )
        if Path(model).expanduser().exists():
            check_under(model, self._roots, "the model's folder")
        if options.adapter and Path(options.adapter).expanduser().exists():
            check_under(options.adapter, self._roots, "the adapter's folder")
        checkpoint = locate(model, options.revision)
        recipe = resolve(checkpoint, task=verb, **{name: getattr(options, name) for name in _WISHES})
        if recipe.long_text == "chunk":
            raise ModelError("a request's texts are not chunked: long_text is truncate or reject")
        name = model if checkpoint.origin == "folder" else checkpoint.name
        said = {"model": name, "folder": str(checkpoint.folder), "origin": checkpoint.origin}
        said |= {"revision": checkpoint.revision, "prompt": options.prompt}
        said |= {"known_as": options.known_as} if options.known_as else {}
        said |= {"adapter": full_name(options.adapter)} if options.adapter else {}
        settled = _Settled(recipe, checkpoint.folder, locate_adapter(options.adapter), said, time.monotonic())
        with self._lock:
            self._known[key] = settled
            while len(self._known) > MOST_SETTLED:
                del self._known[next(iter(self._known))]
        return settled


def called(said: Mapping[str, Any]) -> str:
    """What people call the model that an output's metadata tells of: its folder, or its name on the hub, and its adapter."""
    model = said["folder"] if said["origin"] == "folder" else said["model"]
    return " + ".join(filter(None, (model, said.get("adapter", ""))))


_WISHES = [field.name for field in dataclasses.fields(RequestOptions) if field.name in WISHES]
