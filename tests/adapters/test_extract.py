"""Entities, against transformers' token classification pipeline on the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.corpus import texts_of_lengths
from lading.adapters import Adapter, load
from lading.config.checkpoint import locate, resolve
from tests import models

TEXTS = [*texts_of_lengths([1, 3, 8, 8, 21, 60, 200]), "  Café “naïve” 東京 🙂 ends. ", "B"]


def adapter_of(folder: Path, **wishes) -> Adapter:
    return load(resolve(locate(str(folder)), task="extract", **wishes), folder, device="cpu", threads=1)


def extract(adapter: Adapter, texts: list[str]) -> list[list[dict]]:
    prepared = adapter.prepare([pa.array(texts)])
    outputs = adapter.run([(prepared, np.arange(len(texts)))])
    assert not outputs.bad
    assert outputs.batch.schema.equals(pa.schema(adapter.fields))
    return outputs.batch.column(0).to_pylist()


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta", "distilbert", "electra"])
def test_entities_are_those_of_the_pipeline(tmp_path: Path, architecture: str):
    """Labels, scores and character spans equal the pipeline's with aggregation_strategy="simple", text by text."""
    import transformers

    folder = models.tiny_token_classifier(tmp_path / "m", architecture)
    pipeline = transformers.pipeline("token-classification", str(folder), aggregation_strategy="simple", device="cpu")
    found = extract(adapter_of(folder), TEXTS)
    assert sum(map(len, found)) > 5
    for text, ours in zip(TEXTS, found, strict=True):
        theirs = pipeline(text)
        spans = [(one["entity_group"], one["start"], one["end"]) for one in theirs]
        assert [(one["label"], one["start"], one["end"]) for one in ours] == spans
        np.testing.assert_allclose([one["score"] for one in ours], [one["score"] for one in theirs], rtol=1e-4)


def test_the_text_of_an_entity_is_the_documents_own(tiny_token_classifier: Path):
    """`text` is the document's characters from start to end, case and accents kept."""
    for text, entities in zip(TEXTS, extract(adapter_of(tiny_token_classifier), TEXTS), strict=True):
        assert all(one["text"] == text[one["start"] : one["end"]] for one in entities)


def test_order_and_parts_do_not_matter(tiny_token_classifier: Path):
    """Entities come back in the order asked for, whatever the batch is sorted by."""
    adapter = adapter_of(tiny_token_classifier)
    expected = extract(adapter, TEXTS)
    prepared = adapter.prepare([pa.array(TEXTS)])
    order = np.array([5, 0, 3, 8, 1])
    found = adapter.run([(prepared, order[:2]), (prepared, order[2:])]).batch.column(0).to_pylist()
    spans = [[(one["label"], one["start"], one["end"]) for one in entities] for entities in found]
    assert spans == [[(one["label"], one["start"], one["end"]) for one in expected[n]] for n in order]


def test_a_result_that_is_not_finite_harms_its_own_row_only(tiny_token_classifier: Path):
    """NaN logits of one text are reported for its item alone."""
    adapter = adapter_of(tiny_token_classifier)
    prepared = adapter.prepare([pa.array(["fine text", "zebra"])])
    token = int(prepared.features["ragged"].take(np.array([1])).tokens[1])
    with torch.no_grad():
        adapter.packed.model.get_input_embeddings().weight[token] = float("nan")
    assert list(adapter.run([(prepared, np.arange(2))]).bad) == [1]
