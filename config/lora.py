"""A LoRA adapter's folder, as PEFT saves it: where it is, what its settings ask, and the hash of what is in it. Reads no tensors."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from .content import files_hash, integer_at, read_json
from .errors import ModelError
from .hub import locate
from .repository import ADAPTER, ADAPTER_WEIGHTS

CONFIG, WEIGHTS = ADAPTER, ADAPTER_WEIGHTS
# Keys of adapter_config.json that are read here, or that change no number of a trained adapter: where it came from, how training
# began and went, and which layers it chose (the weights name them). Any other one, unless empty, is refused.
# fmt: off
_KNOWN = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
})
# Ways to begin that take the start out of the base's own weights, so that the base as published is another one.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# fmt: on
_VERBS = {"SEQ_CLS": "score", "TOKEN_CLS": "extract"}  # task_type -> the verb; decoders of every verb say CAUSAL_LM
_WHAT_TO_DO = "merge it into its base model (PEFT's merge_and_unload) and give the merged model"


@dataclasses.dataclass(frozen=True, slots=True)
class LoraSettings:
    """What adapter_config.json says of the layers that it changes."""

    folder: Path
    base: str  # the model it was trained on, as its author named it; "" if it does not say
    targets: str | tuple[str, ...]  # a pattern of whole names, "all-linear", or names and ends of names
    rank: int
    alpha: float
    ranks: dict[str, int]  # pattern of a name's end -> another rank
    alphas: dict[str, float]
    rslora: bool

    def rank_and_scale(self, layer: str) -> tuple[int, float]:
        """Of one layer: alpha / r, and for rank-stabilised LoRA alpha / sqrt(r) (https://arxiv.org/abs/2312.03732)."""
        rank, alpha = _of(layer, self.ranks, self.rank), _of(layer, self.alphas, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)

    def changes(self, layer: str) -> bool:
        """Whether target_modules names this layer."""
        if isinstance(self.targets, str):
            return self.targets == "all-linear" or re.fullmatch(self.targets, layer) is not None
        return any(layer == one or layer.endswith(f".{one}") for one in self.targets)


def _of(layer: str, patterns: dict[str, Any], default: Any) -> Any:
    return next((value for one, value in patterns.items() if re.match(rf"(.*\.)?({one})$", layer)), default)


def locate_adapter(adapter: str) -> Path | None:
    """The folder of an adapter: an existing one, or `name` or `name@revision` on the hub or in its cache; None for "".

    Raises ModelError.
    """
    return locate(adapter).folder if adapter else None


def full_name(adapter: str) -> str:
    """How other processes find the same adapter: a folder's whole path, any other name as it is."""
    folder = Path(adapter).expanduser()
    return str(folder.resolve()) if adapter and folder.is_dir() else adapter


def adapter_hash(folder: Path) -> str:
    """sha256 over the adapter's two files, wherever they lie."""
    return files_hash([(name, folder / name) for name in (CONFIG, WEIGHTS)])


def read_settings(folder: Path, task: str = "") -> LoraSettings:
    """The adapter's settings. Raises ModelError: no adapter, one that was trained for another verb than `task`, weights that are
    not safetensors, or what Lading does not apply."""
    path = folder / CONFIG
    if not path.is_file():
        what = "a whole model: give it as the model" if (folder / "config.json").exists() else "no adapter's folder"
        raise ModelError(f"adapter {folder}: no {CONFIG}, so it is {what}")
    found = read_json(path)
    kind = found.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{path}: peft_type {kind!r}; Lading applies LORA adapters only: {_WHAT_TO_DO}")
    verb = _VERBS.get(str(found.get("task_type")), "")
    if task and verb and verb != task:
        raise ModelError(f"{path}: task_type {found['task_type']}: an adapter for `{verb}`, not `{task}`")
    if found.get("use_dora"):
        raise ModelError(f"{path}: use_dora: DoRA adapters are not applied: {_WHAT_TO_DO}")
    if saved := found.get("modules_to_save"):
        raise ModelError(
            f"{path}: modules_to_save {saved!r} replace whole layers, which Lading does not do: {_WHAT_TO_DO}"
        )
    if found.get("bias", "none") != "none":
        raise ModelError(
            f"{path}: bias {found['bias']!r}: the adapter has biases of its own, only none is applied: {_WHAT_TO_DO}"
        )
    begun = str(found.get("init_lora_weights"))
    if begun.startswith(_CHANGES_BASE):
        raise ModelError(f"{path}: init_lora_weights {begun!r} changes the base model's own weights: {_WHAT_TO_DO}")
    if unread := sorted(key for key, value in found.items() if key not in _KNOWN and value and key != "megatron_core"):
        raise ModelError(f"{path}: sets {', '.join(unread)}, which Lading does not apply: {_WHAT_TO_DO}")
    if not (folder / WEIGHTS).is_file():
        others = sorted(file.name for file in folder.glob("adapter_model.*"))
        raise ModelError(
            f"adapter {folder}: no {WEIGHTS}{f', only {others[0]}' if others else ''}; Lading opens safetensors only, because other formats "
            'can run code. If you trust the file, convert it: python -c "import torch; from safetensors.torch import save_file; '
            f"save_file(torch.load('{folder}/adapter_model.bin', weights_only=True), '{folder}/{WEIGHTS}')\""
        )
    rank = integer_at(found, ("r",), path)
    alpha = found.get("lora_alpha")
    if not rank or rank < 1 or not isinstance(alpha, int | float):
        raise ModelError(f"{path}: r and lora_alpha: expected numbers above 0, found {rank!r} and {alpha!r}")
    ranks, alphas = found.get("rank_pattern") or {}, found.get("alpha_pattern") or {}
    if not all(isinstance(one, int) and one > 0 for one in ranks.values()):
        raise ModelError(f"{path}: rank_pattern: expected whole numbers above 0, found {ranks!r}")
    if not all(isinstance(one, int | float) for one in alphas.values()):
        raise ModelError(f"{path}: alpha_pattern: expected numbers, found {alphas!r}")
    targets = found.get("target_modules")
    if isinstance(targets, list) and targets and all(isinstance(one, str) for one in targets):
        targets = tuple(targets)
    elif not isinstance(targets, str) or not targets:
        raise ModelError(f"{path}: target_modules: expected names of layers or a pattern, found {targets!r}")
    settings = LoraSettings(
        folder,
        str(found.get("base_model_name_or_path") or ""),
        targets,
        rank,
        float(alpha),
        ranks,
        alphas,
        bool(found.get("use_rslora")),
    )
    try:
        settings.changes("")
        settings.rank_and_scale("")
    except re.error as error:
        raise ModelError(f"{path}: target_modules, rank_pattern or alpha_pattern is no pattern: {error}") from None
    return settings
