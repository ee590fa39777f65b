"""Memory of the device while batches run: how much a token takes, and what an error says of it."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .contract import DeviceLost, OutOfMemory

# Of an error after which every further call on the device fails too: only a new process can go on.
POISONED = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "device-side assert")


@contextlib.contextmanager
def telling() -> Generator[None]:
    """Errors of the device that are raised inside, in the words of `contract`: OutOfMemory, after which unused blocks are given back, and DeviceLost."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = f"{type(error).__name__}: {error}"
        # The CPU's allocator has no class of its own for it.
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: can't allocate" in text:
            give_back()
            raise OutOfMemory(text) from error
        if any(one in text for one in POISONED):
            raise DeviceLost(text) from error
        raise


def give_back() -> None:
    """Unused blocks that the allocator keeps go back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that `call` had allocated at its worst moment, beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Allocations() as found:
        call()
    return found.peak


class _Allocations(TorchDispatchMode):
    """Counts the storages that operations of this thread make, as long as they live. What a kernel uses within itself is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._count((args, kwargs), there=True)
        made = func(*args, **(kwargs or {}))
        self._count(made, there=False)
        return made

    def _count(self, tensors: Any, *, there: bool) -> None:
        """Storages that are new to us; `there`: they were made before, or elsewhere."""
        for one in tree_leaves(tensors):
            if isinstance(one, torch.Tensor) and one.layout == torch.strided:
                storage = one.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    size = 0 if there else storage.nbytes()
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, which: int, size: int) -> None:
        self._known.discard(which)
        self.live -= size
