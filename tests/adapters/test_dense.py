"""Dense vectors, against sentence-transformers on the same weights."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.corpus import texts_of_lengths
from lading.adapters import Adapter, attention, load
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from lading.config.recipe import Recipe
from lading.workers.packer import pack
from tests import models


def adapter_of(folder: Path, **wishes) -> Adapter:
    return load(resolve(locate(str(folder)), task="encode", **wishes), folder, device="cpu", threads=2)


def encode(adapter: Adapter, texts: list[str], budget: int = 4096) -> np.ndarray:
    """Vectors of all texts, float32, in their order, in packed batches, as many at once as the engine runs."""
    prepared = adapter.prepare([pa.array(texts, pa.string())])
    assert not prepared.bad
    found: list[np.ndarray | None] = [None] * len(texts)
    batches = pack(prepared.costs, budget)
    with ThreadPoolExecutor(adapter.streams) as device:
        results = list(device.map(lambda batch: adapter.run([(prepared, batch)]), batches))
    for batch, outputs in zip(batches, results, strict=True):
        assert not outputs.bad
        for item, vector in zip(batch, outputs.batch.column(0).to_numpy(zero_copy_only=False), strict=True):
            found[item] = vector
    return np.stack(found).astype(np.float32)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def reference_of(folder: Path, dtype: str = "float32"):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})


# -- the real MiniLM


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """2,000 texts of 1 to 600 tokens: 1,970 of 1 to 20 words, 30 of 21 to 450, so that the test stays affordable."""
    words = [1 + n % 20 for n in range(1970)] + [21 + n * 429 // 29 for n in range(30)]
    random.Random(0).shuffle(words)
    return texts_of_lengths(words)


@pytest.fixture(scope="module")
def reference(minilm: Path, texts: list[str]) -> np.ndarray:
    model = reference_of(minilm)
    model.max_seq_length = 512
    return model.encode(texts, normalize_embeddings=True)


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> Adapter:
    return adapter_of(minilm, max_tokens=512)


@pytest.mark.parametrize("budget", [1024, 4096, 16384])
def test_vectors_are_those_of_the_reference(encoder: Adapter, texts: list[str], reference: np.ndarray, budget: int):
    """Every vector equals sentence-transformers' (cosine >= 0.99999), whatever the batch budget and the order."""
    order = np.random.default_rng(budget).permutation(len(texts))
    lengths = encoder.prepare([pa.array(texts)]).costs
    assert lengths.min() <= 3
    assert lengths.max() == 512  # some are longer and cut
    found = encode(encoder, [texts[n] for n in order], budget)
    assert cosines(found, reference[order]).min() >= 0.99999


def test_bfloat16_stays_close(minilm: Path, texts: list[str], reference: np.ndarray):
    """Computing in bfloat16 keeps every vector within a cosine of 0.9995 of the float32 reference."""
    few = slice(0, None, 4)
    found = encode(adapter_of(minilm, max_tokens=512, precision="bfloat16"), texts[few])
    assert cosines(found, reference[few]).min() >= 0.9995


def test_the_same_batch_gives_the_same_bytes(encoder: Adapter, texts: list[str]):
    """Running one batch twice gives byte-equal columns."""
    prepared = encoder.prepare([pa.array(texts[:100])])
    first, second = (encoder.run([(prepared, np.arange(100))]).batch for _ in range(2))
    assert first.equals(second)


def test_batches_side_by_side_do_not_meet(encoder: Adapter, texts: list[str]):
    """Batches that run at the same time, in more threads than the adapter asks for, give the bytes that they give alone."""
    prepared = encoder.prepare([pa.array(texts[:400])])
    batches = pack(prepared.costs, 256)
    alone = [encoder.run([(prepared, batch)]).batch for batch in batches]
    with ThreadPoolExecutor(4) as device:
        together = list(device.map(lambda batch: encoder.run([(prepared, batch)]).batch, batches))
    assert all(one.equals(other) for one, other in zip(alone, together, strict=True))


def test_a_neighbour_does_not_matter(encoder: Adapter):
    """Changing one text of a batch leaves the vectors of the others as they were."""
    texts = texts_of_lengths([5, 12, 12, 40])
    changed = [*texts[:2], "something else of quite another length", texts[3]]
    one, other = encode(encoder, texts), encode(encoder, changed)
    assert np.abs(one - other)[[0, 1, 3]].max() < 1e-6
    assert np.abs(one - other)[2].max() > 1e-2


def test_positions_that_do_not_restart_change_the_vectors(encoder: Adapter, monkeypatch: pytest.MonkeyPatch):
    """Negative control: with positions running on through the batch, the comparison above would fail."""
    texts = texts_of_lengths([20, 20, 20])
    right = encode(encoder, texts)
    forward = type(encoder.packed).forward

    def running_on(self, batch):
        batch.positions.copy_(torch.arange(batch.positions.shape[1])[None])
        return forward(self, batch)

    monkeypatch.setattr(type(encoder.packed), "forward", running_on)
    assert cosines(encode(encoder, texts), right).min() < 0.99


def test_rows_that_cannot_be_encoded_say_why(encoder: Adapter):
    """Null and blank texts go to `bad` with their reason; the other rows keep their numbers."""
    prepared = encoder.prepare([pa.array(["one", None, "", " \n\t", "two"])])
    assert prepared.rows.tolist() == [0, 4]
    assert {row: code for row, (code, _) in prepared.bad.items()} == {1: "null-text", 2: "empty-text", 3: "empty-text"}


def test_long_texts_are_counted_or_refused(minilm: Path):
    """A text above max_tokens is cut and counted under `truncate`, and told its length under `reject`."""
    long = pa.array(["word " * 40, "short"])
    cut = adapter_of(minilm, max_tokens=16).prepare([long])
    assert (cut.truncated, cut.costs.tolist()) == (1, [16, 3])
    refused = adapter_of(minilm, max_tokens=16, long_text="reject").prepare([long])
    assert refused.bad == {0: ("too-long", "42 tokens, the limit is 16")}
    assert refused.rows.tolist() == [1]


# -- conventions of checkpoints, on tiny ones

TEXTS = texts_of_lengths([1, 2, 3, 7, 7, 7, 12, 19, 30])


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_every_pooling(tmp_path: Path, pooling: str, include_prompt: bool):
    """Each pooling mode gives the reference's vectors, with the prompt's tokens pooled or left out."""
    folder = models.tiny_encoder(
        tmp_path / "m", pooling=pooling, normalize=False, prompts={"query": "find: "}, include_prompt=include_prompt
    )
    found = encode(adapter_of(folder, prompt="query"), TEXTS)
    expected = reference_of(folder).encode(TEXTS, prompt_name="query")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [8, 24])
def test_dense_module_and_dims(tmp_path: Path, dims: int):
    """A Dense module is applied, and `dims` slices before the normalisation, as truncate_dim does."""
    folder = models.tiny_encoder(tmp_path / "m", dense=24, normalize=False)
    full = reference_of(folder).encode(TEXTS)
    np.testing.assert_allclose(encode(adapter_of(folder), TEXTS), full, rtol=1e-4, atol=1e-5)
    recipe = resolve(locate(str(folder)), task="encode", dims=dims)
    sliced = load(Recipe.from_dict(recipe.to_dict() | {"normalize": True, "dims": dims}), folder, device="cpu")
    expected = full[:, :dims] / np.linalg.norm(full[:, :dims], axis=1, keepdims=True)
    np.testing.assert_allclose(encode(sliced, TEXTS), expected, rtol=1e-4, atol=1e-5)


# -- stored vector types


def undo(column: pa.Array, scale: pa.Array | None, vector_type: str, dims: int) -> np.ndarray:
    """What the field's metadata says."""
    stored = np.stack(column.to_numpy(zero_copy_only=False))
    if scale is None:
        return stored.astype(np.float32)
    steps = stored if vector_type == "int8" else np.unpackbits(stored, axis=1)[:, :dims].astype(np.float32) * 2 - 1
    return steps * np.asarray(scale)[:, None]


@pytest.mark.parametrize("vector_type", ["float16", "int8", "binary"])
def test_vector_types_can_be_undone(tiny_encoder: Path, vector_type: str):
    """Undoing a stored type gives the float32 vector back within its bound: rounding, half a step, or the sign."""
    exact = encode(adapter_of(tiny_encoder), TEXTS)
    adapter = adapter_of(tiny_encoder, vector_type=vector_type)
    prepared = adapter.prepare([pa.array(TEXTS)])
    batch = adapter.run([(prepared, np.arange(len(TEXTS)))]).batch
    assert batch.schema.equals(pa.schema(adapter.fields), check_metadata=True)
    scale = batch.column(1) if batch.num_columns > 1 else None
    back = undo(batch.column(0), scale, vector_type, exact.shape[1])
    if vector_type == "float16":
        np.testing.assert_allclose(back, exact, rtol=1e-3, atol=1e-6)
    elif vector_type == "int8":
        assert (np.abs(back - exact) <= np.asarray(scale)[:, None] * 0.501).all()
    else:
        assert (np.sign(back) == np.where(exact > 0, 1, -1)).all()
        np.testing.assert_allclose(np.abs(back), np.abs(exact).mean(1, keepdims=True).repeat(32, 1), rtol=1e-5)
    if scale is not None:
        assert adapter.fields[0].metadata[b"lading.undo"].startswith(b"vector" if vector_type == "int8" else b"(unpack")


def test_a_scale_is_the_rows_own(tiny_encoder: Path):
    """An int8 vector and its scale are the same alone and beside any neighbours."""
    adapter = adapter_of(tiny_encoder, vector_type="int8")
    prepared = adapter.prepare([pa.array(TEXTS)])
    together = adapter.run([(prepared, np.arange(len(TEXTS)))]).batch
    for item in range(len(TEXTS)):
        alone = adapter.run([(prepared, np.array([item]))]).batch
        assert alone.column(1)[0].as_py() == pytest.approx(together.column(1)[item].as_py(), rel=1e-5)
        difference = np.array(alone.column(0)[0].as_py()) - np.array(together.column(0)[item].as_py())
        assert np.abs(difference).max() <= 1  # a value at the border of two steps may fall to either side


def test_items_have_no_validity_bitmap(tiny_encoder: Path):
    """The vector's items are declared non-nullable, which readers and writers are much faster with."""
    (field,) = adapter_of(tiny_encoder).fields
    assert field.type == pa.list_(pa.field("item", pa.float32(), nullable=False), 32)


# -- what goes wrong


def test_a_result_that_is_not_finite_harms_its_own_row_only(tiny_encoder: Path):
    """A text whose token has a NaN weight is reported by item; the others are as without it."""
    adapter = adapter_of(tiny_encoder)
    healthy = encode(adapter, ["zebra", "fine text"])
    prepared = adapter.prepare([pa.array(["fine text", "zebra", "fine text"])])
    token = int(prepared.features["ragged"].take(np.array([1])).tokens[1])
    assert token not in prepared.features["ragged"].take(np.array([0])).tokens
    with torch.no_grad():
        adapter.packed.model.get_input_embeddings().weight[token] = float("nan")
    outputs = adapter.run([(prepared, np.arange(3))])
    assert list(outputs.bad) == [1]
    vectors = np.stack(outputs.batch.column(0).to_numpy(zero_copy_only=False))
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[[0, 2]], healthy[[1, 1]], atol=1e-6)


def test_items_of_several_parts_keep_their_order(tiny_encoder: Path):
    """`run` gives the results in the order asked for, across parts, though it sorts by length inside."""
    adapter = adapter_of(tiny_encoder)
    expected = encode(adapter, TEXTS)
    first, second = adapter.prepare([pa.array(TEXTS[:4])]), adapter.prepare([pa.array(TEXTS[4:])])
    batch = adapter.run([(second, np.array([3, 0])), (first, np.array([2, 0, 3]))]).batch
    found = np.stack(batch.column(0).to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(found, expected[[7, 4, 2, 0, 3]], atol=1e-6)


def test_binary_needs_whole_bytes(tiny_encoder: Path):
    """Binary vectors whose dims are no multiple of 8 are refused at load."""
    recipe = resolve(locate(str(tiny_encoder)), task="encode", vector_type="binary")
    with pytest.raises(ModelError, match="divisible by 8"):
        load(Recipe.from_dict(recipe.to_dict() | {"dims": 12}), tiny_encoder, device="cpu")


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path):
    """A checkpoint without one of its tensors is refused by that tensor's name, not filled with random numbers."""
    from safetensors.torch import load_file, save_file

    folder = models.tiny_encoder(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("query.weight"))
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"query\.weight"):
        adapter_of(folder)


def test_the_kernel_is_named(tiny_encoder: Path):
    """What runs attention, products, where and in which precision is in `kernel`, for receipts."""
    name, where, precision = adapter_of(tiny_encoder).kernel.split("/")
    backend, products = name.split("+")
    assert backend in attention.BACKENDS
    assert products in ("torch", "onednn")
    assert (where, precision) == ("cpu", "float32")
