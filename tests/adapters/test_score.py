"""Cross-encoder scores, against sentence-transformers' CrossEncoder on the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.corpus import texts_of_lengths
from lading.adapters import Adapter, load
from lading.config.checkpoint import locate, resolve
from tests import models

QUERIES = texts_of_lengths([2, 5, 3, 90, 1, 60, 12, 4])
DOCUMENTS = texts_of_lengths([30, 5, 120, 80, 1, 7, 12, 300], seed=1)


def adapter_of(folder: Path, **wishes) -> Adapter:
    return load(resolve(locate(str(folder)), task="score", **wishes), folder, device="cpu", threads=1)


def score(adapter: Adapter) -> np.ndarray:
    prepared = adapter.prepare([pa.array(QUERIES), pa.array(DOCUMENTS)])
    outputs = adapter.run([(prepared, np.arange(len(QUERIES)))])
    assert not outputs.bad
    return outputs.batch.column(0).to_numpy()


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta", "distilbert", "electra", "camembert"])
@pytest.mark.parametrize("activation", ["Sigmoid", "Identity"])
def test_scores_are_those_of_the_reference(tmp_path: Path, architecture: str, activation: str):
    """Scores equal CrossEncoder's, its activation and its truncation of the longer text included."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = models.tiny_cross_encoder(tmp_path / "m", architecture, activation=activation)
    adapter = adapter_of(folder)
    expected = sentence_transformers.CrossEncoder(str(folder), device="cpu").predict(
        list(zip(QUERIES, DOCUMENTS, strict=True))
    )
    assert np.ptp(expected) > 1e-3  # pairs do differ
    np.testing.assert_allclose(score(adapter), expected, rtol=1e-4, atol=1e-5)
    assert adapter.recipe.activation == activation.lower()


@pytest.mark.parametrize("architecture", ["modernbert-cls", "modernbert-mean", "gte", "bert", "xlm-roberta"])
def test_folders_of_sentence_transformers_6(tmp_path: Path, architecture: str):
    """A CrossEncoder that was saved with modules and a default prompt scores as it does there: the prompt goes before the query."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    kind, _, pooling = architecture.partition("-") if architecture.startswith("modern") else (architecture, "", "")
    extra = {"classifier_pooling": pooling} if pooling else {}
    plain = models.tiny_cross_encoder(tmp_path / "m", kind, activation="Identity", **extra)
    prompts = {"prompts": {"q": "find: "}, "default_prompt_name": "q"}
    folder = tmp_path / "saved"
    sentence_transformers.CrossEncoder(str(plain), device="cpu", **prompts).save(str(folder))
    assert (folder / "modules.json").exists()
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    pairs = list(zip(QUERIES, DOCUMENTS, strict=True))
    alone = np.concatenate([model.predict([pair]) for pair in pairs])
    found = score(adapter_of(folder))
    assert np.abs(found - alone).max() <= 1e-4 * np.abs(alone).max()
    assert np.abs(alone - model.predict(pairs, prompt="")).max() > 1e-3  # the prompt does something
    half = score(adapter_of(folder, precision="bfloat16"))
    assert np.abs(half - alone).max() <= 0.1 * np.abs(alone).max()


def test_a_pair_does_not_depend_on_its_neighbours(tiny_cross_encoder: Path):
    """In another order, or beside another pair, every pair keeps its score."""
    adapter = adapter_of(tiny_cross_encoder)
    base = score(adapter)
    columns = [pa.array(QUERIES[::-1]), pa.array([*DOCUMENTS[:0:-1], "something else"])]
    prepared = adapter.prepare(columns)
    other = adapter.run([(prepared, np.arange(len(QUERIES)))]).batch.column(0).to_numpy()[::-1]
    np.testing.assert_allclose(other[1:], base[1:], rtol=1e-5, atol=1e-6)
    assert abs(other[0] - base[0]) > 1e-4


def test_long_pairs_are_counted(tiny_cross_encoder: Path):
    """A pair above max_tokens is cut to it and counted once."""
    prepared = adapter_of(tiny_cross_encoder).prepare([pa.array(QUERIES), pa.array(DOCUMENTS)])
    assert prepared.costs.max() == 128
    assert prepared.truncated == int((prepared.costs == 128).sum()) > 0


def test_half_a_pair_is_bad(tiny_cross_encoder: Path):
    """A null or blank text on either side puts the row into `bad`."""
    adapter = adapter_of(tiny_cross_encoder)
    prepared = adapter.prepare([pa.array(["a", None, "b", "c"]), pa.array(["x", "y", " ", "z"])])
    assert prepared.rows.tolist() == [0, 3]
    assert {row: code for row, (code, _) in prepared.bad.items()} == {1: "null-text", 2: "empty-text"}


def test_the_second_text_matters(tiny_cross_encoder: Path):
    """Negative control: swapping the texts of the pairs changes the scores, so the types and order are real."""
    adapter = adapter_of(tiny_cross_encoder)
    prepared = adapter.prepare([pa.array(DOCUMENTS), pa.array(QUERIES)])
    swapped = adapter.run([(prepared, np.arange(len(QUERIES)))]).batch.column(0).to_numpy()
    assert np.abs(swapped - score(adapter)).max() > 1e-3
