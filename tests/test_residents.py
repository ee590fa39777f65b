"""Loaded models and the LoRA adapters on them, by bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from lading.config.recipe import Recipe
from lading.config.weights import weight_bytes
from lading.workers.residents import Residents
from tests.models_lora import tiny_adapter


@pytest.fixture
def adapters(tiny_encoder: Path, tmp_path: Path) -> list[tuple[Recipe, Path]]:
    folders = [tiny_adapter(tmp_path / str(n), tiny_encoder, seed=n) for n in range(3)]
    return [(resolve(locate(str(tiny_encoder)), task="encode", adapter=str(one)), one) for one in folders]


def test_adapters_go_before_their_base(tiny_encoder: Path, adapters: list[tuple[Recipe, Path]]) -> None:
    """Where there is room for the base and two adapters, a third pushes out the one unused for longest; another model all of them."""
    base, one = weight_bytes(tiny_encoder, "float32"), weight_bytes(adapters[0][1], "float32")
    residents = Residents("cpu", 1, base + 2 * one)
    first = [residents.get(recipe, tiny_encoder, folder) for recipe, folder in adapters[:2]]
    assert first[0].packed.model is first[1].packed.model  # pyright: ignore
    assert residents.at_hand(adapters[0][0]) is first[0]
    residents.get(adapters[2][0], tiny_encoder, adapters[2][1])
    assert residents.at_hand(adapters[1][0]) is None
    assert residents.at_hand(adapters[0][0]) is first[0]
    other = resolve(locate(str(tiny_encoder)), task="encode", max_tokens=16)
    residents.get(other, tiny_encoder)
    assert all(residents.at_hand(one) is None for one in (adapters[0][0], adapters[2][0], adapters[0][0].base))


def test_an_adapter_needs_room_beside_its_base(tiny_encoder: Path, adapters: list[tuple[Recipe, Path]]) -> None:
    """With room for the base alone, its adapters are refused, and it stays."""
    residents = Residents("cpu", 1, weight_bytes(tiny_encoder, "float32") + 1)
    recipe, folder = adapters[0]
    with pytest.raises(ModelError, match=r"needs .* bytes in float32, this pool's models have"):
        residents.get(recipe, tiny_encoder, folder)
    assert residents.at_hand(recipe.base) is not None
