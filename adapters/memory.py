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
# Of one that says that memory was short: the CPU's allocator has no class for it, nor have a GPU's libraries, whose words are
# otherwise those of POISONED. Pinned host memory that cannot be had is one of them.
SHORT = (
    "DefaultCPUAllocator: can't allocate",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@contextlib.contextmanager
def telling() -> Generator[None]:
    """Errors of the device that are raised inside, in the words of `contract`: OutOfMemory, after which unused blocks are given back, and DeviceLost.

    What stands behind an error (`raise ... from`) counts: a check that failed for want of memory says nothing against a model.
    """
    try:
        yield
    except (OutOfMemory, DeviceLost):
        raise
    except Exception as error:
        if (short := _cause(error, _says_short)) is not None:
            give_back()
            raise OutOfMemory(f"{type(short).__name__}: {short}") from error
        if (lost := _cause(error, _says_lost)) is not None:
            raise DeviceLost(f"{type(lost).__name__}: {lost}") from error
        raise


def _cause(error: BaseException | None, of: Callable[[BaseException], bool]) -> BaseException | None:
    while error is not None and not of(error):
        error = error.__cause__
    return error


def _says_short(error: BaseException) -> bool:
    if isinstance(error, OutOfMemory | torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(one in str(error) for one in SHORT)


def _says_lost(error: BaseException) -> bool:
    if isinstance(error, DeviceLost):
        return True
    return isinstance(error, RuntimeError) and any(one in str(error) for one in POISONED)


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
