"""Checkpoints that carry small adapters for several tasks among their own weights: one is merged in when the model is loaded.

The layout is that of jina-embeddings-v3: beside each weight W, low-rank A and B of every task (https://arxiv.org/abs/2409.10173).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..config.content import weight_files
from ..config.errors import ModelError

_PLACE = ".parametrizations.weight"


def merged(folder: Path, config: dict[str, Any], task: str) -> dict[str, torch.Tensor]:
    """All weights in float32 by their plain names, with the adapter of `task` merged in ("": as they are).

    Raises ModelError if the files have no adapter of that name.
    """
    stored = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    place = config["lora_adaptations"].index(task) if task in config["lora_adaptations"] else None
    if task and place is None:
        raise ModelError(f"{folder / 'config.json'}: lora_adaptations has no {task!r}")
    scale = config.get("lora_alpha", 1) / config.get("lora_rank", 4)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        if f"{_PLACE}.0." in name:
            continue
        weight = tensor.float()
        layer = name.removesuffix(f"{_PLACE}.original")
        if layer != name and place is not None:
            try:
                low, high = (stored[f"{layer}{_PLACE}.0.lora_{which}"][place].float() for which in "AB")
            except (KeyError, IndexError) as error:
                raise ModelError(f"{folder}: the weights have no adapter {task!r} for {layer}") from error
            # Of a linear layer B is (out, rank) and A (rank, in); of an embedding A is (rows, rank) and B (rank, width).
            weight = weight + scale * (low @ high if low.shape[0] == weight.shape[0] else high @ low)
        found[name if layer == name else f"{layer}.weight"] = weight
    return found
