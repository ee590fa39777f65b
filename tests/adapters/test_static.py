"""Static models, which look tokens up in a table, against sentence-transformers' StaticEmbedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.corpus import texts_of_lengths
from lading.adapters import Adapter, load
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from tests import models_outputs

TEXTS = texts_of_lengths([1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 600, 4, 4, 4])


def adapter_of(folder: Path, **wishes) -> Adapter:
    return load(resolve(locate(str(folder)), task="encode", **wishes), folder, device="cpu", threads=1)


def encode(adapter: Adapter, texts: list[str] = TEXTS) -> np.ndarray:
    prepared = adapter.prepare([pa.array(texts)])
    assert not prepared.bad
    outputs = adapter.run([(prepared, np.arange(len(texts)))])
    assert not outputs.bad
    return np.array(outputs.batch.column(0).to_pylist(), np.float32)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("normalize", [False, True])
def test_vectors_are_those_of_the_reference(tmp_path: Path, normalize: bool):
    """A StaticEmbedding's vectors are the reference's, at any length, with Normalize where the folder has it."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = models_outputs.static(tmp_path / "m", normalize=normalize)
    adapter = adapter_of(folder)
    assert adapter.kernel == "lookup/cpu/float32"
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert relative_error(encode(adapter), expected) <= 1e-5


@pytest.mark.parametrize("weighted", [False, True])
def test_folders_of_model2vec(tmp_path: Path, weighted: bool):
    """A model2vec folder: rows by `mapping`, times `weights`, their mean, brought to unit length where config.json says so."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = models_outputs.model2vec(tmp_path / "m", weighted=weighted)
    table = sentence_transformers.sentence_transformer.modules.StaticEmbedding.load(str(folder))
    expected = sentence_transformers.SentenceTransformer(modules=[table], device="cpu").encode(
        TEXTS, normalize_embeddings=True
    )
    assert relative_error(encode(adapter_of(folder)), expected) <= 1e-5


def test_the_batch_does_not_matter(tmp_path: Path):
    """A text's vector is the same alone and among others."""
    adapter = adapter_of(models_outputs.static(tmp_path / "m"))
    alone = np.concatenate([encode(adapter, [text]) for text in TEXTS])
    assert relative_error(alone, encode(adapter)) <= 1e-6


def test_options_of_dense_vectors(tmp_path: Path):
    """dims, vector_type, max_tokens and precision mean what they mean elsewhere."""
    folder = models_outputs.static(tmp_path / "m", normalize=True)
    whole = encode(adapter_of(folder))
    few = encode(adapter_of(folder, dims=8))
    assert relative_error(few, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)) <= 1e-5
    prepared = adapter_of(folder, max_tokens=16).prepare([pa.array(TEXTS)])
    assert (prepared.costs.max(), prepared.truncated > 0) == (16, True)
    half = encode(adapter_of(folder, precision="bfloat16"))
    assert (half * whole).sum(1).min() / 1.01 > 0.98
    quantised = adapter_of(folder, vector_type="int8")
    assert [field.name for field in quantised.fields] == ["vector", "vector_scale"]


def test_a_text_without_tokens_is_bad(tmp_path: Path):
    """No special tokens are added, so that some texts have none at all: they are refused, not given a vector of nothing."""
    prepared = adapter_of(models_outputs.static(tmp_path / "m")).prepare([pa.array(["a", "\u200b", None])])
    assert {row: code for row, (code, _) in prepared.bad.items()} == {1: "empty-text", 2: "null-text"}


def test_what_does_not_fit_is_refused(tmp_path: Path):
    """Another output, too many dims, a table too small for its tokenizer and one that is none are refused."""
    folder = models_outputs.static(tmp_path / "m")
    for wishes, message in (
        ({"outputs": ("sparse",)}, "no head for a sparse output"),
        ({"dims": 25}, "dims 25 is above the 24 dimensions"),
    ):
        with pytest.raises(ModelError, match=message):
            resolve(locate(str(folder)), task="encode", **wishes)
    from safetensors.numpy import load_file, save_file

    table = load_file(folder / "model.safetensors")["embedding.weight"]
    save_file({"embedding.weight": table[:-3]}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="497 rows for 500 tokens"):
        adapter_of(folder)
    save_file({"weights": table}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"neither embedding\.weight nor embeddings"):
        resolve(locate(str(folder)), task="encode")
