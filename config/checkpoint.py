"""What a checkpoint's own files say about turning a text into a result, settled once into a Recipe.

Reads JSON only (no torch) and follows sentence-transformers 6.2 in what the files mean. Where a file asks for
something Lading does not do, the model is refused: a result that is nearly right is worse than none.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from . import encoders, extractors, scorers
from .content import check_safe, content_hash, integer_at, read_json, text_at
from .errors import ModelError
from .hub import Checkpoint, locate
from .lora import adapter_hash, locate_adapter, read_settings
from .modules import read_modules
from .recipe import Recipe
from .wishes import Opened, Wishes

__all__ = ["POSITIONS_AFTER_PADDING", "Checkpoint", "locate", "resolve"]

# Names of the settings file of a Transformer module, newest first, as releases of sentence-transformers wrote them.
_TRANSFORMER_CONFIGS = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
# Keys of that file that Lading reads, or that change no number. Any other one, unless empty, is refused.
_TRANSFORMER_KEYS = {
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
}
# Position ids of these start at pad_token_id + 1, so the first rows of the position table go unused.
# fmt: off
POSITIONS_AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
})
# fmt: on


_SETTLE = {"encode": encoders.settle, "score": scorers.settle, "extract": extractors.settle}


def resolve(checkpoint: Checkpoint, *, task: str, **wishes: Any) -> Recipe:
    """The recipe of `task` (encode, score, extract) with this checkpoint; the other arguments are the fields of `Wishes`.

    Raises ModelError: unsafe or incomplete files, a model of another kind, or a wish that the checkpoint cannot fulfil.
    """
    wish, folder = Wishes(**wishes), checkpoint.folder
    check_safe(folder)
    opened = Opened(checkpoint, read_json(folder / "config.json"), read_modules(folder))
    transformer = _transformer_config(folder)
    limit = _max_tokens(folder, opened.config, transformer, wish.max_tokens)
    if wish.chunk_tokens > limit:
        raise ModelError(f"chunk_tokens {wish.chunk_tokens} is above the {limit} tokens that {checkpoint.name} takes")
    chunk = wish.chunk_tokens or limit
    if wish.long_text == "chunk" and wish.chunk_overlap > chunk // 2:
        raise ModelError(f"chunk_overlap {wish.chunk_overlap} is more than half of a chunk's {chunk} tokens")
    recipe = Recipe(
        task=task,
        content="",
        architecture=text_at(opened.config, "model_type", folder / "config.json"),
        max_tokens=limit,
        lower_case=bool(transformer.get("do_lower_case")),
        precision=wish.precision,
        long_text=wish.long_text,
        chunk_tokens=0 if wish.chunk_tokens == limit else wish.chunk_tokens,
        chunk_overlap=wish.chunk_overlap,
    )
    recipe = _SETTLE[task](recipe, opened, wish)  # refuses before gigabytes are hashed
    content = content_hash(folder, [module.path for module in opened.modules if module.path])
    adapter = locate_adapter(wish.adapter)
    if adapter is not None:
        read_settings(adapter)
        recipe = dataclasses.replace(recipe, adapter=adapter_hash(adapter))
    return dataclasses.replace(recipe, content=content)


def _transformer_config(folder: Path) -> dict[str, Any]:
    path = next(
        (folder / name for name in _TRANSFORMER_CONFIGS if (folder / name).is_file()), folder / _TRANSFORMER_CONFIGS[0]
    )
    found = read_json(path)
    unread = sorted(key for key, value in found.items() if key not in _TRANSFORMER_KEYS and value)
    if unread:
        raise ModelError(f"{path}: sets {', '.join(unread)}, which Lading does not apply, so its results would differ")
    method = (found.get("modality_config") or {}).get("text", {"method": "forward"})
    if not isinstance(method, dict) or method.get("method") != "forward":
        raise ModelError(f"{path}: modality_config: texts must go through the model's `forward`, found {method!r}")
    return found


def _max_tokens(folder: Path, config: dict[str, Any], transformer: dict[str, Any], wanted: int) -> int:
    """What the checkpoint says (its own max_seq_length, else the tokenizer's), never above its positions; or `wanted`.

    The saved figure may exceed the positions (514 for RoBERTa, whose first usable one is 2): the reference fails on
    such a text, here it is cut.
    """
    positions = integer_at(config, ("max_position_embeddings", "n_positions"), folder / "config.json")
    if positions is not None and positions < 1:  # XLNet writes -1: no table of positions
        positions = None
    if positions is not None and config.get("model_type") in POSITIONS_AFTER_PADDING:
        pad = integer_at(config, ("pad_token_id",), folder / "config.json")
        positions -= (1 if pad is None else pad) + 1
    own = integer_at(transformer, ("max_seq_length",), folder / _TRANSFORMER_CONFIGS[0])
    if own is None:
        own = integer_at(
            read_json(folder / "tokenizer_config.json"),
            ("model_max_length", "max_len"),
            folder / "tokenizer_config.json",
        )
    if wanted:
        if positions is not None and wanted > positions:
            raise ModelError(f"max_tokens {wanted} is above the {positions} positions of the model in {folder}")
        return wanted
    limits = [limit for limit in (own, positions) if limit is not None and limit < 10**9]  # 1e30 is "no limit"
    if not limits:
        raise ModelError(f"{folder}: no file says how many tokens the model takes; say it with --max-tokens")
    if min(limits) < 1:
        raise ModelError(f"{folder}: the model's files allow {min(limits)} tokens; say how many with --max-tokens")
    return min(limits)
