"""The recipe of `encode`: which outputs a checkpoint gives, and for the dense one pooling, projections, prompts."""

from __future__ import annotations

import dataclasses

from .columns import OUTPUTS
from .content import read_json
from .errors import ModelError, nearest
from .hub import SENTENCE_TRANSFORMERS
from .kinds import verb_of
from .modules import hidden_size, line_of, read_pooling
from .multi_vector import STANFORD, settle_multi_vector
from .natives import task_adapter
from .origins import OPTION
from .recipe import Recipe
from .sparse import settle_sparse
from .unsaid import check_dims, normalize_of, pooling_of, prompt_of
from .weights import shapes
from .wishes import Opened, Wishes

# Line of modules -> the output it is made for, and the model_type that sentence-transformers or PyLate saves it under.
_OWN = {"dense": "dense", "static": "dense", "sparse": "sparse", "idf": "sparse", "multi_vector": "multi_vector"}
_SAVED_AS = {
    "dense": ("SentenceTransformer",),
    "sparse": ("SparseEncoder",),
    "multi_vector": ("MultiVectorEncoder", "ColBERT"),
}
_NEEDS = {"top_k": ("sparse", 0), "threshold": ("sparse", 0), "token_pooling": ("multi_vector", 1)}


def settle(recipe: Recipe, opened: Opened, wish: Wishes) -> Recipe:
    """`recipe` with what `encode` adds. Raises ModelError: a model of another kind, or a wish that it cannot fulfil."""
    line = line_of(opened.modules)
    if line == "score":
        raise ModelError(f"{opened.folder / 'modules.json'}: lists a LogitScore: a model for `score`, not `encode`")
    own = "multi_vector" if opened.architecture == STANFORD and not opened.is_pipeline else _OWN[line]
    _check_kind(opened, wish, line, own)
    outputs = _outputs(opened, wish, own)
    listed = (opened.folder / "modules.json").exists()
    opened.note("outputs", OPTION if wish.outputs else "modules.json" if listed else "config.json")
    recipe = dataclasses.replace(
        recipe,
        outputs=outputs,
        prompt=prompt_of(opened, wish),
        task_adapter=task_adapter(opened.config, wish.prompt),
        vector_type=wish.vector_type,
    )
    if wish.adapter and line in ("static", "idf"):
        raise ModelError(f"{opened.checkpoint.name} is a table, and has no layers that a LoRA adapter could change")
    if "dense" in outputs:
        recipe = _settle_static(recipe, opened, wish) if line == "static" else _settle_dense(recipe, opened, wish)
    if "sparse" in outputs:
        recipe = settle_sparse(recipe, opened, wish, line)
    if "multi_vector" in outputs:
        recipe = settle_multi_vector(recipe, opened, wish, line)
    return recipe


def _outputs(opened: Opened, wish: Wishes, own: str) -> tuple[str, ...]:
    """What was asked for in the order of OUTPUTS, or what the model is made for."""
    for name in wish.outputs:
        if name not in OUTPUTS:
            raise ModelError(f"outputs: {name!r} is none of {', '.join(OUTPUTS)}{nearest(name, OUTPUTS)}")
    outputs = tuple(name for name in OUTPUTS if name in wish.outputs) or (own,)
    name = opened.checkpoint.name
    if own != "dense" and outputs != (own,):
        raise ModelError(f"{name} is a model for {own} output, and gives no {', '.join(set(outputs) - {own})}")
    for key, (needed, default) in _NEEDS.items():
        if getattr(wish, key) != default and needed not in outputs:
            raise ModelError(f"{key} is for {needed} output, and {name} is asked for {', '.join(outputs)}")
    if outputs == ("sparse",):
        if wish.dims:
            raise ModelError(
                f"dims {wish.dims}: {name} gives sparse vectors, which have no first dimensions: use top_k"
            )
        if wish.vector_type != "float32":
            raise ModelError(f"vector_type {wish.vector_type}: the weights of a sparse vector are float32")
    return outputs


def _settle_dense(recipe: Recipe, opened: Opened, wish: Wishes) -> Recipe:
    folder = opened.folder
    pooling, include_prompt, own_dims = read_pooling(folder, hidden_size(folder, opened.config), opened.modules)
    projection = next(
        (f"{one.path}/config.json" for one in reversed(opened.modules) if one.kind == "Dense"), "config.json"
    )
    opened.note("dims", OPTION if wish.dims else projection)
    opened.note("modules", "modules.json")
    opened.note(
        "include_prompt", next((f"{one.path}/config.json" for one in opened.modules if one.kind == "Pooling"), "")
    )
    recipe = dataclasses.replace(
        recipe,
        pooling=pooling_of(opened, wish, pooling),
        include_prompt=include_prompt,
        modules=tuple(module.path for module in opened.modules if module.kind == "Dense"),
        normalize=normalize_of(opened, wish),
    )
    return _with_dims(recipe, opened, wish, own_dims)


def _settle_static(recipe: Recipe, opened: Opened, wish: Wishes) -> Recipe:
    """A table of vectors, one a token: sentence-transformers' StaticEmbedding, and model2vec's folders, which it reads too."""
    path = opened.folder / opened.part / "model.safetensors"
    found = shapes(path)
    shape = found.get("embedding.weight") or found.get("embeddings")
    if shape is None or len(shape) != 2:
        raise ModelError(f"{path} has neither embedding.weight nor embeddings: a static model is a table of vectors")
    opened.note("dims", OPTION if wish.dims else path.relative_to(opened.folder).as_posix())
    opened.note("pooling", "modules.json" if (opened.folder / "modules.json").exists() else "config.json")
    unit = normalize_of(opened, wish)
    alone = not (opened.folder / "modules.json").exists() and bool(opened.config.get("normalize"))
    recipe = dataclasses.replace(recipe, pooling="mean", normalize=unit or alone, part=opened.part)
    return _with_dims(recipe, opened, wish, shape[1])


def _with_dims(recipe: Recipe, opened: Opened, wish: Wishes, own_dims: int) -> Recipe:
    check_dims(opened, own_dims)
    if wish.dims > own_dims:
        raise ModelError(f"dims {wish.dims} is above the {own_dims} dimensions of {opened.checkpoint.name}")
    dims = wish.dims or own_dims
    if wish.vector_type == "binary" and dims % 8:
        raise ModelError(f"binary packs 8 dimensions into a byte, and {dims} is no multiple of 8: give --dims")
    return dataclasses.replace(recipe, dims=dims)


def _check_kind(opened: Opened, wish: Wishes, line: str, own: str) -> None:
    verb = verb_of(opened.architecture)
    saved_as = read_json(opened.folder / SENTENCE_TRANSFORMERS).get("model_type")
    if verb and not opened.is_pipeline:
        raise ModelError(
            f"{opened.folder / 'config.json'}: {opened.architecture} is a model for `{verb}`, not `encode`"
        )
    if saved_as not in (None, *_SAVED_AS[own]):
        raise ModelError(
            f"{opened.folder / SENTENCE_TRANSFORMERS}: "
            + (
                "a CrossEncoder, for `score`, not `encode`"
                if saved_as == "CrossEncoder"
                else f"says {saved_as}, but its modules give {own} output: the files do not belong together"
            )
        )
    if line == "dense" and len(opened.modules) < 2 and not wish.pooling and not (opened.known and opened.known.pooling):
        raise ModelError(
            f"{opened.folder / 'modules.json'}: has no Pooling, so the model gives vectors of tokens, not of texts; if a text's "
            "vector is made of them all the same, say how: --pooling mean, cls or last"
        )
