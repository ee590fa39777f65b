"""What a loaded model keeps in its device's memory, as one thing that can leave it and come back.

Weights never change here, so the copy in host memory is made once, when a model first leaves, and from then on leaving costs
nothing: coming back is one copy of one block, pinned where the device is a GPU, which the bus then reads at its full speed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Iterable
from typing import Any

import torch
from torch import nn

ALIGNMENT = 64  # bytes, of a tensor in the block: a cache line, and more than any dtype needs


@dataclasses.dataclass(slots=True)
class _Held:
    """One tensor, and every place that it must be put back to."""

    tensor: torch.Tensor
    places: list[tuple[Any, str]]  # a module's table of parameters or buffers, and the name in it
    at: int = -1  # in the block; -1: it is copied by itself

    def put(self, tensor: torch.Tensor) -> None:
        if isinstance(self.tensor, nn.Parameter):
            self.tensor.data = (
                tensor  # the same object for whoever knows it: layers that share it, a bias in a faster layer
            )
            return
        self.tensor = tensor
        for table, name in self.places:
            table[name] = tensor


class Holdings:
    """The parameters and buffers of some modules. Not to be moved while a forward pass reads them."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """`modules` are on `device`, and may share parts."""
        self.device = device
        found: dict[int, _Held] = {}
        for module in dict.fromkeys(part for one in modules for part in one.modules()):
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        found.setdefault(id(tensor), _Held(tensor, [])).places.append((table, name))
        self._held = list(found.values())
        self._sizes = [one.tensor.numel() * one.tensor.element_size() for one in self._held]
        self.nbytes = sum(self._sizes)  # on the device while it is there, in host memory once it has left
        self._block_bytes = self._place()
        if device.type == "cpu":
            # Off the file, which a loaded tensor may still lie in, at places that are no multiple of a cache line: products
            # of such weights differ in their last bit.
            self._spread(self._filled(torch.empty(self._block_bytes, dtype=torch.uint8)))
        self._block: torch.Tensor | None = None  # uint8, in host memory: the copy of all that have a place in it
        self._others: list[torch.Tensor] = []  # copies of the rest
        self.on_device = True

    @property
    def copied(self) -> bool:
        """Whether host memory has a copy."""
        return self._block is not None

    def leave(self, *, keep: bool) -> None:
        """Give the device's memory back; `keep`: with a copy in host memory, made now if there is none."""
        if keep and self._block is None:
            self._copy()
        for one in self._held:
            one.put(torch.empty(0, dtype=one.tensor.dtype, device=self.device))
        self.on_device = False

    def forget(self) -> None:
        """Give the host memory of the copy back."""
        self._block, self._others = None, []

    def come_back(self) -> None:
        """Bring the copy onto the device; it stays in host memory too."""
        assert self._block is not None
        with _beside_the_work(self.device):
            self._spread(torch.empty_like(self._block, device=self.device).copy_(self._block, non_blocking=True))
            others = (one for one in self._held if one.at < 0)
            for one, copy in zip(others, self._others, strict=True):
                one.put(_copied(copy, self.device))
        self.on_device = True

    def _spread(self, block: torch.Tensor) -> None:
        """Make the tensors that have a place in it parts of a block on the device."""
        for one, size in zip(self._held, self._sizes, strict=True):
            if one.at >= 0:
                shape, dtype = self._shapes[id(one)]
                one.put(block[one.at : one.at + size].view(dtype).view(shape))

    def _filled(self, block: torch.Tensor) -> torch.Tensor:
        """The same, with the tensors in their places."""
        for one, size in zip(self._held, self._sizes, strict=True):
            if one.at >= 0:
                block[one.at : one.at + size].view(one.tensor.dtype).view(one.tensor.shape).copy_(one.tensor.detach())
        return block

    def _place(self) -> int:
        """Give every tensor that lies in one piece its place in the block; how long that is."""
        end, self._shapes = 0, {}
        for one, size in zip(self._held, self._sizes, strict=True):
            tensor = one.tensor
            if tensor.layout == torch.strided and tensor.is_contiguous():
                one.at, self._shapes[id(one)] = end, (tensor.shape, tensor.dtype)
                end += -(-size // ALIGNMENT) * ALIGNMENT
        return end

    def _copy(self) -> None:
        self._block = self._filled(
            torch.empty(self._block_bytes, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        )
        self._others = [_copied(one.tensor.detach(), torch.device("cpu")) for one in self._held if one.at < 0]


@contextlib.contextmanager
def _beside_the_work(device: torch.device) -> Generator[None]:
    """What is copied inside does not queue up with other models' kernels, and has arrived at the end."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(side := _side_stream(device)):
        yield
    side.synchronize()


@functools.cache  # one for all models: the allocator keeps a stream's freed blocks for that stream
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy with the same strides, or in the same layout of oneDNN's, which knows no device but the CPU."""
    return tensor.clone() if tensor.device == device else tensor.to(device)
