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
