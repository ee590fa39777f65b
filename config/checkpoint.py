"""What a checkpoint's own files say about turning a text into a result, settled once into a Recipe.

Reads JSON only (no torch) and follows sentence-transformers 6.2 in what the files mean. Where a file asks for
something Lading does not do, the model is refused: a result that is nearly right is worse than none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

from . import catalogue, encoders, extractors, scorers
from .content import check_safe, content_hash, read_json, text_at
from .errors import ModelError
from .events import tell
from .hub import Checkpoint, locate
from .limits import POSITIONS_AFTER_PADDING, max_tokens_of, positions_of, table_tokens, truncation_side
from .lora import adapter_hash, locate_adapter, read_settings
from .modules import TABLES, Module, is_routed, line_of, read_modules
from .natives import native
from .origins import origins_of
from .recipe import Recipe
from .sparse import SPARSE_LINEAR
from .wishes import Opened, Wishes

__all__ = ["POSITIONS_AFTER_PADDING", "Checkpoint", "locate", "resolve", "resolve_with_origins"]

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
_LATE_KEYS = {"query_length", "document_length", "query_expansion"}  # of multi-vector models
# Trained in bfloat16 with activations that float16 cannot hold (model cards of EmbeddingGemma and T5).
_OVERFLOW_IN_FLOAT16 = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "t5", "mt5", "umt5"})

_log = logging.getLogger(__name__)

_SETTLE = {"encode": encoders.settle, "score": scorers.settle, "extract": extractors.settle}


def resolve(checkpoint: Checkpoint, *, task: str, **wishes: Any) -> Recipe:
    """The recipe of `task` (encode, score, extract) with this checkpoint; the other arguments are the fields of `Wishes`.

    Raises ModelError: unsafe or incomplete files, a model of another kind, or a wish that the checkpoint cannot fulfil.
    """
    return resolve_with_origins(checkpoint, task=task, **wishes)[0]


def resolve_with_origins(checkpoint: Checkpoint, *, task: str, **wishes: Any) -> tuple[Recipe, dict[str, str]]:
    """`resolve`, and for each field of the recipe where its value came from, in words (config/origins.py)."""
    wish, folder = Wishes(**wishes), checkpoint.folder
    modules = read_modules(folder, "query" if wish.prompt == "query" else "document")
    home, table = folder / modules[0].path, modules[0].kind in TABLES
    check_safe(home, table=table)
    known = catalogue.of(checkpoint, wish.known_as)
    if wish.known_as and known is not None and known.task != task:
        raise ModelError(
            f"{known.name} is a model for `{known.task}`, so {checkpoint.name} is not known as that for `{task}`"
        )
    keys = _TRANSFORMER_KEYS | (_LATE_KEYS if line_of(modules) == "multi_vector" else set())
    keys |= {"processing_kwargs"} if task == "score" else set()  # those are read by scorers.py
    saved_in, transformer = ("", {}) if table else _transformer_config(home, keys)
    path = home / "config.json"
    config = native(read_json(path), path)
    positions = None if table else positions_of(home, config)
    opened = Opened(checkpoint, config, modules, known, transformer=transformer, positions=positions)
    if table:
        limit = table_tokens(opened, home, wish.max_tokens)
    else:
        opened.note("lower_case", saved_in)
        limit = max_tokens_of(opened, home, saved_in, wish.max_tokens)
    side = truncation_side(opened, home, wish)
    recipe = Recipe(
        task=task,
        content="",
        architecture=TABLES.get(modules[0].kind) or text_at(opened.config, "model_type", path),
        max_tokens=limit,
        lower_case=bool(transformer.get("do_lower_case")),
        precision=wish.precision,
        long_text=wish.long_text,
        truncation_side=side,
        chunk_overlap=wish.chunk_overlap,
    )
    if wish.precision == "float16" and recipe.architecture in _OVERFLOW_IN_FLOAT16:
        raise ModelError(f"{path}: a {recipe.architecture} model overflows in float16; use bfloat16 or float32")
    recipe = _SETTLE[task](recipe, opened, wish)  # refuses before gigabytes are hashed
    if (adapter := locate_adapter(wish.adapter)) is not None:
        read_settings(adapter, task)
        recipe = dataclasses.replace(recipe, adapter=adapter_hash(adapter))
    for name, origin in opened.origins.items():
        if origin.startswith("catalogue"):
            value = getattr(recipe, name)
            tell(_log, "recipe from catalogue", model=checkpoint.name, key=name, value=value, origin=origin)
    if wish.chunk_tokens > recipe.max_tokens:
        raise ModelError(
            f"chunk_tokens {wish.chunk_tokens} is above the {recipe.max_tokens} tokens that {checkpoint.name} takes"
        )
    chunk = wish.chunk_tokens or recipe.max_tokens
    if wish.long_text == "chunk" and wish.chunk_overlap > chunk // 2:
        raise ModelError(f"chunk_overlap {wish.chunk_overlap} is more than half of a chunk's {chunk} tokens")
    if wish.long_text == "chunk" and recipe.expand_to:
        raise ModelError(
            "queries that are filled up to a length cannot be chunked: long_text must be truncate or reject"
        )
    recipe = dataclasses.replace(recipe, chunk_tokens=0 if chunk == recipe.max_tokens else wish.chunk_tokens)
    heads = [*recipe.token_modules, *([SPARSE_LINEAR] if recipe.sparse == "lexical" else [])]
    recipe = dataclasses.replace(recipe, content=_content(folder, modules, heads))
    return recipe, origins_of(recipe, opened, wish)


def _content(folder: Path, modules: list[Module], heads: list[str]) -> str:
    """The same for queries and documents: where each has modules of its own, those of both count."""
    lines = [read_modules(folder, side) for side in ("document", "query")] if is_routed(folder) else [modules]
    hashes: list[str] = []
    for line in lines:
        part, paths = line[0].path, [module.path for module in line[1:] if module.path]
        hashes.append(content_hash(folder, paths, part=part, files=heads))
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _transformer_config(folder: Path, known: set[str]) -> tuple[str, dict[str, Any]]:
    """The settings of the Transformer module, and the name of their file."""
    path = next(
        (folder / name for name in _TRANSFORMER_CONFIGS if (folder / name).is_file()), folder / _TRANSFORMER_CONFIGS[0]
    )
    found = read_json(path)
    unread = sorted(key for key, value in found.items() if key not in known and value)
    if unread:
        raise ModelError(f"{path}: sets {', '.join(unread)}, which Lading does not apply, so its results would differ")
    method = (found.get("modality_config") or {}).get("text", {"method": "forward"})
    if not isinstance(method, dict) or method.get("method") != "forward":
        raise ModelError(f"{path}: modality_config: texts must go through the model's `forward`, found {method!r}")
    return path.name, found
