"""Packing, against transformers itself, for every architecture that is said to fit: one text at a time is the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lading.adapters import attention
from lading.adapters.packed import DTYPES, PackedModel, load_model, to_device
from lading.adapters.tokens import Ragged
from lading.config.errors import ModelError
from lading.config.recipe import Recipe
from tests import models

FITS = ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "modernbert", "nomic_bert"]
DOES_NOT_FIT = ["mpnet", "deberta-v2"]
LENGTHS = [1, 2, 7, 7, 7, 12, 33, 60]


def recipe_of(architecture: str, precision: str = "float32") -> Recipe:
    return Recipe(task="encode", content="", architecture=architecture, max_tokens=64, precision=precision)


def items(lengths: list[int]) -> list[list[int]]:
    draw = np.random.default_rng(1)
    return [draw.integers(5, 200, length).tolist() for length in lengths]


def one_by_one(folder: Path, texts: list[list[int]]) -> np.ndarray:
    import transformers

    model = load_model(folder, transformers.AutoModel, torch.float32)
    with torch.inference_mode():
        return np.concatenate([model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy() for ids in texts])


def packed(model: PackedModel, texts: list[list[int]]) -> np.ndarray:
    offsets = np.cumsum([0, *map(len, texts)])
    ragged = Ragged(np.concatenate(texts).astype(np.int32), offsets)
    batch = to_device(ragged, np.arange(len(texts)), torch.device("cpu"))
    return model.forward(batch).last_hidden_state[0].float().numpy()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module", params=FITS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_encoder(tmp_path_factory.mktemp("family") / request.param, request.param)


def load(folder: Path, precision: str = "float32", threads: int = 1) -> PackedModel:
    import transformers

    return PackedModel(recipe_of(folder.name, precision), folder, transformers.AutoModel, device="cpu", threads=threads)


@pytest.mark.parametrize("backend", sorted(name for name in attention.BACKENDS if name.endswith("-runs")))
def test_packed_equals_one_by_one(folder: Path, backend: str, monkeypatch: pytest.MonkeyPatch):
    """Hidden states of a ragged packed batch equal those of each text run alone (relative error <= 1e-4)."""
    monkeypatch.setenv(attention.OVERRIDE, backend)
    texts = items(LENGTHS)
    assert relative_error(packed(load(folder), texts), one_by_one(folder, texts)) <= 1e-4


def test_fused_layers_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """With oneDNN's fused layers in place, whatever the probe says, the results stay the same."""
    monkeypatch.setattr("lading.adapters.linear.probe", lambda model: 2.0)
    model = load(folder)
    assert "onednn" in model.kernel
    texts = items(LENGTHS)
    assert relative_error(packed(model, texts), one_by_one(folder, texts)) <= 1e-4


def test_a_neighbour_does_not_leak(folder: Path):
    """Changing one text of a packed batch moves no other text's hidden states."""
    model, texts = load(folder), items([7, 9, 12])
    changed = [texts[0], items([5, 9])[1][::-1], texts[2]]
    one, other = packed(model, texts), packed(model, changed)
    np.testing.assert_allclose(one[:7], other[:7], atol=1e-5)
    np.testing.assert_allclose(one[16:], other[16:], atol=1e-5)
    assert np.abs(one[7:16] - other[7:16]).max() > 1e-2


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_loads(folder: Path, precision: str):
    """The check at load accepts every architecture in half precision too, and hidden states come out in that dtype."""
    model = load(folder, precision)
    assert next(model.model.parameters()).dtype == DTYPES[precision]
    assert np.isfinite(packed(model, items([3, 8]))).all()


def test_a_wrong_position_offset_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: RoBERTa's positions counted from 0 are found at load, and refused."""
    folder = models.tiny_encoder(tmp_path / "roberta", "roberta")
    monkeypatch.setattr("lading.adapters.packed.POSITIONS_AFTER_PADDING", frozenset())
    with pytest.raises(ModelError, match=r"'roberta'.*results change"):
        load(folder)


def test_positions_are_compared(tmp_path: Path):
    """Negative control: the tiny models' results do depend on positions, so the tests above can fail."""
    model, texts = load(models.tiny_encoder(tmp_path / "bert")), items([9, 9])
    right = packed(model, texts)
    model.first_position = 3
    assert relative_error(packed(model, texts), right) > 1e-2


@pytest.mark.parametrize("architecture", DOES_NOT_FIT)
def test_what_cannot_be_packed_is_refused_by_name(tmp_path: Path, architecture: str):
    """A model whose attention needs more than the text's own queries, keys and values is refused, and named."""
    folder = models.tiny_encoder(tmp_path / "m", architecture)
    with pytest.raises(ModelError, match=f"'{architecture}' cannot be run packed"):
        load(folder)


def test_a_padding_mask_is_refused(tmp_path: Path):
    """The packed backend fails closed: a batch with padding is an error, not a wrong result."""
    model = load(models.tiny_encoder(tmp_path / "bert"))
    ids = torch.tensor([[5, 6, 7, 1]])
    with pytest.raises(ModelError, match="padding mask"):
        model.model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 0]]))
    with pytest.raises(ModelError, match="outside of a packed forward"):
        model.model(input_ids=ids)
