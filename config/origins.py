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
_ALWAYS = ("normalize", "prompt")  # "no" and "none" are answers too


def origins_of(recipe: Recipe, opened: Opened, wish: Wishes) -> dict[str, str]:
    """Field -> origin, in the order of the recipe: every field that differs from its default, and the decisions of _ALWAYS."""
    kept = recipe.to_dict()
    names = [field.name for field in dataclasses.fields(recipe) if field.name not in _UNSAID]
    shown = [name for name in names if name in kept or (name in _ALWAYS and name in opened.origins)]
    return {name: opened.origins.get(name) or _of_wish(name, wish) for name in shown}


def _of_wish(name: str, wish: Wishes) -> str:
    if name not in WISHES:
        return "config.json"
    defaults = {field.name: field.default for field in dataclasses.fields(wish)}
    return OPTION if getattr(wish, name) != defaults[name] else DEFAULT
