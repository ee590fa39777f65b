"""What all adapters share: a checkpoint that is on its device, set aside in host memory, or on disk alone.

The part that `prepare` needs is there from the start and stays; what `run` needs comes with `load`. The three states are for
whoever holds several models on one device (workers/residents.py); a run with one model calls `load` and is done.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ..config.errors import ModelError
from ..config.events import tell
from ..config.outputs import result_fields
from ..config.recipe import Recipe
from . import memory
from .contract import DeviceLost, OutOfMemory, Outputs, Prepared
from .devices import streams
from .heads import Head
from .holdings import Holdings
from .packed import Batch, PackedModel, device_of

log = logging.getLogger(__name__)

PROBE_TEXT, PROBE_ROWS = "and " * 126, 4  # of the larger of two batches that show what a token takes


@dataclasses.dataclass(frozen=True, slots=True)
class Working:
    """Bytes that a running batch takes beside the weights."""

    always: int = 0
    each: float = 0.0  # a token

    def of(self, tokens: int, batches: int) -> int:
        """Of so many batches at once, with so many tokens together."""
        return self.always * batches + round(self.each * tokens)


class Loaded(Protocol):
    """What turns a packed batch into a model's output."""

    @property
    def model(self) -> nn.Module:
        """What holds its weights."""
        ...

    @property
    def kernel(self) -> str: ...

    def forward(self, batch: Batch, **more: torch.Tensor) -> Any:
        """transformers' output; hidden states and token logits have shape (1, tokens, width)."""
        ...


class Model:
    """See `contract.Adapter`. One thread at a time changes its state, and never while `run` is under way."""

    inputs = 1

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "auto", threads: int = 0) -> None:
        """Nothing is loaded. Raises ModelError where the checkpoint's small files and the recipe do not fit together."""
        self.recipe, self.folder, self.weights = recipe, folder, recipe.weights
        self.fields = result_fields(recipe)
        self._on = device_of(device)
        self.device, self.streams, self._threads = str(self._on), streams(self._on.type, threads), threads
        self._kernel = ""  # known once it is loaded
        self.working: Working | None = None  # measured at the first load that is told to
        self._packed: Loaded | None = None
        self._heads: list[Head] = []
        self._holdings: Holdings | None = None
        self._skip = 0  # tokens of the prompt that are not pooled
        self._owner: Model | None = None  # whose weights this one uses, with a recipe of its own
        self._base: Model | None = None  # the model that this one is a LoRA adapter of
        self._adapter: Path | None = None
        # The other one's heads, and what became of them for this recipe.
        self._turned: tuple[list[Head], list[Head]] = [], []

    # -- states

    def load(self, *, measure: bool = False) -> None:
        """From disk onto the device; `measure`: find out what a token takes, the first time.

        Raises ModelError, OutOfMemory, DeviceLost; other errors are of the disk.
        """
        try:
            with memory.telling():
                if self._base is not None:
                    self._load_adapter(self._base)
                else:
                    self._packed, self._heads = self._load()
                    modules = [self._packed.model, *(one for head in self._heads for one in head.modules)]
                    self._holdings = Holdings(modules, self._on)
                self._kernel = self._packed.kernel if self._packed else ""
            if measure and not self.working:
                self.working = self._measured()
        except BaseException:
            self.unload()
            raise

    def _load_adapter(self, base: Model) -> None:
        loaded = base.packed
        if self._adapter is None or not isinstance(loaded, PackedModel):
            raise ModelError(f"{self.folder} is no model for LoRA adapters")
        self._packed, self.working = loaded.adapted(self._adapter), base.working

    def set_aside(self) -> None:
        """From the device into host memory. Raises OutOfMemory where that has no room, DeviceLost."""
        assert self._holdings is not None
        with memory.telling():
            self._holdings.leave(keep=True)

    def bring_back(self) -> None:
        """From host memory onto the device. Raises OutOfMemory, DeviceLost."""
        assert self._holdings is not None
        with memory.telling():
            self._holdings.come_back()

    def forget_copy(self) -> None:
        """Give host memory back; what is on the device stays."""
        if self._holdings is not None:
            self._holdings.forget()

    def unload(self) -> None:
        """Back to disk alone. The memory is free at once: others may know the modules still, and some know themselves."""
        if self._holdings is not None:
            self._holdings.forget()
            self._holdings.leave(keep=False)
        self._packed, self._heads, self._holdings = None, [], None

    @property
    def kernel(self) -> str:
        """See `Adapter`; "" as long as it was never loaded."""
        return (self._owner or self)._kernel

    @property
    def nbytes(self) -> int:
        """What it holds on the device, or in host memory once it is set aside; 0 on disk."""
        if self._base is not None:
            return self._packed.lora_bytes if isinstance(self._packed, PackedModel) else 0
        return self._holdings.nbytes if self._holdings is not None else 0

    def use(self, owner: Model) -> None:
        """From now on run with the weights of another one, whose recipe has the same `weights`, wherever they are."""
        self._owner = owner

    def adapt(self, base: Model, folder: Path) -> None:
        """From now on be a LoRA adapter, that in `folder`, of a base that must be on the device before this one is and as long."""
        self._base, self._adapter = base, folder

    def adapted(self, recipe: Recipe, folder: Path) -> Self:
        """The same model with the LoRA adapter in `folder`, not loaded."""
        made = copy.copy(self)
        made.recipe, made.weights = recipe, recipe.weights
        made._packed, made._heads, made._holdings = None, [], None  # not unloaded: those are this one's
        made.adapt(self, folder)
        return made

    def _measured(self) -> Working:
        """From two batches, since part of it does not grow with them (a piece of SPLADE's logits)."""
        try:
            prepared = self.prepare([pa.array([PROBE_TEXT] * PROBE_ROWS)] * self.inputs)
            few, many = len(prepared.costs) // 2, len(prepared.costs)
            least, most = self._taken(prepared, few), self._taken(prepared, many)
            fewer, tokens = int(prepared.costs[:few].sum()), int(prepared.costs.sum())
            each = max(most - least, 0) / max(tokens - fewer, 1)
            return Working(max(int(least - fewer * each), 0), each)
        except (OutOfMemory, DeviceLost):
            raise
        except Exception as error:  # if real texts fail too, that is each row's own affair
            tell(log, "memory not measured", model=self.folder, why=f"{type(error).__name__}: {error}")
            return Working()

    def _taken(self, prepared: Prepared, items: int) -> int:
        with memory.telling(), torch.inference_mode():
            return memory.peak(lambda: self._run([(prepared, np.arange(items))]), self._on)

    # -- for the kinds of adapters

    def _load(self) -> tuple[Loaded, list[Head]]:
        """The model on the device, and what its output goes through. Raises ModelError."""
        raise NotImplementedError

    @property
    def packed(self) -> Loaded:
        """Raises ModelError unless it is on the device."""
        owner = self._owner or self
        base = owner._base or owner
        if owner._packed is None or base._holdings is None or not base._holdings.on_device:
            raise ModelError(f"{self.folder} is not on {self.device}")
        return owner._packed

    @property
    def heads(self) -> list[Head]:
        """With the weights of those of the model that this one is made of, used as its own recipe has it."""
        other = self._owner or self._base
        if other is None:
            return self._heads
        if self._turned[0] is not (given := other.heads):
            self._turned = given, [head.like(self.recipe, self._skip) for head in given]
        return self._turned[1]

    def prepare(self, columns: list[pa.Array]) -> Prepared:
        """See `Adapter.prepare`."""
        raise NotImplementedError

    def run(self, parts: list[tuple[Prepared, np.ndarray]]) -> Outputs:
        """See `Adapter.run`."""
        # Of the calling thread: it may have had more before another thread loaded the model.
        if self._on.type == "cpu" and torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        with memory.telling(), torch.inference_mode():
            return self._run(parts)

    def _run(self, parts: list[tuple[Prepared, np.ndarray]]) -> Outputs:
        raise NotImplementedError
