"""Checkpoints with code of their own for an architecture that transformers has: read in that class's words, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lading.adapters.packed import load_model
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from lading.config.natives import WITHOUT_CODE
from tests import families, models

NTK = {"rope_type": "linear", "factor": 2.0 ** (2 / 16), "rope_theta": 40000.0}


@pytest.fixture
def gte(tmp_path: Path) -> Path:
    return families.publish(models.tiny_encoder(tmp_path / "gte", "gte", rope_parameters=NTK))


def change(folder: Path, name: str = "config.json", **fields) -> Path:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_fixed_ntk_scaling_is_what_its_authors_compute(gte: Path):
    """Frequencies are 1 / (base * factor) ** (2i / width), each divided by factor ** (2 / width)."""
    import transformers

    model = load_model(gte, transformers.AutoModel, torch.float32)
    steps = torch.arange(0, 16, 2) / 16
    expected = (20000.0 * 2.0) ** -steps / 2.0 ** (2 / 16)
    torch.testing.assert_close(model.rotary_emb.inv_freq, expected)


def test_the_recipe_names_the_class_that_runs(gte: Path):
    """Such a checkpoint settles into a recipe of transformers' type, with the limit that its own files say."""
    recipe = resolve(locate(str(gte)), task="encode")
    assert (recipe.architecture, recipe.dims, recipe.max_tokens) == ("gte", 32, 64)
    assert {"new", "gte"} <= WITHOUT_CODE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("position_embedding_type", "absolute"),
        ("logn_attention_scale", True),
        ("layer_norm_type", "rms_norm"),
        ("pack_qkv", False),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("rope_scaling", {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}),
    ],
)
def test_what_only_the_authors_code_can_do_is_refused(gte: Path, field: str, value: object):
    """A setting that transformers' class does not have is refused, by its name, before weights are read."""
    change(gte, **{field: value})
    name = (
        list(value)[-1]
        if isinstance(value, dict) and "mixed_b" in value
        else "type"
        if isinstance(value, dict)
        else field
    )
    with pytest.raises(ModelError, match=rf"config\.json: {name} is .*only the checkpoint's own code"):
        resolve(locate(str(gte)), task="encode")


def test_a_mixture_of_experts_is_refused(tmp_path: Path):
    """nomic_bert of transformers has no experts: the published model that has is refused, and told why."""
    folder = families.publish(models.tiny_encoder(tmp_path / "nomic", "nomic_bert"))
    recipe = resolve(locate(str(folder)), task="encode")
    assert recipe.architecture == "nomic_bert"
    assert recipe.architecture in WITHOUT_CODE
    change(folder, num_experts=8)
    with pytest.raises(ModelError, match="a mixture of 8 experts; transformers' nomic_bert has none"):
        resolve(locate(str(folder)), task="encode")


@pytest.fixture(scope="module")
def jina(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jina")
    prompts = {"retrieval.query": "A query: ", "retrieval.passage": "A passage: ", "text-matching": ""}
    for name in ("model", "native"):
        models.tiny_encoder(folder / name, "jina_embeddings_v3", prompts=prompts)
    return families.publish_tasks(folder / "model", folder / "native", "retrieval.query")


@pytest.mark.parametrize(
    ("prompt", "adapter", "text"),
    [
        ("document", "retrieval.passage", "A passage: "),
        ("query", "retrieval.query", "A query: "),
        ("text-matching", "text-matching", ""),
        ("none", "", ""),
    ],
)
def test_the_prompt_chooses_the_adapter(jina: Path, prompt: str, adapter: str, text: str):
    """Of the adapters inside jina-embeddings-v3 the prompt's name chooses one, which the recipe then holds."""
    recipe = resolve(locate(str(jina)), task="encode", prompt=prompt)
    assert (recipe.architecture, recipe.task_adapter, recipe.prompt) == ("jina_embeddings_v3", adapter, text)
    assert ("task_adapter" in recipe.to_dict()) == bool(adapter)
    assert recipe.architecture in WITHOUT_CODE


def test_adapters_differ_and_equal_the_merged_weights(jina: Path):
    """With the query's adapter the vectors are those of the class with that adapter merged in; others give other vectors."""
    import numpy as np
    import pyarrow as pa
    from sentence_transformers import SentenceTransformer

    from lading.adapters import load

    texts = pa.array(["a lading", "a bill of lading lists what was put aboard"])
    found = {}
    for prompt in ("query", "document", "none"):
        adapter = load(resolve(locate(str(jina)), task="encode", prompt=prompt), jina, device="cpu")
        prepared = adapter.prepare([texts])
        found[prompt] = np.stack(adapter.run([(prepared, np.arange(2))]).batch.column(0).to_numpy(zero_copy_only=False))
    reference = SentenceTransformer(str(jina.parent / "native"), device="cpu")
    expected = reference.encode(texts.to_pylist(), prompt_name="retrieval.query")
    assert np.abs(found["query"] - expected).max() < 1e-5
    assert np.abs(found["document"] - expected).max() > 1e-2
    assert np.abs(found["none"] - expected).max() > 1e-2


def test_a_task_without_an_adapter_is_refused(jina: Path, tmp_path: Path):
    """A prompt that no adapter goes with is refused, and those that there are named."""
    import shutil

    folder = shutil.copytree(jina, tmp_path / "model")
    change(folder, lora_adaptations=["retrieval.query"])
    with pytest.raises(ModelError, match=r"no adapter for the prompt 'document'; did you mean 'retrieval\.query'"):
        resolve(locate(str(folder)), task="encode")


def test_code_for_the_tokenizer_is_still_refused(gte: Path):
    """A tokenizer that needs code of its own has no other form."""
    change(gte, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokens.Mine", None]})
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: has `auto_map`"):
        resolve(locate(str(gte)), task="encode")


@pytest.mark.parametrize("architecture", ["gemma3_text", "t5"])
def test_float16_is_refused_where_it_overflows(tmp_path: Path, architecture: str):
    """Gemma and T5 asked for float16 are refused with the precisions to use instead, which do run."""
    folder = models.tiny_encoder(tmp_path / "model", architecture)
    with pytest.raises(ModelError, match=f"a {architecture} model overflows in float16; use bfloat16 or float32"):
        resolve(locate(str(folder)), task="encode", precision="float16")
    assert resolve(locate(str(folder)), task="encode", precision="bfloat16").precision == "bfloat16"


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path):
    """A tokenizer with more tokens than the model has rows is refused at load, not when a text first has one."""
    from lading.adapters import load

    folder = models.tiny_encoder(tmp_path / "model", "bert")
    other = models.tiny_encoder(tmp_path / "other", "roberta")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["more"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"tokenizer\.json has tokens up to number .*, and the model \d+ of them"):
        load(resolve(locate(str(folder)), task="encode"), folder, device="cpu")
