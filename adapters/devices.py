"""Which devices a model can be asked to run on. Loads torch only where that is the question."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec

from ..config.errors import UsageError

NEEDED = ("torch", "transformers")  # of lading[worker]; the other packages come with these


def streams(device: str, threads: int) -> int:
    """Batches that a model runs best at once on a device: on a CPU one a thread, of which 0 asks for what OMP_NUM_THREADS
    allows, else for every core that this process may use."""
    if device != "cpu":
        return 1
    return threads or int((os.environ.get("OMP_NUM_THREADS") or "0").split(",")[0]) or len(os.sched_getaffinity(0))


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
        number = int(name.partition(":")[2] or 0)
        if number >= (there := count()):
            seen = f"only CUDA devices up to cuda:{there - 1}" if there else "no CUDA device"
            raise UsageError(f"device {name} was asked for, but torch sees {seen}: use cpu or auto")


def count() -> int:
    """How many CUDA devices this process sees."""
    from torch import cuda

    return cuda.device_count() if cuda.is_available() else 0


def available(device: str) -> int:
    """Bytes of its memory that are free now; of a CPU's, as far as nothing has to be swapped out for them."""
    if device.startswith("cuda"):
        from torch import cuda

        return cuda.mem_get_info(device)[0]
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024
