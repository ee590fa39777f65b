"""Packing against transformers itself: kernels, fused layers, what is refused, and controls that must fail.

That every family's results are right is test_contract.py's.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from lading.adapters import attention
from lading.adapters.packed import DTYPES, PackedModel, _head_size, _rope_that_grows, load_model, to_device
from lading.adapters.tokens import Ragged
from lading.config.errors import ModelError
from lading.config.recipe import Recipe
from tests import models

KINDS = ["bert", "modernbert", "gte", "llama"]  # plain, with windows, with a gate, causal with grouped heads
DOES_NOT_FIT = ["megatron-bert", "deberta", "rembert"]
LENGTHS = [1, 2, 7, 7, 7, 12, 33, 60]
LACK_OF_NATIVE = attention._lack_of_native(torch.device("cpu"), torch.float32, 16)
CPU_KERNELS = [
    "sdpa-runs",
    "matmul-runs",
    pytest.param("native", marks=pytest.mark.skipif(bool(LACK_OF_NATIVE), reason=LACK_OF_NATIVE)),
]


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


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_encoder(tmp_path_factory.mktemp("family") / request.param, request.param)


def load(folder: Path, precision: str = "float32", threads: int = 1) -> PackedModel:
    import transformers

    return PackedModel(recipe_of(folder.name, precision), folder, transformers.AutoModel, device="cpu", threads=threads)


@pytest.mark.parametrize("backend", CPU_KERNELS)
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


TOKEN_HEADS = ["bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "modernbert", "nomic_bert", "gte"]
TOKEN_HEADS += ["jina_embeddings_v3", "eurobert", "mpnet", "deberta-v2"]


@pytest.mark.parametrize("architecture", TOKEN_HEADS)
def test_token_logits_equal_one_by_one(tmp_path: Path, architecture: str):
    """Logits over the vocabulary, from weights tied to the embeddings, are those of each text alone; all layers are fused."""
    import transformers

    auto_class = transformers.AutoModelForMaskedLM
    models._save(tmp_path, auto_class, architecture)
    model = PackedModel(recipe_of(architecture), tmp_path, auto_class, device="cpu", threads=1)
    texts, offsets = items(LENGTHS), np.cumsum([0, *LENGTHS])
    ragged = Ragged(np.concatenate(texts).astype(np.int32), offsets)
    found = model.forward(to_device(ragged, np.arange(len(texts)), torch.device("cpu"))).logits[0].numpy()
    reference = load_model(tmp_path, auto_class, torch.float32)
    with torch.inference_mode():
        expected = np.concatenate([reference(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in texts])
    assert relative_error(found, expected) <= 1e-4


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3_text", "modernbert"])
def test_text_logits_equal_one_by_one(tmp_path: Path, architecture: str):
    """A decoder's score of its last token, and a head that averages first, are those of each text alone."""
    import transformers

    auto_class = transformers.AutoModelForSequenceClassification
    mean = {"classifier_pooling": "mean"} if architecture == "modernbert" else {}
    models._save(tmp_path, auto_class, architecture, num_labels=3, **mean)
    model = PackedModel(recipe_of(architecture), tmp_path, auto_class, device="cpu", threads=1)
    texts, offsets = items(LENGTHS), np.cumsum([0, *LENGTHS])
    ragged = Ragged(np.concatenate(texts).astype(np.int32), offsets)
    found = model.forward(to_device(ragged, np.arange(len(texts)), torch.device("cpu"))).logits.numpy()
    reference = load_model(tmp_path, auto_class, torch.float32)
    with torch.inference_mode():
        expected = np.concatenate([reference(input_ids=torch.tensor([ids])).logits.numpy() for ids in texts])
    assert relative_error(found, expected) <= 1e-4


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_loads(folder: Path, precision: str):
    """The check at load accepts every architecture in half precision too, and hidden states come out in that dtype."""
    model = load(folder, precision)
    assert next(model.model.parameters()).dtype == DTYPES[precision]
    assert np.isfinite(packed(model, items([3, 8]))).all()


@pytest.mark.parametrize("architecture", ["deberta-v2", "mpnet", "umt5"])
def test_tables_of_distances_are_shared_by_threads(tmp_path: Path, architecture: str):
    """Batches of ever longer texts, several at once, give what they give alone, though they make each other's tables."""
    folder = models.tiny_encoder(tmp_path / architecture, architecture)
    batches = [items([length, length - 3]) for length in range(5, 120, 9)]
    alone = [packed(load(folder), texts) for texts in batches[::5]]
    model = load(folder)
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda texts: packed(model, texts), batches))
    for one, other in zip(alone, together[::5], strict=True):
        assert relative_error(one, other) <= 1e-5


def test_a_convolution_over_neighbours_is_refused(tmp_path: Path):
    """The DeBERTa-v2 with a convolution, which would see the next text, is refused with the setting's name."""
    folder = models.tiny_encoder(tmp_path / "m", "deberta-v2", conv_kernel_size=3)
    with pytest.raises(ModelError, match=r"'deberta-v2' cannot be run packed: .*conv_kernel_size"):
        load(folder)


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


def test_a_model_of_several_inputs_is_refused_by_name(tmp_path: Path):
    """A model that wants more than texts is an error of the model by its type's name, not a traceback."""
    import transformers

    text = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 300,
    }
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(
        "clip", text_config=text, vision_config=sizes | {"intermediate_size": 64}
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'clip' cannot be run packed"):
        PackedModel(recipe_of("clip"), tmp_path, transformers.AutoModel, device="cpu", threads=1)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_longer_texts_are_refused(tmp_path: Path, kind: str, nested: bool):
    """A rotary embedding that the longest text so far changes would make a vector depend on its neighbours."""
    folder = models.tiny_encoder(tmp_path / "llama", "llama")
    load(folder)  # with its usual positions it runs
    config = json.loads((folder / "config.json").read_text())
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, **(factors if kind == "longrope" else {})}
    config["rope_parameters"] = rope
    (folder / "config.json").write_text(json.dumps(config))
    if nested:  # as models with several types of layers have it
        config = SimpleNamespace(
            rope_parameters={"full_attention": rope, "sliding_attention": {"rope_type": "default"}}
        )
        assert _rope_that_grows(config) == kind
        return
    with pytest.raises(ModelError, match=f"'llama' with rope_type '{kind}'.*depend on its neighbours"):
        load(folder)


def test_a_config_that_has_no_one_head_size_is_no_error():
    """Models whose layers have heads of several sizes refuse to name one; their attention runs by torch."""
    assert _head_size(AutoConfig.for_model("gemma4_text")) == 0
    assert _head_size(AutoConfig.for_model("distilbert")) == 64


def test_a_padding_mask_is_refused(tmp_path: Path):
    """The packed backend fails closed: a batch with padding is an error, not a wrong result."""
    model = load(models.tiny_encoder(tmp_path / "bert"))
    ids = torch.tensor([[5, 6, 7, 1]])
    with pytest.raises(ModelError, match="padding mask"):
        model.model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 0]]))
    with pytest.raises(ModelError, match="outside of a packed forward"):
        model.model(input_ids=ids)
