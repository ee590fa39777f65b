"""Errors of a device in the words that the engine knows, and memory that is free when a model has left."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from lading.adapters import DeviceLost, OutOfMemory, make
from lading.adapters.memory import telling
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from tests.swapping import Kind


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemory),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), OutOfMemory),  # pinned host memory
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceLost),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"), DeviceLost),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
        (ValueError("a text is no longer than its prompt"), ValueError),
        (OutOfMemory("told already"), OutOfMemory),
    ],
)
def test_errors_of_the_device_are_told_apart(error: Exception, expected: type[Exception]) -> None:
    """Also as the cause of another error, which then is not the model's."""
    with pytest.raises(expected) as told, telling():
        raise error
    assert told.type is expected
    if expected in (OutOfMemory, DeviceLost):
        with pytest.raises(expected), telling():
            raise ModelError("a model of type 'bert' cannot be run packed") from error


@pytest.mark.parametrize("number", range(5))
def test_a_model_that_left_for_the_disk_holds_nothing(number: int, kinds: list[Kind]) -> None:
    """Whoever still knows its parts: another recipe with the same weights, a graph of objects that nobody collected yet."""
    kind = kinds[number]
    recipe = resolve(locate(str(kind.folder)), task=kind.verb)
    owner, user = (make(recipe, kind.folder, device="cpu", threads=1) for _ in range(2))
    user.use(owner)
    owner.load()
    row = owner.prepare([pa.array(["a row"])] * owner.inputs)
    user.run([(row, np.arange(1))])
    modules = [owner.packed.model, *(module for head in [*owner.heads, *user.heads] for module in head.modules)]
    held = [one for module in modules for one in (*module.parameters(), *module.buffers())]
    assert sum(one.numel() for one in held) > 10_000
    owner.unload()
    assert sum(one.untyped_storage().nbytes() for module in modules for one in module.parameters()) == 0
    assert sum(one.untyped_storage().nbytes() for module in modules for one in module.buffers()) == 0
    owner.load()
    user.run([(row, np.arange(1))])
