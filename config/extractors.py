"""The recipe of `extract`: the labels of a token classifier."""

from __future__ import annotations

import dataclasses

from .errors import ModelError
from .kinds import check_head
from .origins import DEFAULT
from .recipe import Recipe
from .wishes import Opened, Wishes


def settle(recipe: Recipe, opened: Opened, wish: Wishes) -> Recipe:
    """`recipe` with what `extract` adds. Raises ModelError: a model of another kind, or without names for its labels."""
    check_head(opened, "extract")
    opened.note("aggregation", DEFAULT)
    return dataclasses.replace(recipe, labels=_labels(opened), aggregation="simple")


def _labels(opened: Opened) -> tuple[str, ...]:
    found = opened.config.get("id2label")
    if not isinstance(found, dict) or sorted(found) != sorted(map(str, range(len(found)))) or not found:
        raise ModelError(f"{opened.folder / 'config.json'}: id2label must name every class, 0 and up")
    return tuple(str(found[str(number)]) for number in range(len(found)))
