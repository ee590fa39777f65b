"""How much memory a checkpoint's weights take, from the headers of its safetensors files; the weights are not read.

Format: https://huggingface.co/docs/safetensors: eight bytes, little endian, the length of the JSON header that follows.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from .errors import ModelError

# Of one parameter, whatever the checkpoint stores; what becomes int8 is loaded as bfloat16.
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 2}
_MOST_HEADER = 100 << 20  # what the format itself allows


def weight_bytes(folder: Path, precision: str) -> int:
    """Bytes of all weights once loaded in `precision`. Raises ModelError for a file that is no safetensors file."""
    return parameters(folder) * BYTES[precision]


def parameters(folder: Path) -> int:
    """Numbers in the checkpoint's safetensors files; 0 where it has none."""
    return sum(_parameters(path) for path in sorted(folder.rglob("*.safetensors")))


def _parameters(path: Path) -> int:
    return sum(math.prod(shape) for shape in shapes(path).values())


def shapes(path: Path) -> dict[str, list[int]]:
    """Name -> shape of the tensors in a safetensors file. Raises ModelError for a file that is none."""
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER:
            raise ModelError(f"{path} is not a safetensors file: its header would have {length:,} bytes")
        try:
            header = json.loads(file.read(length))
            return {
                name: [int(size) for size in one["shape"]] for name, one in header.items() if name != "__metadata__"
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{path} is not a safetensors file: {error}") from error
