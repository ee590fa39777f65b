"""The sparse output of `encode`: SPLADE, tables of weights, BGE-M3's lexical head.

Follows sentence-transformers 6.2, and FlagEmbedding for BGE-M3.
"""

from __future__ import annotations

import dataclasses

from .content import read_json, special_tokens
from .errors import ModelError
from .hub import SENTENCE_TRANSFORMERS
from .recipe import Recipe
from .wishes import Opened, Wishes

SPARSE_LINEAR = "sparse_linear.safetensors"
_MASKED_LM = "ForMaskedLM"


def settle_sparse(recipe: Recipe, opened: Opened, wish: Wishes, line: str) -> Recipe:
    """`recipe` with its sparse output. Raises ModelError where the model has no head for one."""
    if wish.top_k < 0 or wish.threshold < 0:
        raise ModelError(f"top_k {wish.top_k} and threshold {wish.threshold} must be 0 or more")
    recipe = dataclasses.replace(recipe, top_k=wish.top_k, threshold=float(wish.threshold))
    if line == "idf":
        for field in ("sparse", "part"):
            opened.note(field, "modules.json")
        return dataclasses.replace(recipe, sparse="idf", part=opened.part)
    if line == "sparse" or (
        opened.architecture.endswith(_MASKED_LM) and recipe.outputs == ("sparse",) and not opened.is_pipeline
    ):
        return _splade(recipe, opened, line)
    if opened.config.get("model_type") == "xlm-roberta" and has_head(opened, SPARSE_LINEAR):
        opened.note("sparse", SPARSE_LINEAR)
        opened.note("drop_tokens", "tokenizer_config.json")
        return dataclasses.replace(recipe, sparse="lexical", drop_tokens=_left_out(opened))
    raise ModelError(
        f"{opened.folder}: has no head for a sparse output: that takes a SPLADE model (Transformer, SpladePooling, or a "
        f"*{_MASKED_LM}), or BGE-M3 with its {SPARSE_LINEAR}"
    )


def _splade(recipe: Recipe, opened: Opened, line: str) -> Recipe:
    if not opened.architecture.endswith(_MASKED_LM):
        raise ModelError(
            f"{opened.folder / opened.part / 'config.json'}: SPLADE needs a *{_MASKED_LM}, and this is "
            f"{opened.architecture or 'of no stated architecture'}"
        )
    path = opened.folder / opened.modules[1].path / "config.json"
    found = read_json(path) if line == "sparse" else {}
    strategy, activation = found.get("pooling_strategy", "max"), found.get("activation_function", "relu")
    if strategy not in ("max", "sum") or activation not in ("relu", "log1p_relu"):
        raise ModelError(
            f"{path}: pooling_strategy {strategy!r}, activation_function {activation!r}: Lading knows max and sum, relu and log1p_relu"
        )
    for field in ("sparse", "log1p"):
        opened.note(field, path.relative_to(opened.folder).as_posix())
    opened.note("part", "modules.json")
    saved = read_json(opened.folder / SENTENCE_TRANSFORMERS).get("max_active_dims")
    if saved and not recipe.top_k:
        opened.note("top_k", SENTENCE_TRANSFORMERS)
    if saved is not None and (not isinstance(saved, int) or saved < 1):
        raise ModelError(
            f"{opened.folder / SENTENCE_TRANSFORMERS}: max_active_dims: expected a whole number, found {saved!r}"
        )
    return dataclasses.replace(
        recipe,
        sparse=f"splade-{strategy}",
        log1p=2 if activation == "log1p_relu" else 1,
        part=opened.part,
        top_k=recipe.top_k or saved or 0,
    )


def _left_out(opened: Opened) -> tuple[str, ...]:
    """The tokens whose weights FlagEmbedding leaves out: begin, end, padding, unknown."""
    found, wanted = special_tokens(opened.folder), ("cls_token", "eos_token", "pad_token", "unk_token")
    for key in wanted:
        if key not in found:
            path = opened.folder / "tokenizer_config.json"
            raise ModelError(f"{path}: no {key}: its weight must be left out of a sparse output")
    return tuple(dict.fromkeys(found[key] for key in wanted))


def has_head(opened: Opened, file: str) -> bool:
    """Whether a head of BGE-M3 lies beside the model. Raises ModelError where it does, but in a format that can run code."""
    path = opened.folder / file
    unsafe = path.with_suffix(".pt")
    if not path.is_file() and unsafe.is_file():
        raise ModelError(
            f"{unsafe}: Lading opens safetensors only, because other formats can run code. If you trust the file, convert it: "
            f"python -c \"import torch; from safetensors.torch import save_file; save_file(torch.load('{unsafe}', "
            f"weights_only=True), '{path}')\""
        )
    return path.is_file()
