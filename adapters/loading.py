"""A checkpoint's weights to a model of transformers: safetensors only, and only classes of transformers' own.

Knows nothing of packing. Adapters that a checkpoint carries among its own weights, one for a task, are merged in here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, logging

from ..config.content import read_json, weight_files
from ..config.errors import ModelError
from ..config.natives import native

ENCODER_ALONE = ("t5", "mt5", "umt5")  # of these, sentence-transformers saves and runs the encoder without its decoder
_PLACE = ".parametrizations.weight"


def load_model(folder: Path, auto_class: Any, dtype: torch.dtype, task_adapter: str = "") -> PreTrainedModel:
    """The checkpoint in eval mode on the CPU, without a pooler that its head does not need. safetensors only, no code from the folder."""
    weight_files(folder)  # raises where there are none, or only others
    stored = read_json(folder / "config.json")
    translated = native(stored, folder / "config.json")
    bare = auto_class is transformers.AutoModel
    if bare and translated.get("model_type") in ENCODER_ALONE:
        auto_class = transformers.AutoModelForTextEncoding
    source: Any = folder
    options: dict[str, Any] = {}
    with quiet():
        try:
            if translated is not stored:
                options["config"] = transformers.AutoConfig.for_model(**translated)
                if "lora_adaptations" in translated:  # without a folder, only the class itself loads
                    source, options["state_dict"] = None, _merged(folder, translated, task_adapter)
                    auto_class = auto_class._model_mapping[type(options["config"])]
            model, report = auto_class.from_pretrained(
                source,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{folder} cannot be loaded: {error}") from error
    if missing := sorted(key for key in report["missing_keys"] if not (bare and key.startswith("pooler."))):
        raise ModelError(f"the weights in {folder} lack {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}")
    if bare and getattr(model, "pooler", None) is not None:
        model.pooler = None
    model.config.use_cache = False  # keys and values are needed once; a cache of windows would also see less of a text
    return model.eval()


def read_config(folder: Path) -> Any:
    """The checkpoint's config as transformers reads it. Raises ModelError."""
    path = folder / "config.json"
    stored = read_json(path)
    translated = native(stored, path)
    try:
        if translated is not stored:
            return transformers.AutoConfig.for_model(**translated)
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def uses_types(config: Any) -> bool:
    """Whether the model tells the two texts of a pair apart by an embedding of their own."""
    return getattr(config, "type_vocab_size", 0) > 1


def _merged(folder: Path, config: dict[str, Any], task: str) -> dict[str, Tensor]:
    """All weights in float32 by their plain names, with the small adapter of `task` that they carry merged in ("": as they are).

    The layout is that of jina-embeddings-v3: beside each weight W, low-rank A and B of every task (https://arxiv.org/abs/2409.10173).
    Raises ModelError if the files have no adapter of that name.
    """
    stored = {name: tensor for file in weight_files(folder) for name, tensor in read_tensors(file).items()}
    place = config["lora_adaptations"].index(task) if task in config["lora_adaptations"] else None
    if task and place is None:
        raise ModelError(f"{folder / 'config.json'}: lora_adaptations has no {task!r}")
    scale = config.get("lora_alpha", 1) / config.get("lora_rank", 4)
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if f"{_PLACE}.0." in name:
            continue
        layer = name.removesuffix(f"{_PLACE}.original")
        if layer != name and place is not None:
            try:
                low, high = (stored[f"{layer}{_PLACE}.0.lora_{which}"][place] for which in "AB")
            except (KeyError, IndexError) as error:
                raise ModelError(f"{folder}: the weights have no adapter {task!r} for {layer}") from error
            # Of a linear layer B is (out, rank) and A (rank, in); of an embedding A is (rows, rank) and B (rank, width).
            tensor = tensor + scale * (low @ high if low.shape[0] == tensor.shape[0] else high @ low)
        found[name if layer == name else f"{layer}.weight"] = tensor
    return found


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or those of the named ones that it has, as float32.

    Raises ModelError where it cannot be read.
    """
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}; other weight formats are refused")
    try:
        with safe_open(path, "pt") as stored:
            there = stored.keys()
            wanted = there if names is None else [name for name in names if name in there]
            return {name: stored.get_tensor(name).float() for name in wanted}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """transformers' progress bar and load report are not for our users: what matters in them is checked here."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
