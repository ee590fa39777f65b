"""The recipe of `encode`: which outputs a checkpoint gives, pooling, projections, prompts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from .content import read_json
from .errors import ModelError, nearest
from .hub import SENTENCE_TRANSFORMERS, saved_prompts
from .kinds import verb_of
from .modules import read_pooling
from .recipe import Recipe
from .wishes import Opened, Wishes


def settle(recipe: Recipe, opened: Opened, wish: Wishes) -> Recipe:
    """`recipe` with what `encode` adds. Raises ModelError: a model of another kind, or a wish that it cannot fulfil."""
    _check_kind(opened)
    folder, name = opened.folder, opened.checkpoint.name
    pooling, include_prompt, own_dims = read_pooling(folder, opened.config, opened.modules)
    if wish.dims > own_dims:
        raise ModelError(f"dims {wish.dims} is above the {own_dims} dimensions of {name}")
    dims = wish.dims or own_dims
    if wish.vector_type == "binary" and dims % 8:
        raise ModelError(f"binary packs 8 dimensions into a byte, and {dims} is no multiple of 8: give --dims")
    return dataclasses.replace(
        recipe,
        dims=dims,
        pooling=pooling,
        include_prompt=include_prompt,
        modules=tuple(module.path for module in opened.modules if module.kind == "Dense"),
        normalize=any(module.kind == "Normalize" for module in opened.modules),
        prompt=wish.prompt_text or prompt_named(folder, wish.prompt),
        vector_type=wish.vector_type,
    )


def _check_kind(opened: Opened) -> None:
    verb = verb_of(opened.architecture)
    saved_as = read_json(opened.folder / SENTENCE_TRANSFORMERS).get("model_type")
    if verb and not opened.is_pipeline:
        raise ModelError(
            f"{opened.folder / 'config.json'}: {opened.architecture} is a model for `{verb}`, not `encode`"
        )
    if saved_as not in (None, "SentenceTransformer"):
        raise ModelError(
            f"{opened.folder / SENTENCE_TRANSFORMERS}: a {saved_as} model"
            + (", for `score`, not `encode`" if saved_as == "CrossEncoder" else "; encode makes dense vectors only")
        )
    if len(opened.modules) < 2:
        raise ModelError(
            f"{opened.folder / 'modules.json'}: has no Pooling, so the model gives vectors of tokens, not of texts"
        )


def prompt_named(folder: Path, name: str) -> str:
    """The text of a prompt: documents and queries have other names in some checkpoints, and fall back to its default."""
    if name == "none":
        return ""
    prompts = saved_prompts(folder)
    for candidate in {"document": ("document", "passage", "corpus")}.get(name, (name,)):
        if candidate in prompts:
            return prompts[candidate]
    if name not in ("document", "query"):
        hint = nearest(name, {*prompts, "document", "query", "none"})
        raise ModelError(f"{folder / SENTENCE_TRANSFORMERS}: no prompt {name!r}{hint} (or give a text: prompt_text)")
    default = read_json(folder / SENTENCE_TRANSFORMERS).get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ModelError(f"{folder / SENTENCE_TRANSFORMERS}: default_prompt_name {default!r} is none of its prompts")
    return prompts[default] if default is not None else ""
