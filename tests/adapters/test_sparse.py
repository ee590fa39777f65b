"""Sparse vectors, against sentence-transformers' SparseEncoder and FlagEmbedding's formulas on the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from benchmarks.corpus import texts_of_lengths
from lading.adapters import Adapter, load, sparse
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from tests import models, models_outputs

TEXTS = texts_of_lengths([1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 600, 4, 4, 4])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparse")


@pytest.fixture(scope="module")
def splade(folders: Path) -> Path:
    return models_outputs.splade(folders / "splade")


@pytest.fixture(scope="module")
def bge_m3(folders: Path) -> Path:
    return models_outputs.bge_m3(folders / "bge-m3")


def adapter_of(folder: Path, **wishes) -> Adapter:
    return load(resolve(locate(str(folder)), task="encode", **wishes), folder, device="cpu", threads=1)


def encode(adapter: Adapter, texts: list[str] = TEXTS, column: str = "sparse") -> np.ndarray:
    """The sparse vectors of one batch, written out: float32 (texts, largest id + 1)."""
    prepared = adapter.prepare([pa.array(texts)])
    assert not prepared.bad
    outputs = adapter.run([(prepared, np.arange(len(texts)))])
    assert not outputs.bad
    return written_out(outputs.batch.column(column), adapter.tokenizer.vocabulary)


def written_out(column: pa.Array, width: int) -> np.ndarray:
    found = np.zeros((len(column), width), np.float32)
    for row, one in enumerate(column.to_pylist()):
        assert one["indices"] == sorted(set(one["indices"]))
        assert 0 not in one["values"]
        found[row, one["indices"]] = one["values"]
    return found


def reference(folder: Path, side: str = "document", **options) -> np.ndarray:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SparseEncoder(str(folder), device="cpu", **options)
    found = getattr(model, f"encode_{side}")(TEXTS, convert_to_sparse_tensor=False)
    return found.detach().float().numpy()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# -- SPLADE


@pytest.mark.parametrize(
    ("architecture", "pooling", "activation"),
    [
        ("bert", "max", "relu"),
        ("bert", "sum", "log1p_relu"),
        ("distilbert", "max", "log1p_relu"),
        ("roberta", "sum", "relu"),
        ("modernbert", "max", "relu"),
    ],
)
def test_weights_are_those_of_the_reference(tmp_path: Path, architecture: str, pooling: str, activation: str):
    """Every weight equals SparseEncoder's, of texts of 1 to 600 tokens, and a SPLADE folder needs no word about it."""
    folder = models_outputs.splade(tmp_path / "m", architecture, pooling=pooling, activation=activation)
    adapter, expected = adapter_of(folder), reference(folder)
    assert adapter.recipe.outputs == ("sparse",)
    assert relative_error(encode(adapter), expected) <= 1e-4
    assert 0.01 < (expected == 0).mean() < 0.99 or architecture == "modernbert"  # there is something to leave out


def test_a_plain_masked_language_model_is_splade_when_asked(folders: Path, splade: Path):
    """The same weights without modules.json give the same sparse vectors if `outputs` says sparse, else a dense one."""
    plain = folders / "splade-mlm"
    assert resolve(locate(str(plain)), task="encode").outputs == ("dense",)
    assert relative_error(encode(adapter_of(plain, outputs=("sparse",))), reference(splade)) <= 1e-4


@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_no_large_matrix_of_logits_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pooling: str):
    """Logits are made for a few tokens at a time, and where a text is cut between two pieces changes nothing."""
    folder = models_outputs.splade(tmp_path / "m", pooling=pooling)
    expected = reference(folder)
    monkeypatch.setattr(sparse, "LOGIT_BYTES", 7 * 4 * 500)
    adapter, made = adapter_of(folder), []
    logits = sparse._Logits.__call__

    def counted(self, hidden):
        made.append(logits(self, hidden))
        return made[-1]

    monkeypatch.setattr(sparse._Logits, "__call__", counted)
    assert relative_error(encode(adapter), expected) <= 1e-4
    assert max(one.numel() * 4 for one in made) <= sparse.LOGIT_BYTES
    assert sum(len(one) for one in made) > 1000


def test_the_batch_does_not_matter(splade: Path):
    """A text's weights are the same alone, in another order and among other texts; another text in its place changes its own only."""
    adapter = adapter_of(splade)
    whole = encode(adapter)
    alone = np.concatenate([encode(adapter, [text]) for text in TEXTS[:9]])
    assert relative_error(alone, whole[:9]) < 1e-5
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert relative_error(encode(adapter, [TEXTS[n] for n in order]), whole[order]) < 1e-5
    changed = encode(adapter, [*TEXTS[:5], "something else", *TEXTS[6:]])
    others = np.arange(len(TEXTS)) != 5
    assert relative_error(changed[others], whole[others]) < 1e-5
    assert relative_error(changed[5:6], whole[5:6]) > 1e-2


def test_half_precision_stays_close(splade: Path):
    """Computing in bfloat16 keeps the cosine with the float32 reference above 0.999."""
    found, expected = encode(adapter_of(splade, precision="bfloat16")), reference(splade)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999


def test_top_k_and_threshold_keep_the_largest(splade: Path):
    """`top_k` keeps what SparseEncoder's max_active_dims keeps, `threshold` what is above it; a checkpoint may set the first."""
    expected = reference(splade, max_active_dims=7)
    found = encode(adapter_of(splade, top_k=7))
    assert (found != 0).sum(1).max() == 7
    assert relative_error(found, expected) <= 1e-4
    whole = reference(splade)
    limit = float(np.median(whole[whole > 0]))
    found = encode(adapter_of(splade, threshold=limit))
    far = np.abs(whole - limit) > 1e-4
    assert ((found > 0) == (whole > limit))[far].all()


def test_a_checkpoint_may_say_how_many_weights(tmp_path: Path):
    """max_active_dims of the checkpoint is `top_k` unless another is asked for."""
    folder = models_outputs.splade(tmp_path / "m", max_active_dims=3)
    assert resolve(locate(str(folder)), task="encode").top_k == 3
    assert resolve(locate(str(folder)), task="encode", top_k=5).top_k == 5


def test_equal_weights_are_kept_by_id():
    """Which of equal weights `top_k` keeps depends on nothing but their ids, and rows stand in the order asked for."""
    recipe = resolve_free(top_k=2)
    rows, ids = np.array([0, 0, 0, 2, 2]), np.array([4, 7, 9, 1, 2])
    (column,), bad = sparse.columns(recipe, np.array([1, 2, 0]), rows, ids, np.array([1, 1, 1, 5, 6], np.float32))
    assert column.to_pylist() == [
        {"indices": [1, 2], "values": [5.0, 6.0]},
        {"indices": [4, 7], "values": [1.0, 1.0]},
        {"indices": [], "values": []},
    ]
    assert not bad


def resolve_free(**fields):
    from lading.config.recipe import Recipe

    return Recipe(task="encode", content="", architecture="bert", max_tokens=9, outputs=("sparse",), **fields)


def test_a_weight_that_is_not_finite_is_bad(splade: Path, monkeypatch: pytest.MonkeyPatch):
    """A text with NaN in its logits is bad, and its neighbours are as they were."""
    adapter = adapter_of(splade)
    right = encode(adapter)
    forward = type(adapter.packed).forward

    def damaged(self, batch):
        output = forward(self, batch)
        output.last_hidden_state[0, 0] = float("nan")  # the longest text's first token
        return output

    monkeypatch.setattr(type(adapter.packed), "forward", damaged)
    prepared = adapter.prepare([pa.array(TEXTS)])
    outputs = adapter.run([(prepared, np.arange(len(TEXTS)))])
    longest = int(prepared.costs.argmax())
    assert outputs.bad == {longest: sparse.NOT_FINITE}
    kept = [n for n in range(len(TEXTS)) if n != longest]
    found = written_out(outputs.batch.column(0).take(pa.array(kept)), right.shape[1])
    assert relative_error(found, right[kept]) < 1e-5


# -- a table for queries


@pytest.mark.parametrize("side", ["document", "query"])
def test_queries_without_a_model(tmp_path: Path, side: str):
    """A Router's documents go through its model, its queries through the tokenizer and a table, as SparseEncoder routes them."""
    folder = models_outputs.inference_free(tmp_path / "m")
    adapter = adapter_of(folder, prompt=side)
    assert adapter.kernel.startswith("lookup") == (side == "query")
    assert relative_error(encode(adapter), reference(folder, side)) <= 1e-4


def test_a_table_in_json(tmp_path: Path):
    """An idf.json, as the first checkpoints of this kind have it, is the same as the table in safetensors."""
    folder = models_outputs.inference_free(tmp_path / "m")
    expected = encode(adapter_of(folder, prompt="query"))
    home = folder / "query_0_SparseStaticEmbedding"
    table = read_table(home / "model.safetensors")
    tokens = {place: token for token, place in tokenizer_of(home).get_vocab().items()}
    models._write(home / "idf.json", {tokens[place]: float(weight) for place, weight in enumerate(table)})
    (home / "model.safetensors").unlink()
    assert np.array_equal(encode(adapter_of(folder, prompt="query")), expected)


def test_a_model_beside_its_router(tmp_path: Path):
    """A Router whose transformer lies in the checkpoint's own folder, as OpenSearch's do, gives the same."""
    folder = models_outputs.inference_free(tmp_path / "m")
    expected = encode(adapter_of(folder))
    for file in (folder / "document_0_Transformer").iterdir():
        file.rename(folder / file.name)
    routes = (folder / "router_config.json").read_text().replace('"document_0_Transformer"', '""')
    (folder / "router_config.json").write_text(routes)
    assert resolve(locate(str(folder)), task="encode").part == ""
    assert np.array_equal(encode(adapter_of(folder)), expected)
    assert relative_error(encode(adapter_of(folder)), reference(folder)) <= 1e-4


def read_table(path: Path) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(path)["weight"]


def tokenizer_of(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder)


# -- BGE-M3


def flag_embedding(folder: Path) -> list[dict[int, float]]:
    """FlagEmbedding's lexical weights, text by text: relu(w . h + b), the largest of each token id, special tokens left out."""
    from safetensors.torch import load_file

    tokenizer, head = tokenizer_of(folder), load_file(folder / "sparse_linear.safetensors")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    unused = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    found: list[dict[int, float]] = []
    for text in TEXTS:
        ids = tokenizer(text, truncation=True, max_length=120, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            hidden = model(input_ids=ids).last_hidden_state[0]
            weights = torch.relu(hidden @ head["weight"].T + head["bias"])[:, 0]
        told: dict[int, float] = {}
        for id, weight in zip(ids[0].tolist(), weights.tolist(), strict=True):
            if id not in unused and weight > 0:
                told[id] = max(weight, told.get(id, 0.0))
        found.append(told)
    return found


def test_lexical_weights_are_those_of_flag_embedding(bge_m3: Path):
    """BGE-M3's sparse head gives FlagEmbedding's lexical weights."""
    found = encode(adapter_of(bge_m3, outputs=("sparse",)))
    expected = np.zeros_like(found)
    for row, told in enumerate(flag_embedding(bge_m3)):
        expected[row, list(told)] = list(told.values())
    assert (expected > 0).sum() > 50
    assert relative_error(found, expected) <= 1e-4


# -- what is refused


def outside(path: Path) -> Path:
    text = (path / "router_config.json").read_text().replace("document_0_Transformer", "../other")
    (path / "router_config.json").write_text(text)
    return path


def without_route(path: Path) -> Path:
    found = json.loads((path / "router_config.json").read_text())
    del found["structure"]["query"]
    (path / "router_config.json").write_text(json.dumps(found))
    return path


REFUSED = {
    "a dense model": (
        lambda path: models.tiny_encoder(path),
        {"outputs": ("sparse",)},
        "has no head for a sparse output",
    ),
    "SPLADE with dims": (models_outputs.splade, {"dims": 8}, "dims 8: .* use top_k"),
    "SPLADE with a vector type": (
        models_outputs.splade,
        {"vector_type": "int8"},
        "weights of a sparse vector are float32",
    ),
    "SPLADE for dense": (
        models_outputs.splade,
        {"outputs": ("dense", "sparse")},
        "a model for sparse output, and gives no dense",
    ),
    "unknown output": (models_outputs.splade, {"outputs": ("spares",)}, "did you mean 'sparse'"),
    "top_k of a dense vector": (lambda path: models.tiny_encoder(path), {"top_k": 4}, "top_k is for sparse output"),
    "a route that leads outside": (
        lambda path: outside(models_outputs.inference_free(path)),
        {},
        "path '../other' is not a sub-folder",
    ),
    "a route that is not there": (
        lambda path: without_route(models_outputs.inference_free(path)),
        {"prompt": "query"},
        "no route 'query', only 'document'",
    ),
    "heads as .pt": (
        lambda path: models_outputs.bge_m3(path, heads="pt"),
        {"outputs": ("dense", "sparse")},
        r"sparse_linear\.pt: .* convert it: python -c",
    ),
    "no heads": (
        lambda path: models_outputs.bge_m3(path, heads="none"),
        {"outputs": ("dense", "sparse")},
        r"BGE-M3 with its sparse_linear\.safetensors",
    ),
}


@pytest.mark.parametrize(("build", "wishes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_model_cannot_give_is_refused(tmp_path: Path, build, wishes, message: str):
    """A wish that the checkpoint cannot fulfil is refused before any work, with what to do."""
    with pytest.raises(ModelError, match=message):
        resolve(locate(str(build(tmp_path / "m"))), task="encode", **wishes)


def test_the_conversion_in_the_message_works(tmp_path: Path):
    """The command that the message gives for a head in another format makes the file that is read."""
    import re
    import shlex
    import subprocess
    import sys

    folder = models_outputs.bge_m3(tmp_path / "m", heads="pt")
    for output in ("sparse", "multi_vector"):
        with pytest.raises(ModelError) as refused:
            resolve(locate(str(folder)), task="encode", outputs=(output,))
        command = shlex.split(re.search(r"python -c .*", str(refused.value)).group())
        subprocess.run([sys.executable, *command[1:]], check=True)
    assert resolve(locate(str(folder)), task="encode", outputs=("sparse", "multi_vector")).token_dims == 24
