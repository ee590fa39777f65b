"""The multi-vector output of `encode`: ColBERT in the layouts of sentence-transformers, PyLate and Stanford, and BGE-M3's head.

Follows sentence-transformers 6.2, and FlagEmbedding for BGE-M3.
"""

from __future__ import annotations

import dataclasses
import string
from pathlib import Path
from typing import Any

from .content import integer_at, read_json, special_tokens
from .errors import ModelError
from .hub import SENTENCE_TRANSFORMERS, prompt_named, saved_prompts
from .limits import SETTINGS
from .modules import check_chain, check_input, hidden_size, read_dense
from .origins import DEFAULT, OPTION
from .recipe import Recipe
from .sparse import has_head
from .weights import shapes
from .wishes import Opened, Wishes

COLBERT_LINEAR = "colbert_linear.safetensors"
STANFORD = "HF_ColBERT"  # the architecture that Stanford's ColBERT checkpoints name
STANFORD_FILE = "artifact.metadata"
# Keys of config_sentence_transformers.json that only PyLate writes: with one of them, queries are expanded unless it says no.
_PYLATE = frozenset(
    {
        "query_length",
        "document_length",
        "query_expansion",
        "do_query_expansion",
        "attend_to_expansion_tokens",
        "attend_to_mask_tokens",
        "query_prefix",
        "document_prefix",
        "skiplist_words",
    }
)


def settle_multi_vector(recipe: Recipe, opened: Opened, wish: Wishes, line: str) -> Recipe:
    """`recipe` with its multi-vector output. Raises ModelError where the model has no projection for one."""
    if wish.vector_type not in ("float32", "float16"):
        raise ModelError(f"vector_type {wish.vector_type}: vectors of tokens are stored as float32 or float16")
    if wish.token_pooling < 1:
        raise ModelError(f"token_pooling {wish.token_pooling} must be at least 1")
    if opened.architecture == STANFORD or line == "multi_vector":
        recipe = _colbert(recipe, opened, wish)
        own = recipe.token_dims
    elif opened.config.get("model_type") == "xlm-roberta" and has_head(opened, COLBERT_LINEAR):
        own = _rows_of(opened, COLBERT_LINEAR, "weight")
        _note(opened, COLBERT_LINEAR, "token_modules", "token_dims", "token_normalize", "drop_first")
        recipe = dataclasses.replace(recipe, token_modules=(COLBERT_LINEAR,), token_normalize=True, drop_first=True)
    else:
        raise ModelError(
            f"{opened.folder}: has no projection for a multi_vector output: that takes a ColBERT model (Transformer, Dense, "
            f"MultiVectorMask, Normalize; or {STANFORD}), or BGE-M3 with its {COLBERT_LINEAR}"
        )
    dims = 0 if "dense" in recipe.outputs else wish.dims
    if dims > own:
        raise ModelError(f"dims {dims} is above the {own} dimensions that {opened.checkpoint.name} gives a token")
    if wish.token_pooling > 1 and wish.prompt == "query":
        raise ModelError("token_pooling joins the tokens of documents; those of queries are all compared")
    if dims:
        opened.note("token_dims", OPTION)
    return dataclasses.replace(recipe, token_dims=dims or own, token_pooling=wish.token_pooling)


def _note(opened: Opened, origin: str, *fields: str) -> None:
    for field in fields:
        opened.note(field, origin if (opened.folder / origin).exists() else DEFAULT)


def _colbert(recipe: Recipe, opened: Opened, wish: Wishes) -> Recipe:
    folder, is_query = opened.folder, wish.prompt == "query"
    saved, stanford = read_json(folder / SENTENCE_TRANSFORMERS), opened.architecture == STANFORD
    path = folder / (STANFORD_FILE if stanford else SENTENCE_TRANSFORMERS)
    metadata = read_json(folder / STANFORD_FILE) if stanford else {}
    known, markers, prompts = (
        _lengths(saved, metadata, stanford),
        _markers(saved, metadata, stanford),
        saved_prompts(folder),
    )
    for side, marker in markers.items():
        prompts[side] = marker + prompts.get(side, "").removeprefix(marker)
    known |= {key: value for key, value in opened.transformer.items() if key in known or key.startswith("query_exp")}
    lengths = SETTINGS if known.keys() & opened.transformer.keys() else path.name
    expansion = known["query_expansion"] if is_query else None
    if expansion and not _is_legacy(saved, stanford) and all(one.kind != "MultiVectorMask" for one in opened.modules):
        raise ModelError(
            f"{folder / 'modules.json'}: queries are expanded, but no MultiVectorMask says that this counts"
        )
    dims, modules = hidden_size(folder, opened.config), []
    for module in opened.modules[1:] if not stanford else []:
        where = folder / module.path / "config.json"
        if module.kind == "Dense":
            takes, gives = read_dense(where, "token_embeddings")
            check_chain(where, takes, dims, modules[-1] if modules else "config.json")
            dims = gives
            modules.append(module.path)
        elif module.kind == "Normalize":
            check_input(where, {"module_input_name": "sentence_embedding"} | read_json(where), "token_embeddings")
    _note(opened, "config.json" if stanford else "modules.json", "token_modules", "token_normalize")
    _note(opened, "model.safetensors" if stanford else f"{modules[-1]}/config.json", "token_dims")
    _note(opened, path.name, "markers", "skip_tokens")
    opened.note("prompt", OPTION if wish.prompt_text else path.name if path.exists() else DEFAULT)
    recipe = dataclasses.replace(
        recipe,
        token_modules=("model.safetensors",) if stanford else tuple(modules),
        token_dims=_rows_of(opened, "model.safetensors", "linear.weight") if stanford else dims,
        token_normalize=_is_legacy(saved, stanford) or any(module.kind == "Normalize" for module in opened.modules),
        markers=tuple(dict.fromkeys(marker for marker in markers.values() if marker)),
        prompt=wish.prompt_text or prompt_named(folder, wish.prompt, prompts),
        skip_tokens=_skipped(opened, saved, metadata, "query" if is_query else "document"),
    )
    length = integer_at(known, ("query_length" if is_query else "document_length",), path)
    if expansion is not None:
        _note(opened, lengths, "max_tokens", "expand_to", "expand_with", "expand_attended")
        return _expanded(recipe, expansion, length, opened, path)
    if length and not wish.max_tokens:
        _note(opened, lengths, "max_tokens")
        recipe = dataclasses.replace(recipe, max_tokens=min(length, opened.positions or length))
    return recipe


def _is_legacy(saved: dict[str, Any], stanford: bool) -> bool:
    """Whether masking and normalisation stand in no module: Stanford's folders, and PyLate's before sentence-transformers had them."""
    return stanford or saved.get("model_type") == "ColBERT"


def _lengths(saved: dict[str, Any], metadata: dict[str, Any], stanford: bool) -> dict[str, Any]:
    """query_length, document_length and query_expansion of the formats that came before sentence-transformers' own."""
    if stanford:
        expansion = {
            "attend": bool(metadata.get("attend_to_mask_tokens")),
            "length": metadata.get("query_maxlen") or 32,
        }
        return {"query_length": None, "document_length": metadata.get("doc_maxlen"), "query_expansion": expansion}
    known = {key: saved.get(key) for key in ("query_length", "document_length", "query_expansion")}
    if "query_expansion" not in saved and _PYLATE & saved.keys() and saved.get("do_query_expansion") is not False:
        attend = saved.get("attend_to_expansion_tokens", saved.get("attend_to_mask_tokens"))
        known["query_expansion"] = {"attend": bool(attend), "length": known["query_length"] or 32}
        known["query_length"] = None
    return known


def _markers(saved: dict[str, Any], metadata: dict[str, Any], stanford: bool) -> dict[str, str]:
    """query and document -> the token that such a text begins with, and the blank after it; {} where prompts are plain text."""
    if stanford:
        query, document = metadata.get("query_token_id") or "[unused0]", metadata.get("doc_token_id") or "[unused1]"
        return {"query": f"{query} ", "document": f"{document} "}
    return {side: str(saved[f"{side}_prefix"] or "") for side in ("query", "document") if f"{side}_prefix" in saved}


def _skipped(opened: Opened, saved: dict[str, Any], metadata: dict[str, Any], side: str) -> tuple[str, ...]:
    """The tokens of this side that get no vector, punctuation where an older format does not say."""
    words: Any = None
    path = opened.folder / SENTENCE_TRANSFORMERS
    if opened.architecture == STANFORD:
        words = list(string.punctuation) if metadata.get("mask_punctuation", True) else []
    elif _is_legacy(saved, False):
        words = saved.get("skiplist_words")
        words = list(string.punctuation) if words is None else words
    else:
        for module in opened.modules:
            if module.kind == "MultiVectorMask":
                path = opened.folder / module.path / "config.json"
                found = read_json(path)
                if found.get("keep_only_token_ids"):
                    raise ModelError(f"{path}: keep_only_token_ids is for images, which Lading does not encode")
                _note(opened, f"{module.path}/config.json", "skip_tokens")
                words = found.get("skiplist_words") if side in (found.get("skiplist_tasks") or ["document"]) else []
                return _texts(words or [], path)
    return _texts(words or [], path) if side == "document" else ()


def _texts(words: object, path: Path) -> tuple[str, ...]:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ModelError(f"{path}: skiplist_words: expected a list of tokens, found {words!r}")
    return tuple(words)


def _expanded(recipe: Recipe, expansion: Any, limit: int | None, opened: Opened, path: Path) -> Recipe:
    """A query is filled up with mask tokens to a length, and cut at it unless the strategy is "min"."""
    length = expansion.get("length") if isinstance(expansion, dict) else None
    strategy = expansion.get("strategy", "fixed") if isinstance(expansion, dict) else None
    if not isinstance(length, int) or length < 1 or strategy not in ("fixed", "min"):
        raise ModelError(f"{path}: query_expansion {expansion!r}: expected a length, and the strategy fixed or min")
    if length > recipe.max_tokens:
        raise ModelError(
            f"{path}: query_expansion to {length} tokens is above the {recipe.max_tokens} that the model takes"
        )
    found = special_tokens(opened.folder)
    token = expansion.get("token") or found.get("mask_token") or found.get("eos_token")
    if not isinstance(token, str):
        raise ModelError(f"{opened.folder / 'tokenizer_config.json'}: no mask_token to fill queries up with")
    return dataclasses.replace(
        recipe,
        max_tokens=length if strategy == "fixed" else max(length, min(limit or recipe.max_tokens, recipe.max_tokens)),
        expand_to=length,
        expand_with=token,
        expand_attended=bool(expansion.get("attend", False)),
    )


def _rows_of(opened: Opened, file: str, name: str) -> int:
    """Rows of a matrix in a safetensors file, from its header."""
    path = opened.folder / file
    shape = shapes(path).get(name)
    if shape is None or len(shape) != 2:
        raise ModelError(f"{path} has no matrix {name}, the projection of the tokens")
    return shape[0]
