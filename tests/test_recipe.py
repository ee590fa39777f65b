"""The recipe: its hash names what was computed, now and in later releases."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from lading.config.errors import SpecError
from lading.config.recipe import Recipe

RECIPE = Recipe(
    task="encode", content="c" * 64, architecture="bert", max_tokens=256, dims=384, pooling="mean", modules=("2_Dense",)
)
OTHER: dict[str, Any] = {
    "labels": ("a",),
    "modules": (),
    "template": ("a {query} {document}",),
    "answers": (1,),
    "normalize": True,
    "include_prompt": False,
    "lower_case": True,
}


def test_hash_is_what_it_always_was():
    """Stored hashes outlive a release: this one may never change, whatever fields come to the recipe."""
    assert RECIPE.hash == "b33ee456cfd8c2eb"


def test_defaults_are_left_out():
    """A field at its default is neither stored nor hashed, so that a new field leaves old hashes as they are."""
    assert set(RECIPE.to_dict()) == {
        "version",
        "task",
        "content",
        "architecture",
        "max_tokens",
        "dims",
        "pooling",
        "modules",
    }


def test_every_field_counts():
    """Two recipes that differ in any one field have different hashes."""
    hashes = {RECIPE.hash}
    for field in dataclasses.fields(RECIPE):
        value = getattr(RECIPE, field.name)
        other = OTHER.get(field.name, value + 1 if isinstance(value, int) else f"{value}x")
        hashes.add(dataclasses.replace(RECIPE, **{field.name: other}).hash)
    assert len(hashes) == len(dataclasses.fields(RECIPE)) + 1


def test_stored_and_read_back():
    """A recipe survives JSON unchanged, tuples included."""
    stored = json.loads(json.dumps(RECIPE.to_dict()))
    assert Recipe.from_dict(stored) == RECIPE
    assert Recipe.from_dict(stored).hash == RECIPE.hash


def test_what_a_later_release_wrote_is_refused():
    """An unknown version or field is refused by name: guessing would mix rows of two recipes."""
    with pytest.raises(SpecError, match="recipe version 2 is not 1, the one this release reads"):
        Recipe.from_dict({**RECIPE.to_dict(), "version": 2})
    with pytest.raises(SpecError, match="recipe has rotation, which this release does not know"):
        Recipe.from_dict({**RECIPE.to_dict(), "rotation": "x"})
