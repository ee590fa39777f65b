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
from .content import check_safe, content_hash, integer_at, read_json, read_json_value, text_at
from .errors import ModelError
from .hub import Checkpoint, locate
from .lora import adapter_hash, locate_adapter, read_settings
from .modules import Module, is_routed, line_of, read_modules
from .natives import native
from .origins import DEFAULT, OPTION, origins_of
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
# Modules that look tokens up in a table, and what a recipe calls a model of this kind.
TABLES = {"StaticEmbedding": "static", "SparseStaticEmbedding": "idf"}
UNLIMITED = 1 << 20  # tokens of a text: who states as much or more, as the 1e30 of some tokenizers, states no limit
# Position ids of these start at pad_token_id + 1, so the first rows of the position table go unused.
# fmt: off
POSITIONS_AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
})
# fmt: on
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
    positions = None if table else _positions(home, config)
    opened = Opened(checkpoint, config, modules, known, transformer=transformer, positions=positions)
    if table:
        limit = _table_tokens(home, modules[0].kind, wish.max_tokens)
    else:
        opened.note("lower_case", saved_in)
        limit = _max_tokens(opened, home, saved_in, wish.max_tokens)
    side = _truncation_side(opened, home, wish)
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
            _log.info("%s: %s is %r: %s", checkpoint.name, name, getattr(recipe, name), origin)
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


def _truncation_side(opened: Opened, home: Path, wish: Wishes) -> str:
    """Which end of a text stays where it is cut; right, which is no part of a recipe, where none is."""
    if wish.truncation_side == "left" and wish.long_text != "truncate":
        raise ModelError(f"truncation_side: long_text {wish.long_text} cuts nothing off, only truncate does")
    side = wish.truncation_side
    if not side:
        side, said_by = _saved_side(home, is_static=opened.modules[0].kind == "StaticEmbedding")
        opened.note("truncation_side", said_by)
    if side not in ("right", "left"):
        raise ModelError(f"truncation_side {side!r} of {opened.checkpoint.name} is neither right nor left")
    return side if wish.long_text == "truncate" else "right"


def _saved_side(home: Path, *, is_static: bool) -> tuple[str, str]:
    """The side that the tokenizer's files name, and which of them: transformers reads both in this order, StaticEmbedding the last alone."""
    path = home / "tokenizer_config.json"
    found = {} if is_static else read_json(path)
    if "truncation_side" in found:
        return text_at(found, "truncation_side", path), path.name
    path = home / "tokenizer.json"
    truncation = _truncation(path)
    return text_at({"direction": "right"} | truncation, "direction", path).lower(), path.name if truncation else DEFAULT


def _truncation(path: Path) -> dict[str, Any]:
    """What a tokenizer.json says of long texts, {} if nothing."""
    found = read_json_value(path, "truncation")
    if not isinstance(found, dict | None):
        raise ModelError(f"{path}: truncation: expected a JSON object, found {found!r}")
    return found or {}


def _table_tokens(home: Path, kind: str, wanted: int) -> int:
    """A table has no limit of its own but what its tokenizer is set to; each kind is cut by another of its files."""
    if kind == "StaticEmbedding":
        path, key = home / "tokenizer.json", "max_length"
        found = _truncation(path)
    else:
        path, key = home / "tokenizer_config.json", "model_max_length"
        found = read_json(path)
    return wanted or min(integer_at(found, (key,), path) or UNLIMITED, UNLIMITED)


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


def _positions(folder: Path, config: dict[str, Any]) -> int | None:
    """Tokens that the model has positions for; None: any number."""
    positions = integer_at(config, ("max_position_embeddings", "n_positions"), folder / "config.json")
    if positions is not None and positions < 1:  # XLNet writes -1: no table of positions
        positions = None
    if positions is not None and config.get("model_type") in POSITIONS_AFTER_PADDING:
        pad = integer_at(config, ("pad_token_id",), folder / "config.json")
        if pad is None and "pad_token_id" in config:
            raise ModelError(
                f"{folder / 'config.json'}: pad_token_id is null, and positions of this kind of model begin after it; write "
                "the number of the tokenizer's pad token there"
            )
        positions -= (1 if pad is None else pad) + 1
    return positions


def _max_tokens(opened: Opened, home: Path, saved_in: str, wanted: int) -> int:
    """What the checkpoint says (its own max_seq_length, else the tokenizer's), else the catalogue, never above its positions; or `wanted`.

    The saved figure may exceed the positions (514 for RoBERTa, whose first usable one is 2): the reference fails on
    such a text, here it is cut.
    """
    folder, positions, known = home, opened.positions, opened.known
    if known is not None and positions is not None and known.max_tokens > positions:
        known.disagree("max_tokens", f"{folder / 'config.json'} has {positions} positions")
    name = saved_in
    own = integer_at(opened.transformer, ("max_seq_length",), folder / name)
    if own is None:
        name = "tokenizer_config.json"
        own = integer_at(read_json(folder / name), ("model_max_length", "max_len"), folder / name)
    if wanted:
        if positions is not None and wanted > positions:
            raise ModelError(f"max_tokens {wanted} is above the {positions} positions of the model in {folder}")
        opened.note("max_tokens", OPTION)
        return wanted
    if own is not None and own >= UNLIMITED:
        own = None
    if own is None and known is not None and known.max_tokens:
        own, name = known.max_tokens, known.origin("max_tokens")
    limits = [(limit, origin) for limit, origin in ((own, name), (positions, "config.json")) if limit is not None]
    if not limits:
        raise ModelError(f"{folder}: no file says how many tokens the model takes; say it with --max-tokens")
    limit, origin = min(limits, key=lambda one: one[0])
    if limit < 1:
        raise ModelError(f"{folder}: the model's files allow {limit} tokens; say how many with --max-tokens")
    opened.note("max_tokens", origin)
    return limit
