"""LoRA adapters on a shared base, against PEFT itself on the same files."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lading import adapters
from lading.adapters import linear
from lading.adapters.packed import PackedModel
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from lading.config.lora import CONFIG, WEIGHTS, locate_adapter
from tests import models
from tests.adapters.test_packed import items, packed, recipe_of, relative_error
from tests.models_lora import peft_hidden, tiny_adapter

LENGTHS = [1, 2, 7, 7, 7, 12, 33, 60]
FAMILIES = ("bert", "qwen2", "llama")
# What is changed -> of which family, and how.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-attention": ("bert", {}),
    "bert-all": ("bert", {"target_modules": "all-linear", "lora_alpha": 3}),
    "bert-feed-forward": ("bert", {"target_modules": ["intermediate.dense"]}),
    "bert-output": ("bert", {"target_modules": r".*layer\.1\.(attention\.)?output\.dense", "use_rslora": True}),
    "bert-ranks": ("bert", {"rank_pattern": {"layer.0.attention.self.query": 2}, "alpha_pattern": {"value": 5}}),
    "bert-layers": ("bert", {"layers_to_transform": [1]}),
    "qwen2-attention": ("qwen2", {"target_modules": ["q_proj", "v_proj"]}),
    "qwen2-all": ("qwen2", {"target_modules": "all-linear", "lora_alpha": 2}),
    "llama-all": ("llama", {"target_modules": "all-linear", "lora_alpha": 2}),
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("lora-bases")
    pooling = {"bert": "mean", "qwen2": "lasttoken", "llama": "lasttoken"}
    return {one: models.tiny_encoder(place / one, one, pooling=pooling[one]) for one in FAMILIES}


@pytest.fixture
def adapter(bases: dict[str, Path], tmp_path: Path) -> Path:
    return tiny_adapter(tmp_path / "adapter", bases["bert"])


def load(folder: Path, precision: str = "float32") -> PackedModel:
    recipe = recipe_of(folder.name, precision)
    return PackedModel(recipe, folder, transformers.AutoModel, device="cpu", threads=1)


def change(folder: Path, **settings: Any) -> Path:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("products", ["torch", "onednn"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_peft(
    shape: str, products: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A ragged packed batch with an adapter gives PEFT's hidden states (relative error <= 1e-4); the base alone is bit-equal
    before, with and after it."""
    monkeypatch.setenv(linear.OVERRIDE, products)
    family, config = SHAPES[shape]
    texts = items(LENGTHS)
    base = load(bases[family])
    alone = packed(base, texts)
    folder = tiny_adapter(tmp_path / "adapter", bases[family], **config)
    adapted = base.adapted(folder)
    found, expected = packed(adapted, texts), peft_hidden(bases[family], folder, texts)
    assert relative_error(found, expected) <= 1e-4
    assert relative_error(alone, expected) > 1e-2, "the adapter changes nothing that could be seen"
    assert np.array_equal(packed(base, texts), alone)
    assert np.array_equal(packed(adapted, texts), found)


def test_half_precision(bases: dict[str, Path], tmp_path: Path):
    """In bfloat16 the low-rank part is bfloat16 too, and nearly as close to float32 as PEFT, which computes that part in float32."""
    folder = tiny_adapter(tmp_path / "adapter", bases["bert"])
    texts = items(LENGTHS)
    expected = peft_hidden(bases["bert"], folder, texts)
    found = distance(packed(load(bases["bert"], "bfloat16").adapted(folder), texts), expected)
    theirs = distance(peft_hidden(bases["bert"], folder, texts, torch.bfloat16), expected)
    assert found <= 1.5 * theirs


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_trained_with_a_head(bases: dict[str, Path], tmp_path: Path):
    """The names of a model with a head, which holds this one under a prefix, are understood."""
    folder = tiny_adapter(
        tmp_path / "adapter", bases["qwen2"], auto_class=transformers.AutoModelForCausalLM, target_modules=["q_proj"]
    )
    assert all(".model.layers." in key for key in load_file(folder / WEIGHTS))
    other = tmp_path / "plain"
    other.mkdir()
    (other / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    plain = {key.replace("model.model.layers", "model.layers"): w for key, w in load_file(folder / WEIGHTS).items()}
    save_file(plain, other / WEIGHTS)
    texts = items(LENGTHS)
    found = packed(load(bases["qwen2"]).adapted(folder), texts)
    assert relative_error(found, peft_hidden(bases["qwen2"], other, texts)) <= 1e-4


def test_threads_choose_each_for_itself(bases: dict[str, Path], tmp_path: Path):
    """Threads that run two adapters and the bare base of one loaded model at once get the bits that each has alone."""
    base, texts = load(bases["bert"]), items(LENGTHS * 3)
    every = [base] + [
        base.adapted(tiny_adapter(tmp_path / str(n), bases["bert"], target_modules="all-linear", seed=n))
        for n in (1, 2)
    ]
    expected = [packed(one, texts) for one in every]
    assert not np.array_equal(expected[1], expected[2])
    wrong: list[int] = []
    start = threading.Barrier(len(every))

    def run(which: int) -> None:
        start.wait()
        for _ in range(15):
            if not np.array_equal(packed(every[which], texts), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=run, args=(which,)) for which in range(len(every))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_joins_the_recipe(bases: dict[str, Path], adapter: Path, tmp_path: Path):
    """Another adapter is another recipe, the same files elsewhere are the same, and none leaves the hash as it was."""
    checkpoint = locate(str(bases["bert"]))
    bare = resolve(checkpoint, task="encode")
    ours = resolve(checkpoint, task="encode", adapter=str(adapter))
    assert "adapter" not in bare.to_dict()
    assert ours.base == bare
    adapter.rename(tmp_path / "moved")
    assert resolve(checkpoint, task="encode", adapter=str(tmp_path / "moved")).hash == ours.hash
    other = tiny_adapter(tmp_path / "other", bases["bert"], seed=9)
    assert resolve(checkpoint, task="encode", adapter=str(other)).hash not in (ours.hash, bare.hash)
    rescaled = change(tmp_path / "moved", lora_alpha=13)
    assert resolve(checkpoint, task="encode", adapter=str(rescaled)).hash not in (ours.hash, bare.hash)


def test_by_name_and_revision(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hub name with a revision is found in the hub's cache."""
    commit = "0123456789" * 4
    snapshot = tmp_path / "hub/models--owner--lora/snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    adapter.rename(snapshot)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LADING_OFFLINE", "1")
    assert locate_adapter(f"owner/lora@{commit}") == snapshot
    with pytest.raises(ModelError, match="owner/lora at revision 'v2'"):
        locate_adapter("owner/lora@v2")


REFUSED = {
    "dora": ({"use_dora": True}, "use_dora"),
    "kind": ({"peft_type": "IA3"}, "peft_type 'IA3'; Lading applies LORA"),
    "bias": ({"bias": "all"}, "bias 'all'"),
    "saved": ({"modules_to_save": ["classifier"]}, r"modules_to_save \['classifier'\]"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "changes the base model's own weights"),
    "unknown": ({"use_sparkles": True}, "sets use_sparkles, which Lading does not apply"),
    "rank": ({"r": 0}, "r and lora_alpha"),
    "targets": ({"target_modules": None}, "target_modules: expected names"),
    "pattern": ({"target_modules": "(query"}, "is no pattern"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_refuses_settings(which: str, bases: dict[str, Path], adapter: Path):
    """What would change a number and is not applied is refused when the recipe is settled, naming the file."""
    settings, message = REFUSED[which]
    with pytest.raises(ModelError, match=message) as caught:
        resolve(locate(str(bases["bert"])), task="encode", adapter=str(change(adapter, **settings)))
    assert str(adapter / CONFIG) in str(caught.value)


def test_refuses_dora_and_biases_of_peft(bases: dict[str, Path], tmp_path: Path):
    """As PEFT writes them, not only as we spell them."""
    for name, settings in {"dora": {"use_dora": True}, "lora_bias": {"lora_bias": True}}.items():
        folder = tiny_adapter(tmp_path / name, bases["bert"], **settings)
        with pytest.raises(ModelError, match=name):
            resolve(locate(str(bases["bert"])), task="encode", adapter=str(folder))


def test_refuses_other_files(bases: dict[str, Path], adapter: Path, tmp_path: Path):
    """A whole model, pickled weights, an empty folder and a damaged file each get a message that says what to do."""

    def settle(folder: Path) -> None:
        resolve(locate(str(bases["bert"])), task="encode", adapter=str(folder))

    with pytest.raises(ModelError, match="a whole model: give it as the model"):
        settle(bases["bert"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=f"no {CONFIG}"):
        settle(tmp_path / "empty")
    with pytest.raises(ModelError, match="give its base as the model, and this as adapter"):
        resolve(locate(str(adapter)), task="encode")
    torch.save({}, adapter / "adapter_model.bin")
    (adapter / WEIGHTS).rename(tmp_path / "kept")
    with pytest.raises(ModelError, match=r"only adapter_model\.bin.*weights_only=True"):
        settle(adapter)
    (adapter / WEIGHTS).write_bytes((tmp_path / "kept").read_bytes()[:-9])
    with pytest.raises(ModelError, match="cannot be read"):
        load(bases["bert"]).adapted(adapter)


def test_refuses_another_base(bases: dict[str, Path], adapter: Path, tmp_path: Path):
    """An adapter of another base names both, whether the layers are missing or of another size; the base runs on."""
    base, texts = load(bases["bert"]), items(LENGTHS)
    alone = packed(base, texts)
    foreign = tiny_adapter(tmp_path / "foreign", bases["qwen2"], target_modules=["q_proj"])
    with pytest.raises(
        ModelError, match=rf"foreign \(trained on {bases['qwen2']}\) does not fit {bases['bert']} \(bert\)"
    ):
        base.adapted(foreign)
    weights = load_file(adapter / WEIGHTS)
    key = next(key for key in weights if "lora_A" in key)
    save_file(weights | {key: torch.zeros(4, 48)}, adapter / WEIGHTS)
    with pytest.raises(ModelError, match=r"does not fit .*A \(4, 48\).*from 32 to 32"):
        base.adapted(adapter)
    assert np.array_equal(packed(base, texts), alone)


def test_refuses_what_is_left_over(bases: dict[str, Path], adapter: Path):
    """Weights that are no pair of A and B of a layer in target_modules are named, never skipped."""
    weights, base = load_file(adapter / WEIGHTS), load(bases["bert"])
    for extra in ("base_model.model.classifier.weight", "base_model.model.encoder.layer.0.output.dense.lora_A.weight"):
        save_file(weights | {extra: torch.zeros(4, 32)}, adapter / WEIGHTS)
        with pytest.raises(ModelError, match=extra):
            base.adapted(adapter)
    half = dict(weights)
    half.pop(next(key for key in weights if "lora_B" in key))
    save_file(half, adapter / WEIGHTS)
    with pytest.raises(ModelError, match="without its other half"):
        base.adapted(adapter)


def test_every_task_takes_an_adapter(tmp_path: Path):
    """A cross-encoder and a token classifier with an adapter on their backbone give PEFT's logits."""
    import peft
    import pyarrow as pa

    folder = models.tiny_cross_encoder(tmp_path / "cross", activation="Identity")
    auto = transformers.AutoModelForSequenceClassification
    adapter = tiny_adapter(tmp_path / "adapter", folder, auto_class=auto)
    recipe = resolve(locate(str(folder)), task="score", adapter=str(adapter))
    ours = adapters.load(recipe, folder, adapter=adapter, device="cpu", threads=1)
    pairs = [("a query", "its document"), ("another", "one that is quite a bit longer than the first")]
    prepared = ours.prepare([pa.array(column) for column in zip(*pairs, strict=True)])
    found = ours.run([(prepared, np.arange(2))]).batch.column(0).to_numpy()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(auto.from_pretrained(folder, attn_implementation="eager"), adapter).eval()
    with torch.inference_mode():
        expected = [float(model(**tokenizer(*pair, return_tensors="pt")).logits) for pair in pairs]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
