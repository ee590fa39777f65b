"""Loaded models and the LoRA adapters on them, by bytes: what is on the device, and what goes for others."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lading.adapters import OutOfMemory, load
from lading.adapters.model import Model
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from lading.config.recipe import Recipe
from lading.config.weights import weight_bytes
from lading.workers import residency
from lading.workers import residents as residents_module
from lading.workers.residency import Residency, Tier
from lading.workers.residents import REMEMBERED_S, SHORT_TRIES, Residents
from tests.models_lora import tiny_adapter

Make = Callable[[int], Residents]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Residents] = []

    def new(memory_bytes: int) -> Residents:
        made.append(Residents("cpu", 1, Residency(memory_bytes, patience_s=0.1)))
        return made[-1]

    yield new
    for one in made:
        one.close()


@pytest.fixture
def adapters(tiny_encoder: Path, tmp_path: Path) -> list[tuple[Recipe, Path]]:
    folders = [tiny_adapter(tmp_path / str(n), tiny_encoder, seed=n) for n in range(3)]
    return [(resolve(locate(str(tiny_encoder)), task="encode", adapter=str(one)), one) for one in folders]


def there(residents: Residents, recipe: Recipe) -> bool:
    return residents.policy.models[recipe.weights].tier == Tier.DEVICE


def test_adapters_go_before_their_base(make: Make, tiny_encoder: Path, adapters: list[tuple[Recipe, Path]]) -> None:
    """Where there is room for the base and two adapters, a third pushes out the one unused for longest; another model all of them."""
    residents = make(0)
    first = [residents.get(recipe, tiny_encoder, folder) for recipe, folder in adapters[:2]]
    for recipe, _ in adapters[:2]:
        residents.ready(recipe)
    residents.policy.device_bytes = residents.policy.resident_bytes + weight_bytes(adapters[0][1], "float32") // 2
    assert first[0].packed.model is first[1].packed.model  # pyright: ignore
    with residents.holding(first[0]):
        pass
    residents.get(adapters[2][0], tiny_encoder, adapters[2][1])
    residents.ready(adapters[2][0])
    assert not there(residents, adapters[1][0])
    assert there(residents, adapters[0][0])
    other = resolve(locate(str(tiny_encoder)), task="encode", precision="bfloat16")
    residents.get(other, tiny_encoder)
    residents.ready(other)
    assert not any(there(residents, one) for one in (adapters[0][0], adapters[2][0], adapters[0][0].base))


def test_an_adapter_needs_room_beside_its_base(
    make: Make, tiny_encoder: Path, adapters: list[tuple[Recipe, Path]]
) -> None:
    """With room for the base alone, its adapters are refused, and it stays."""
    residents = make(weight_bytes(tiny_encoder, "float32") + 1)
    recipe, folder = adapters[0]
    residents.get(recipe.base, tiny_encoder)
    residents.ready(recipe.base)
    with pytest.raises(ModelError, match=r"needs .* bytes in float32, this pool's models have"):
        residents.get(recipe, tiny_encoder, folder)
    assert there(residents, recipe.base)


def test_one_that_takes_more_than_its_files_said_is_told_so_every_time(make: Make, tiny_encoder: Path) -> None:
    """Not only as long as its failure is remembered; others come meanwhile."""
    residents = make(0)
    small = resolve(locate(str(tiny_encoder)), task="encode", precision="bfloat16")
    large = resolve(locate(str(tiny_encoder)), task="encode")
    for recipe in (small, large):
        residents.get(recipe, tiny_encoder)
    residents.ready(large)
    with residents._changed:  # pyright: ignore[reportPrivateUsage]
        model = residents.policy.models[large.weights]
        residents.policy.device_bytes = model.weights + 10
        model.working = 11
        model.leaving = "room"
        residents._changed.notify_all()  # pyright: ignore[reportPrivateUsage]
        assert residents._changed.wait_for(lambda: not there(residents, large), 10)  # pyright: ignore[reportPrivateUsage]
    for _ in range(2):
        with pytest.raises(ModelError, match=r"needs .* bytes in float32, this pool's models have"):
            residents.ready(large)
        residents._trouble.clear()  # pyright: ignore[reportPrivateUsage]
    residents.ready(small)


def test_recipes_share_weights(make: Make, tiny_encoder: Path) -> None:
    """Queries and documents, other dims and lengths: one loaded model, each with its own results."""
    residents = make(0)
    recipes = [
        resolve(locate(str(tiny_encoder)), task="encode", **wishes)
        for wishes in ({"prompt": "query"}, {"prompt": "document"}, {"dims": 16}, {"normalize": False})
    ]
    assert len({recipe.hash for recipe in recipes}) == len(recipes)
    found = [vectors(residents.get(recipe, tiny_encoder), residents) for recipe in recipes]
    assert residents.policy.loads[Tier.DISK] == 1
    assert {residents.get(recipe, tiny_encoder).kernel for recipe in recipes} == {
        load(recipes[0], tiny_encoder, device="cpu", threads=1).kernel
    }
    for recipe, ours in zip(recipes, found, strict=True):
        alone = load(recipe, tiny_encoder, device="cpu", threads=1)
        np.testing.assert_array_equal(ours, vectors(alone))
    assert found[2].shape[1] == 16


def test_recipes_are_forgotten_and_come_again(make: Make, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application may ask with another prompt each time: only so many are remembered, the last asked for, and whoever holds a
    forgotten one can run it as before."""
    monkeypatch.setattr(residents_module, "MOST_RECIPES", 2)
    residents = make(0)
    recipes = [resolve(locate(str(tiny_encoder)), task="encode", prompt_text=f"{n}: ") for n in range(3)]
    first, second = (residents.get(recipe, tiny_encoder) for recipe in recipes[:2])
    assert residents.get(recipes[0], tiny_encoder) is first
    residents.get(recipes[2], tiny_encoder)
    assert [residents.known(recipe) for recipe in recipes] == [True, False, True]
    assert residents.get(recipes[1], tiny_encoder) is not second
    residents.ready(recipes[1])
    with residents.holding(second):
        texts = second.prepare([pa.array(["a cat"])])
        assert second.run([(texts, np.arange(1))]).batch.num_rows == 1


def test_a_model_set_aside_comes_back_as_it_was(make: Make, tiny_encoder: Path) -> None:
    """From host memory, and from disk, bit for bit."""
    for host_bytes, source in ((1 << 30, Tier.HOST), (0, Tier.DISK)):
        residents = make(0)
        residents.policy.host_bytes = host_bytes
        recipe = resolve(locate(str(tiny_encoder)), task="encode")
        adapter = residents.get(recipe, tiny_encoder)
        before, bytes_before = vectors(adapter, residents), residents.report()["resident_bytes"]
        for _ in range(3):
            residents.let_go(recipe.weights)
            assert residents.report()["resident_bytes"] == 0
            np.testing.assert_array_equal(vectors(adapter, residents), before)
            assert residents.report()["resident_bytes"] == bytes_before
        assert residents.policy.loads[source] == 3 + (source == Tier.DISK)


def test_what_cannot_come_is_told_and_tried_again(
    make: Make, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing file is final, a full disk passes; another model is loaded meanwhile."""
    residents, real, errors = make(0), Model.load, [OSError(errno.ENOSPC, "full"), FileNotFoundError("gone")]

    def failing(self: Model, **named: Any) -> None:
        if self.recipe.max_tokens == 7 and errors:
            raise errors.pop(0)
        real(self, **named)

    monkeypatch.setattr(Model, "load", failing)
    bad = resolve(locate(str(tiny_encoder)), task="encode", max_tokens=7)
    good = resolve(locate(str(tiny_encoder)), task="encode", precision="bfloat16")
    residents.get(bad, tiny_encoder)
    residents.get(good, tiny_encoder)
    with pytest.raises(ModelError, match="cannot be loaded: FileNotFoundError: gone"):
        residents.ready(bad)
    assert errors == []
    residents.ready(good)
    time.sleep(REMEMBERED_S)
    residents.ready(bad)


def test_memory_that_others_use_for_a_while_is_waited_for(
    make: Make, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with nothing of ours to go for it; what stays short is told."""
    monkeypatch.setattr(residency, "BACKOFF_S", 0.01)
    residents, real, left = make(0), Model.load, [SHORT_TRIES - 1]

    def failing(self: Model, **named: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OutOfMemory("CUDA out of memory")
        real(self, **named)

    monkeypatch.setattr(Model, "load", failing)
    recipe = resolve(locate(str(tiny_encoder)), task="encode")
    residents.get(recipe, tiny_encoder)
    residents.ready(recipe)
    residents.let_go(recipe.weights)
    left[0] = SHORT_TRIES
    with pytest.raises(ModelError, match="CUDA out of memory"):
        residents.ready(recipe)


def vectors(adapter: Any, residents: Residents | None = None) -> np.ndarray:
    prepared = adapter.prepare([pa.array(["a row of words", "of another row"])])
    with residents.holding(adapter) if residents else contextlib.nullcontext():
        batch = adapter.run([(prepared, np.arange(2))]).batch
    return np.stack(batch.column(0).to_numpy(zero_copy_only=False))
