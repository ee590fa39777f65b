"""Which devices a model can be asked to run on. Loads torch only where that is the question."""

from __future__ import annotations

import re
from importlib.util import find_spec

from ..config.errors import UsageError

NEEDED = ("torch", "transformers")  # of lading[worker]; the other packages come with these


def check_device(name: str) -> None:
    """Raises UsageError unless `name` is a device that this machine has, ModuleNotFoundError where no model can run at all.

    To be asked before anything is written. `auto` and `cpu` are answered without loading torch.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UsageError(f"device {name!r} is none of auto, cpu, cuda, cuda:N")
    for package in NEEDED:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    if name.startswith("cuda"):
        from torch import cuda

        number = int(name.partition(":")[2] or 0)
        if number >= (count := cuda.device_count() if cuda.is_available() else 0):
            seen = f"only CUDA devices up to cuda:{count - 1}" if count else "no CUDA device"
            raise UsageError(f"device {name} was asked for, but torch sees {seen}: use cpu or auto")
