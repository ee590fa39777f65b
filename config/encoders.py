"""The recipe of `encode`: which outputs a checkpoint gives, pooling, projections, prompts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from .content import read_json
from .errors import ModelError, nearest
from .hub import SENTENCE_TRANSFORMERS, saved_prompts
from .kinds import verb_of
from .modules import read_pooling
from .origins import DEFAULT, OPTION
from .recipe import Recipe
from .wishes import Opened, Wishes


def settle(recipe: Recipe, opened: Opened, wish: Wishes) -> Recipe:
    """`recipe` with what `encode` adds. Raises ModelError: a model of another kind, or a wish that it cannot fulfil."""
    _check_kind(opened, wish)
    folder, name = opened.folder, opened.checkpoint.name
    pooling, include_prompt, own_dims = read_pooling(folder, opened.config, opened.modules)
    _check_dims(opened, own_dims)
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
    return dataclasses.replace(
        recipe,
        dims=dims,
        pooling=_pooling(opened, wish, pooling),
        include_prompt=include_prompt,
        modules=tuple(module.path for module in opened.modules if module.kind == "Dense"),
        normalize=_normalize(opened, wish),
        prompt=_prompt(opened, wish),
        vector_type=wish.vector_type,
    )


def _pooling(opened: Opened, wish: Wishes, saved: str) -> str:
    """What is asked for, else the Pooling module's (`saved`), else the catalogue's, else the mean, as sentence-transformers does.

    That library gives a plain causal model its last token. Whether its tokenizer closes texts is not known then, and neither
    whether the model was made for it: here somebody has to say so.
    """
    module = next((one.path for one in opened.modules if one.kind == "Pooling" and one.path), "")
    known = opened.known
    if wish.pooling:
        pooling, origin = wish.pooling, OPTION
    elif module:
        pooling, origin = saved, f"{module}/config.json"
    elif known is not None and known.pooling:
        pooling, origin = known.pooling, known.origin("pooling")
    elif opened.architecture.endswith("ForCausalLM"):
        raise ModelError(
            f"{opened.folder}: no file says how the token vectors of {opened.architecture} become one: give --pooling mean, cls or last"
        )
    else:
        pooling, origin = saved, DEFAULT
    opened.note("pooling", origin)
    return pooling


def _normalize(opened: Opened, wish: Wishes) -> bool:
    known = opened.known
    if wish.normalize is not None:
        normalize, origin = wish.normalize, OPTION
    elif (opened.folder / "modules.json").exists():
        normalize, origin = any(module.kind == "Normalize" for module in opened.modules), "modules.json"
    elif known is not None and known.normalize is not None:
        normalize, origin = known.normalize, known.origin("normalize")
    else:
        normalize, origin = False, DEFAULT
    opened.note("normalize", origin)
    return normalize


def _prompt(opened: Opened, wish: Wishes) -> str:
    """The checkpoint's own prompts, where it has any, are all there are; else those of the catalogue."""
    if wish.prompt_text or wish.prompt == "none":
        opened.note("prompt", OPTION)
        return wish.prompt_text
    known = opened.known
    if known is None or not known.prompts or opened.checkpoint.prompts:
        text = prompt_named(opened.folder, wish.prompt)
        opened.note("prompt", SENTENCE_TRANSFORMERS if opened.checkpoint.prompts else DEFAULT)
        return text
    if wish.prompt not in known.prompts and wish.prompt not in ("document", "query"):
        hint = nearest(wish.prompt, {*known.prompts, "document", "query", "none"})
        raise ModelError(
            f"{known.name}: {known.origin('prompts')} has no prompt {wish.prompt!r}{hint} (or give a text: prompt_text)"
        )
    opened.note("prompt", known.origin("prompts"))
    return known.texts.get(wish.prompt, "")


def _check_dims(opened: Opened, own_dims: int) -> None:
    """The catalogue's `dims` are those of its first output."""
    if opened.known is not None and opened.known.outputs[0] == "dense":
        opened.known.check("dims", own_dims, opened.folder)


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
