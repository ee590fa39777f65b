"""Multi-vectors, against sentence-transformers' MultiVectorEncoder and FlagEmbedding's formulas on the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from benchmarks.corpus import texts_of_lengths
from lading.adapters import Adapter, load
from lading.adapters.multi_vector import join_tokens
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from lading.workers.query import maxsim
from tests import models, models_outputs

TEXTS = texts_of_lengths([1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 600, 4, 4, 4])


@pytest.fixture(scope="module")
def colbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_outputs.stanford_colbert(tmp_path_factory.mktemp("multi") / "colbert")


@pytest.fixture(scope="module")
def bge_m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_outputs.bge_m3(tmp_path_factory.mktemp("multi") / "bge-m3")


def adapter_of(folder: Path, **wishes) -> Adapter:
    return load(resolve(locate(str(folder)), task="encode", **wishes), folder, device="cpu", threads=1)


def encode(adapter: Adapter, texts: list[str] = TEXTS) -> list[np.ndarray]:
    """The vectors of one batch, float32 (tokens, dims) for each text."""
    prepared = adapter.prepare([pa.array(texts)])
    assert not prepared.bad
    outputs = adapter.run([(prepared, np.arange(len(texts)))])
    assert not outputs.bad
    column = outputs.batch.column("multi_vector")
    width = column.type.value_type.list_size
    return [np.array(one, np.float32).reshape(-1, width) for one in column.to_pylist()]


def reference_model(folder: Path) -> Any:
    return pytest.importorskip("sentence_transformers").MultiVectorEncoder(str(folder), device="cpu")


def reference(folder: Path, side: str, **options: Any) -> list[np.ndarray]:
    return getattr(reference_model(folder), f"encode_{side}")(TEXTS, convert_to_numpy=True, **options)


def worst(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest difference, relative to the vectors' length, which is 1."""
    assert [one.shape for one in found] == [one.shape for one in expected]
    return max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True))


def expanding(**config: Any) -> Callable[[Path, str], Path]:
    return lambda path, architecture: models_outputs.late_interaction(path, architecture, **config)


FOLDERS: dict[str, tuple[Callable[[Path, str], Path], str]] = {
    "colbert": (lambda path, _: models_outputs.stanford_colbert(path), ""),
    "colbert that sees its masks": (
        lambda path, _: models_outputs.stanford_colbert(path, attend_to_mask_tokens=True),
        "",
    ),
    "pylate": (lambda path, _: models_outputs.pylate(path), ""),
    "pylate without expansion": (
        lambda path, _: models_outputs.pylate(path, do_query_expansion=False, query_length=9),
        "",
    ),
    "fixed": (expanding(expansion={"strategy": "fixed", "attend": False, "length": 16}, document_length=200), "bert"),
    "at least": (expanding(expansion={"strategy": "min", "attend": False, "length": 16}), "modernbert"),
    "at least, seen": (
        expanding(expansion={"strategy": "min", "attend": True, "length": 16}, query_length=30),
        "roberta",
    ),
    "none": (expanding(query_length=12), "modernbert"),
}


@pytest.mark.parametrize(("build", "architecture"), FOLDERS.values(), ids=FOLDERS)
def test_vectors_are_those_of_the_reference(tmp_path: Path, build: Callable[[Path, str], Path], architecture: str):
    """Every vector of documents and queries equals MultiVectorEncoder's: markers, lengths, expansion, punctuation, projection."""
    folder = build(tmp_path / "m", architecture)
    for side in ("document", "query"):
        adapter = adapter_of(folder, prompt=side)
        assert adapter.recipe.outputs == ("multi_vector",)
        assert worst(encode(adapter), reference(folder, side)) <= 1e-4


@pytest.mark.parametrize("wide", [False, True])
def test_a_projection_with_a_residual(tmp_path: Path, wide: bool):
    """PyLate's Dense with use_residual, which has a matrix of its own where the dimensions change."""
    from safetensors.torch import save_file

    folder = models_outputs.pylate(tmp_path / "m")
    rows = 32 if wide else 16
    config = json.loads((folder / "1_Dense/config.json").read_text())
    (folder / "1_Dense/config.json").write_text(json.dumps(config | {"use_residual": True, "out_features": rows}))
    generator = torch.Generator().manual_seed(2)
    weights = {"linear.weight": torch.randn(rows, 32, generator=generator)}
    if not wide:
        weights["residual.weight"] = torch.randn(rows, 32, generator=generator)
    save_file(weights, folder / "1_Dense/model.safetensors")
    assert worst(encode(adapter_of(folder)), reference(folder, "document")) <= 1e-4


def test_masks_that_nobody_sees_are_no_keys(tmp_path: Path):
    """Negative control: the same checkpoint with its expansion attended gives other vectors for the same query."""
    vectors = []
    for attend in (False, True):
        expansion = {"strategy": "fixed", "attend": attend, "length": 16}
        folder = models_outputs.late_interaction(tmp_path / str(attend), expansion=expansion)
        vectors.append(encode(adapter_of(folder, prompt="query")))
    short = [n for n, text in enumerate(TEXTS) if len(text.split()) < 3]
    assert worst([vectors[0][n] for n in short], [vectors[1][n] for n in short]) > 1e-2


def test_the_batch_does_not_matter(tmp_path: Path):
    """Documents and queries get the same vectors alone, in another order and beside other texts."""
    expansion = {"strategy": "min", "attend": False, "length": 16}
    folder = models_outputs.late_interaction(tmp_path / "m", expansion=expansion)
    for side in ("document", "query"):
        adapter = adapter_of(folder, prompt=side)
        whole = encode(adapter)
        assert worst([encode(adapter, [text])[0] for text in TEXTS], whole) < 1e-5
        order = np.random.default_rng(0).permutation(len(TEXTS))
        assert worst(encode(adapter, [TEXTS[n] for n in order]), [whole[n] for n in order]) < 1e-5
        changed = encode(adapter, [*TEXTS[:5], "something else", *TEXTS[6:]])
        others = [n for n in range(len(TEXTS)) if n != 5]
        assert worst([changed[n] for n in others], [whole[n] for n in others]) < 1e-5


def test_half_precision_stays_close(colbert: Path):
    """Computing in bfloat16 keeps every vector's cosine with the float32 reference above 0.99, and above 0.999 on average."""
    cosines = np.concatenate(
        [
            (one * other).sum(1)
            for one, other in zip(
                encode(adapter_of(colbert, precision="bfloat16")), reference(colbert, "document"), strict=True
            )
        ]
    )
    assert cosines.min() > 0.99
    assert cosines.mean() > 0.999


def test_float16_is_stored(colbert: Path):
    """vector_type float16 stores the reference's vectors rounded to it."""
    found = encode(adapter_of(colbert, vector_type="float16"))
    assert worst(found, reference(colbert, "document")) <= 2**-11


def test_dims_keep_the_first_of_a_token(colbert: Path):
    """`dims` keeps a token's first dimensions and brings them to unit length."""
    found, whole = encode(adapter_of(colbert, dims=4)), reference_model(colbert)
    plain = [module for module in whole if type(module).__name__ != "Normalize"]
    model = type(whole)(modules=plain, device="cpu", prompts=whole.prompts)
    raw = model.encode_document(TEXTS, convert_to_numpy=True)
    assert worst(found, [one[:, :4] / np.linalg.norm(one[:, :4], axis=1, keepdims=True) for one in raw]) <= 1e-4


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_tokens_are_joined_as_the_reference_joins_them(colbert: Path, factor: int):
    """From the same vectors, the clusters and their means are HierarchicalTokenPooling's; the first token is kept."""
    modules = pytest.importorskip("sentence_transformers.multi_vector_encoder.modules")
    whole = reference(colbert, "document")
    expected = modules.HierarchicalTokenPooling(factor).pool([torch.from_numpy(one) for one in whole])
    found = [join_tokens(one, factor) for one in whole]
    assert worst(found, [one.numpy() for one in expected]) <= 1e-5
    assert sum(map(len, found)) < 1.2 * sum(map(len, whole)) / factor + len(TEXTS)


def test_the_recipe_joins_tokens(colbert: Path):
    """token_pooling of a recipe joins the vectors that the same batch gives without it."""
    found, whole = encode(adapter_of(colbert, token_pooling=4)), encode(adapter_of(colbert))
    same = [np.abs(one - join_tokens(other, 4)).max() <= 1e-4 for one, other in zip(found, whole, strict=True)]
    assert [one.shape for one in found] == [join_tokens(one, 4).shape for one in whole]
    assert np.mean(same) >= 0.7  # of long texts, last bits may decide between clusters that are equally far


def test_few_tokens_are_not_joined():
    """One or two vectors stay, and so does one that is not finite: it is found out later."""
    for vectors in (np.eye(4, dtype=np.float32)[:1], np.eye(4, dtype=np.float32)[:2]):
        assert np.array_equal(join_tokens(vectors, 4), vectors)


def test_maxsim_is_that_of_the_reference(colbert: Path):
    """Scores of queries against documents equal the reference's similarity; a document without vectors has none."""
    queries, documents = encode(adapter_of(colbert, prompt="query"), TEXTS[:5]), encode(adapter_of(colbert))
    model = reference_model(colbert)
    expected = model.similarity(model.encode_query(TEXTS[:5]), model.encode_document(TEXTS)).numpy()
    found = maxsim(queries, documents)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert maxsim(queries, [documents[0], np.zeros((0, 16), np.float32)])[:, 1].tolist() == [0.0] * 5
    assert maxsim([], documents).shape == (0, len(TEXTS))


# -- BGE-M3: three outputs of one forward pass


def flag_embedding(folder: Path) -> list[np.ndarray]:
    """FlagEmbedding's ColBERT vectors, text by text: a projection of all tokens but the first, brought to unit length."""
    from safetensors.torch import load_file

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    head = load_file(folder / "colbert_linear.safetensors")
    found: list[np.ndarray] = []
    for text in TEXTS:
        ids = tokenizer(text, truncation=True, max_length=120, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            hidden = model(input_ids=ids).last_hidden_state[0, 1:]
            found.append(torch.nn.functional.normalize(hidden @ head["weight"].T + head["bias"], dim=-1).numpy())
    return found


def test_several_outputs_come_of_one_pass(bge_m3: Path, monkeypatch: pytest.MonkeyPatch):
    """BGE-M3 gives dense, sparse and multi_vector in one row, from a single forward pass, each as it is alone."""
    adapter = adapter_of(bge_m3, outputs=("multi_vector", "dense", "sparse"))
    passes = []
    forward = type(adapter.packed).forward
    monkeypatch.setattr(type(adapter.packed), "forward", lambda self, batch: passes.append(1) or forward(self, batch))
    prepared = adapter.prepare([pa.array(TEXTS)])
    together = adapter.run([(prepared, np.arange(len(TEXTS)))]).batch
    assert len(passes) == 1
    assert together.schema.names == ["vector", "sparse", "multi_vector"]
    for output, column in (("dense", "vector"), ("sparse", "sparse"), ("multi_vector", "multi_vector")):
        alone = adapter_of(bge_m3, outputs=(output,))
        found = alone.run([(alone.prepare([pa.array(TEXTS)]), np.arange(len(TEXTS)))]).batch
        assert found.column(column).equals(together.column(column))
    width = 24
    found = [np.array(one, np.float32).reshape(-1, width) for one in together.column("multi_vector").to_pylist()]
    assert worst(found, flag_embedding(bge_m3)) <= 1e-4


# -- what is refused


def without_mask(path: Path) -> Path:
    models_outputs.stanford_colbert(path)
    found = json.loads((path / "tokenizer_config.json").read_text())
    del found["mask_token"]
    (path / "tokenizer_config.json").write_text(json.dumps(found))
    return path


def without_mask_module(path: Path) -> Path:
    models_outputs.late_interaction(path, expansion={"strategy": "fixed", "length": 16})
    kept = [one for one in json.loads((path / "modules.json").read_text()) if "Mask" not in one["type"]]
    (path / "modules.json").write_text(json.dumps(kept))
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "a dense model": (
        models.tiny_encoder,
        {"outputs": ("multi_vector",)},
        "has no projection for a multi_vector output",
    ),
    "binary": (models_outputs.stanford_colbert, {"vector_type": "binary"}, "vector_type binary: .* float32 or float16"),
    "int8": (models_outputs.stanford_colbert, {"vector_type": "int8"}, "vector_type int8: .* float32 or float16"),
    "too many dims": (models_outputs.stanford_colbert, {"dims": 17}, "dims 17 is above the 16 dimensions"),
    "joined queries": (
        models_outputs.stanford_colbert,
        {"token_pooling": 2, "prompt": "query"},
        "token_pooling joins .* documents",
    ),
    "dense of colbert": (
        models_outputs.stanford_colbert,
        {"outputs": ("dense",)},
        "a model for multi_vector output, and gives no dense",
    ),
    "expansion that nothing counts": (
        without_mask_module,
        {"prompt": "query"},
        "no MultiVectorMask says that this counts",
    ),
    "words that are none": (
        lambda path: models_outputs.pylate(path, skiplist_words="!"),
        {},
        "skiplist_words: expected a list of tokens, found '!'",
    ),
    "no mask token": (without_mask, {"prompt": "query"}, "no mask_token to fill queries up with"),
    "heads as .pt": (
        lambda path: models_outputs.bge_m3(path, heads="pt"),
        {"outputs": ("multi_vector",)},
        r"colbert_linear\.pt: .* convert it: python -c",
    ),
    "chunked queries": (
        models_outputs.stanford_colbert,
        {"prompt": "query", "long_text": "chunk"},
        "filled up to a length cannot be chunked",
    ),
    "long chunks": (
        models_outputs.stanford_colbert,
        {"long_text": "chunk", "chunk_tokens": 181},
        "above the 180 tokens",
    ),
}


@pytest.mark.parametrize(("build", "wishes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_model_cannot_give_is_refused(tmp_path: Path, build: Callable[[Path], Path], wishes, message: str):
    """A wish that the checkpoint cannot fulfil is refused before any work, with what to do."""
    with pytest.raises(ModelError, match=message):
        resolve(locate(str(build(tmp_path / "m"))), task="encode", **wishes)


@pytest.mark.parametrize(("metadata", "token"), [({"doc_token_id": "[unused9]"}, r"\[unused9\]")])
def test_a_tokenizer_without_the_marker_is_refused(tmp_path: Path, metadata: dict[str, str], token: str):
    """A ColBERT whose tokenizer lacks the token that its documents begin with would give other vectors: it is refused."""
    folder = models_outputs.stanford_colbert(tmp_path / "m", **metadata)
    with pytest.raises(ModelError, match=f"has no token '{token}'"):
        adapter_of(folder)


def test_a_mask_token_that_is_none_is_refused(tmp_path: Path):
    """A mask token that the vocabulary does not have is refused."""
    folder = models_outputs.stanford_colbert(tmp_path / "m")
    found = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(found | {"mask_token": "[NONE]"}))
    with pytest.raises(ModelError, match=r"no token '\[NONE\]'"):
        adapter_of(folder, prompt="query")
