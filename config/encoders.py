"""The recipe of `encode`: which outputs a checkpoint gives, pooling, projections, prompts."""

from __future__ import annotations

import dataclasses

from .content import read_json
from .errors import ModelError
from .hub import SENTENCE_TRANSFORMERS
from .kinds import verb_of
from .modules import read_pooling
from .origins import OPTION
from .recipe import Recipe
from .unsaid import check_dims, normalize_of, pooling_of, prompt_of
from .wishes import Opened, Wishes


def settle(recipe: Recipe, opened: Opened, wish: Wishes) -> Recipe:
    """`recipe` with what `encode` adds. Raises ModelError: a model of another kind, or a wish that it cannot fulfil."""
    _check_kind(opened, wish)
    folder, name = opened.folder, opened.checkpoint.name
    pooling, include_prompt, own_dims = read_pooling(folder, opened.config, opened.modules)
    check_dims(opened, own_dims)
    if wish.dims > own_dims:
        raise ModelError(f"dims {wish.dims} is above the {own_dims} dimensions of {name}")
    dims = wish.dims or own_dims
    projection = next(
        (f"{one.path}/config.json" for one in reversed(opened.modules) if one.kind == "Dense"), "config.json"
    )
    opened.note("dims", OPTION if wish.dims else projection)
    if wish.vector_type == "binary" and dims % 8:
        raise ModelError(f"binary packs 8 dimensions into a byte, and {dims} is no multiple of 8: give --dims")
    opened.note("modules", "modules.json")
    opened.note(
        "include_prompt", next((f"{one.path}/config.json" for one in opened.modules if one.kind == "Pooling"), "")
    )
    return dataclasses.replace(
        recipe,
        dims=dims,
        pooling=pooling_of(opened, wish, pooling),
        include_prompt=include_prompt,
        modules=tuple(module.path for module in opened.modules if module.kind == "Dense"),
        normalize=normalize_of(opened, wish),
        prompt=prompt_of(opened, wish),
        vector_type=wish.vector_type,
    )


def _check_kind(opened: Opened, wish: Wishes) -> None:
    verb = verb_of(opened.architecture)
    saved_as = read_json(opened.folder / SENTENCE_TRANSFORMERS).get("model_type")
    if verb and not opened.is_pipeline:
        raise ModelError(
            f"{opened.folder / 'config.json'}: {opened.architecture} is a model for `{verb}`, not `encode`"
        )
    if saved_as not in (None, "SentenceTransformer"):
        raise ModelError(
            f"{opened.folder / SENTENCE_TRANSFORMERS}: a {saved_as} model; encode makes dense vectors only"
        )
    if len(opened.modules) < 2 and not wish.pooling and not (opened.known and opened.known.pooling):
        raise ModelError(
            f"{opened.folder / 'modules.json'}: has no Pooling, so the model gives vectors of tokens, not of texts; if a text's "
            "vector is made of them all the same, say how: --pooling mean, cls or last"
        )
