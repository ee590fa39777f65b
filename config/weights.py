"""What the headers of a checkpoint's safetensors files tell: memory, and the shapes of single weights. The weights are not read.

Format: https://huggingface.co/docs/safetensors: eight bytes, little endian, the length of the JSON header that follows.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from .content import WEIGHTS, WEIGHTS_INDEX, integer_at, read_json, weight_files
from .errors import ModelError

# Of one parameter, whatever the checkpoint stores; what becomes int8 is loaded as bfloat16.
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 2}
_MOST_HEADER = 100 << 20  # what the format itself allows
# What transformers' classes call the table of the vectors of tokens (T5: shared), and jina-embeddings-v3's code.
_TOKEN_TABLE = re.compile(
    r"(.*\.)?(word_embeddings|word_embedding|embed_tokens|tok_embeddings|wte|shared)\.(weight|parametrizations\.weight\.original)"
)


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


def token_rows(folder: Path) -> int | None:
    """Tokens that a transformer has a vector for: rows of the table in its weights, else what config.json says; None if neither tells."""
    stored = weight_files(folder) if (folder / WEIGHTS).is_file() or (folder / WEIGHTS_INDEX).is_file() else []
    rows = [shape[0] for file in stored for name, shape in shapes(file).items() if _TOKEN_TABLE.fullmatch(name)]
    if rows:
        return min(rows)
    path = folder / "config.json"
    config = read_json(path)
    nested = config.get("text_config")
    return integer_at({**(nested if isinstance(nested, dict) else {}), **config}, ("vocab_size",), path)
