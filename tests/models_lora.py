"""Tiny random LoRA adapters, made and saved by PEFT itself, and what PEFT's own model gives with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def tiny_adapter(path: Path, base: Path, *, auto_class: Any = None, seed: int = 0, **config: Any) -> Path:
    """An adapter of the model in `base`, every number of it drawn: as PEFT begins, B is zero and nothing would show."""
    import peft

    model = (auto_class or transformers.AutoModel).from_pretrained(base)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["query", "value"]} | config
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3, generator=generator)
    wrapped.save_pretrained(path)
    return path


def peft_hidden(base: Path, adapter: Path, texts: list[list[int]], dtype: torch.dtype = torch.float32) -> np.ndarray:
    """float32 (tokens, width): hidden states of each text run alone by PEFT."""
    import peft

    model = transformers.AutoModel.from_pretrained(base, dtype=dtype, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.inference_mode():
        return np.concatenate(
            [model(input_ids=torch.tensor([ids])).last_hidden_state[0].float().numpy() for ids in texts]
        )
