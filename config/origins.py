"""Where each value of a recipe came from, for people: a file of the checkpoint, the catalogue, an option, or a default.

In this order of force: what the user asks for, the checkpoint's own files, the catalogue, the defaults. Settlers note it
where they decide (`Opened.note`); what only a wish decides is told from the wish here. No part of a recipe's hash.
"""

from __future__ import annotations

import dataclasses

from .recipe import Recipe
from .wishes import WISHES, Opened, Wishes

OPTION = "asked for"
DEFAULT = "default"
_UNSAID = ("version", "task", "content")


def origins_of(recipe: Recipe, opened: Opened, wish: Wishes) -> dict[str, str]:
    """Field -> origin, for every field that the recipe's task has or that differs from its default."""
    told: dict[str, str] = {}
    for name in recipe.to_dict():
        if name not in _UNSAID:
            told[name] = opened.origins.get(name) or _of_wish(name, wish)
    noted = {name: origin for name, origin in opened.origins.items() if name not in told}
    return {**told, **noted}


def _of_wish(name: str, wish: Wishes) -> str:
    if name not in WISHES:
        return "config.json"
    defaults = {field.name: field.default for field in dataclasses.fields(wish)}
    return OPTION if getattr(wish, name) != defaults[name] else DEFAULT
