"""The recipe of `score`: one label, and what is done with its logit."""

from __future__ import annotations

import dataclasses

from .content import integer_at, read_json
from .errors import ModelError
from .hub import SENTENCE_TRANSFORMERS
from .kinds import check_head
from .origins import DEFAULT, OPTION
from .recipe import Recipe
from .wishes import Opened, Wishes

_ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid"}


def settle(recipe: Recipe, opened: Opened, wish: Wishes) -> Recipe:
    """`recipe` with what `score` adds. Raises ModelError: a model of another kind, or one of several labels."""
    check_head(opened, "score")
    _check_one_label(opened)
    if wish.instruction:
        raise ModelError(f"{opened.checkpoint.name}: the pairs of this reranker have no place for an instruction")
    if wish.activation:
        opened.note("activation", OPTION)
    return dataclasses.replace(recipe, activation=wish.activation or _activation(opened))


def _activation(opened: Opened) -> str:
    """What the checkpoint wants done with the logit, else the catalogue; sigmoid where neither says, as sentence-transformers does."""
    folder, config = opened.folder, opened.config
    nested = config.get("sentence_transformers")
    named = [
        (SENTENCE_TRANSFORMERS, read_json(folder / SENTENCE_TRANSFORMERS).get("activation_fn")),
        ("config.json", nested.get("activation_fn") if isinstance(nested, dict) else None),
        ("config.json", config.get("sbert_ce_default_activation_function")),
    ]
    for name, path in named:
        if path is not None:
            kind = str(path).rpartition(".")[2]
            if not str(path).startswith("torch.nn.") or kind not in _ACTIVATIONS:
                raise ModelError(
                    f"{folder / name}: activation_fn {path} is neither Identity nor Sigmoid; choose one with --activation"
                )
            opened.note("activation", name)
            return _ACTIVATIONS[kind]
    known = opened.known
    opened.note("activation", known.origin("activation") if known and known.activation else DEFAULT)
    return known.activation if known and known.activation else "sigmoid"


def _check_one_label(opened: Opened) -> None:
    """Unless config.json says otherwise, a transformers model has two labels."""
    path, named = opened.folder / "config.json", opened.config.get("id2label")
    count = integer_at(opened.config, ("num_labels",), path)
    if count is None:
        count = len(named) if isinstance(named, dict) else 2
    if count != 1:
        raise ModelError(f"{path}: the model has {count} labels; a reranker has 1, and `score` stores one number")
