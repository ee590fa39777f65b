"""Finding a checkpoint and reading its recipe: from JSON alone, as the reference library reads it, or a refusal that helps."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lading.config.checkpoint import Checkpoint, locate, resolve
from lading.config.content import content_hash, read_json_value
from lading.config.errors import ModelError
from lading.config.recipe import Recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Edit = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def update(path: Path, **keys: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    found = json.loads(path.read_text()) if path.exists() else {}
    write(path, {key: value for key, value in {**found, **keys}.items() if value is not None})


def plain_model(folder: Path, **config: Any) -> Path:
    """A transformers folder without modules.json; enough files for a recipe, not for a forward."""
    known = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 384, "max_position_embeddings": 512}
    write(folder / "config.json", {**known, **config})
    write(folder / "tokenizer.json", {})
    write(folder / "tokenizer_config.json", {"model_max_length": 512})
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


def sentence_model(folder: Path, *tail: str, **config: Any) -> Path:
    """A sentence-transformers folder: Transformer, Pooling and the module types of `tail`."""
    plain_model(folder, **config)
    types = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    types += [name if "." in name else f"sentence_transformers.models.{name}" for name in tail]
    paths = ["", *(f"{n + 1}_{kind.rpartition('.')[2]}" for n, kind in enumerate(types[1:]))]
    write(
        folder / "modules.json",
        [{"idx": n, "name": str(n), "path": p, "type": t} for n, (p, t) in enumerate(zip(paths, types, strict=True))],
    )
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True})
    return folder


def dense(folder: Path, number: int, takes: int, gives: int, **keys: Any) -> None:
    write(folder / f"{number}_Dense/config.json", {"in_features": takes, "out_features": gives, **keys})
    save_file({"linear.weight": np.zeros((gives, takes), np.float32)}, folder / f"{number}_Dense/model.safetensors")


def recipe(folder: Path, task: str = "encode", **wishes: Any) -> Recipe:
    return resolve(locate(str(folder)), task=task, **wishes)


# -- as the reference library reads it


@pytest.fixture(scope="session")
def saved_again(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """MiniLM as the installed sentence-transformers saves it, with prompts and a default one, and that model."""
    library = pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("saved") / "model"
    prompts = {"query": "find: ", "passage": "text: "}
    model = library.SentenceTransformer(str(minilm), device="cpu", prompts=prompts, default_prompt_name="query")
    model.save(str(folder))
    return folder, model


def test_minilm_as_published_and_as_saved_today(minilm: Path, saved_again: tuple[Path, Any]):
    """The files of 2021 and those of the installed sentence-transformers give the reading that library has of them."""
    folder, model = saved_again
    for found in (recipe(minilm), recipe(folder, prompt="none")):
        assert found.max_tokens == model.max_seq_length == 256
        assert found.dims == model.get_embedding_dimension() == 384
        assert found.pooling == model[1].pooling_mode == "mean"
        assert (found.normalize, found.include_prompt, found.prompt, found.lower_case) == (True, True, "", False)
        assert (found.architecture, found.modules, found.precision, found.vector_type) == (
            "bert",
            (),
            "float32",
            "float32",
        )
    assert recipe(folder, prompt="query").prompt == model.prompts["query"]


@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_old_and_new_pooling_files_mean_the_same(tmp_path: Path, pooling: str):
    """Each mode reads alike from the one key of today and from the flags before it, as the library converts them."""
    library = pytest.importorskip("sentence_transformers.sentence_transformer.modules.pooling")
    flag = next(flag for flag, mode in library._LEGACY_POOLING_MODE_KWARGS.items() if mode == pooling)
    old, new = sentence_model(tmp_path / "old"), sentence_model(tmp_path / "new")
    write(
        old / "1_Pooling/config.json", {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": False, flag: True}
    )
    write(new / "1_Pooling/config.json", {"embedding_dimension": 384, "pooling_mode": pooling, "include_prompt": False})
    assert recipe(old).pooling == recipe(new).pooling != ""
    assert (recipe(old).include_prompt, recipe(new).include_prompt) == (True, False)


def test_without_modules_json_it_is_mean_pooling_unnormalised(tmp_path: Path):
    """A plain transformers folder is read as sentence-transformers reads it: mean of the tokens, nothing after."""
    found = recipe(plain_model(tmp_path / "m"))
    assert (found.pooling, found.normalize, found.dims, found.max_tokens) == ("mean", False, 384, 512)


@pytest.mark.parametrize(
    ("model_type", "positions", "sentence", "tokenizer", "expected"),
    [
        ("bert", 512, 256, 512, 256),
        ("bert", 512, None, 384, 384),
        ("bert", 512, None, 10**30, 512),
        ("bert", 512, 4096, None, 512),
        ("bert", 512, None, None, 512),
        ("roberta", 514, 514, 512, 512),
        ("xlm-roberta", 8194, None, 8192, 8192),
        ("mpnet", 514, 384, 512, 384),
        ("mpnet", 514, None, None, 512),
        ("t5", None, 256, 512, 256),
        ("xlnet", -1, None, 512, 512),
    ],
)
def test_max_tokens(
    tmp_path: Path, model_type: str, positions: int | None, sentence: int | None, tokenizer: int | None, expected: int
):
    """max_seq_length, else the tokenizer's limit, never above the usable positions (RoBERTa's kin lose pad_token_id + 1)."""
    folder = plain_model(tmp_path / "m", model_type=model_type, pad_token_id=1)
    update(folder / "config.json", max_position_embeddings=positions)
    update(folder / "sentence_bert_config.json", max_seq_length=sentence)
    update(folder / "tokenizer_config.json", model_max_length=tokenizer)
    assert recipe(folder).max_tokens == expected


def test_dense_modules_decide_the_dims(tmp_path: Path):
    """Projections are taken in order, each must take what the one before gives, and the last one says the dims."""
    folder = sentence_model(tmp_path / "m", "Dense", "Dense", "Normalize")
    dense(folder, 2, 384, 3072)
    dense(folder, 3, 3072, 128, activation_function="torch.nn.modules.linear.Identity")
    found = recipe(folder)
    assert (found.dims, found.modules, found.normalize) == (128, ("2_Dense", "3_Dense"), True)
    assert recipe(folder, dims=64).dims == 64


@pytest.mark.parametrize(
    ("prompts", "default", "wish", "expected"),
    [
        ({"query": "q: ", "passage": "p: "}, None, "document", "p: "),
        ({"query": "q: ", "passage": "p: "}, None, "query", "q: "),
        ({"corpus": "c: ", "document": "d: ", "passage": "p: "}, None, "document", "d: "),
        ({"document": "", "s2p": "x: "}, "s2p", "document", ""),
        ({"s2p": "x: "}, "s2p", "document", "x: "),
        ({"s2p": "x: "}, "s2p", "none", ""),
        ({"s2p": "x: "}, None, "s2p", "x: "),
        ({"s2p": "x: "}, None, "query", ""),
        ({"query": None}, None, "query", ""),
    ],
)
def test_prompts(tmp_path: Path, prompts: dict[str, str | None], default: str | None, wish: str, expected: str):
    """Documents and queries get the checkpoint's prompt for them, else its default; a name gets exactly that prompt."""
    folder = plain_model(tmp_path / "m")
    update(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=default)
    assert recipe(folder, prompt=wish).prompt == expected
    assert recipe(folder, prompt_text="mine: ").prompt == "mine: "
    assert locate(str(folder)).prompts == {name: text for name, text in prompts.items() if text}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Instruct: {task}\nQuery: ", "Instruct: find \\1 {cats}\nQuery: "),
        ("Instruct: Given a web search query,\nretrieve passages\nQuery:", "Instruct: find \\1 {cats}\nQuery:"),
        ("task: search result | query: ", "task: find \\1 {cats} | query: "),
        ("<{instruction}> {instruction}: ", "<find \\1 {cats}> find \\1 {cats}: "),
        ("query: ", None),
        ("", None),
    ],
)
def test_an_instruction_fills_the_place_that_the_prompt_has_for_it(tmp_path: Path, prompt: str, expected: str | None):
    """The words go into the recipe's prompt, whatever they are made of; a prompt without a place is an error that says so."""
    folder, words = plain_model(tmp_path / "m"), "find \\1 {cats}"
    update(folder / "config_sentence_transformers.json", prompts={"query": prompt})
    for wish in ({"prompt": "query"}, *([{"prompt_text": prompt}] if prompt else [])):
        if expected is None:
            with pytest.raises(ModelError, match=r"no place for an instruction.*prompt_text with \{instruction\}"):
                recipe(folder, instruction=words, **wish)
            assert recipe(folder, **wish).prompt == prompt
            continue
        found = recipe(folder, instruction=words, **wish)
        assert found.prompt == expected
        if "{" in prompt:
            with pytest.raises(ModelError, match="has a slot and needs an instruction"):
                recipe(folder, **wish)
        else:
            assert recipe(folder, **wish).prompt == prompt


def test_what_an_instruction_is_hashed_as(tmp_path: Path):
    """Recipes are equal where their prompts are, however those came about."""
    folder = plain_model(tmp_path / "m")
    prompts = {"query": "Instruct: find cats\nQuery: ", "other": "Instruct: {task}\nQuery: "}
    update(folder / "config_sentence_transformers.json", prompts=prompts)
    own = recipe(folder, prompt="query")
    assert own.hash == recipe(folder, prompt="query", instruction="find cats").hash
    assert own.hash == recipe(folder, prompt="other", instruction="find cats").hash
    assert own.hash != recipe(folder, prompt="query", instruction="find dogs").hash


def test_a_reranker_without_a_place_for_an_instruction_refuses_one(tiny_cross_encoder: Path):
    """What would change nothing is not taken."""
    with pytest.raises(ModelError, match="takes no instruction"):
        recipe(tiny_cross_encoder, "score", instruction="find cats")


@pytest.mark.parametrize(
    ("nested", "own", "wish", "expected"),
    [
        (None, None, "", "sigmoid"),
        ("torch.nn.modules.linear.Identity", None, "", "identity"),
        ("torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid", "", "sigmoid"),
        (None, "torch.nn.modules.linear.Identity", "sigmoid", "sigmoid"),
    ],
)
def test_activation_of_a_reranker(tmp_path: Path, nested: str | None, own: str | None, wish: str, expected: str):
    """The wish, else config_sentence_transformers.json, else config.json, else sigmoid."""
    folder = plain_model(tmp_path / "m", architectures=["BertForSequenceClassification"], id2label={"0": "LABEL_0"})
    if nested:
        update(folder / "config.json", sentence_transformers={"activation_fn": nested})
    if own:
        update(folder / "config_sentence_transformers.json", activation_fn=own)
    found = recipe(folder, "score", activation=wish)
    assert (found.activation, found.dims, found.pooling, found.max_tokens) == (expected, 0, "", 512)


def test_tiny_models_of_the_other_verbs(tiny_cross_encoder: Path, tiny_token_classifier: Path):
    """A cross-encoder and a token classifier as transformers saves them give the activation, and the labels in class order."""
    assert recipe(tiny_cross_encoder, "score").activation == "sigmoid"
    found = recipe(tiny_token_classifier, "extract")
    assert (found.labels, found.aggregation) == (("O", "B-PER", "I-PER", "B-ORG", "I-ORG"), "simple")


# -- refusals


def remove(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def setting(name: str, **keys: Any) -> Edit:
    return lambda folder: update(folder / name, **keys)


def bin_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    write(
        folder / "model.safetensors.index.json",
        {"weight_map": {f"x{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}},
    )


def escaping(folder: Path) -> None:
    remove("model.safetensors")(folder)
    write(folder / "model.safetensors.index.json", {"weight_map": {"x": "../model.safetensors"}})


UNFIT: dict[str, tuple[Edit, str, dict[str, Any]]] = {
    "no tokenizer": (
        remove("tokenizer.json"),
        "no tokenizer.json; make it from the older tokenizer files with: python -c",
        {},
    ),
    "no config": (remove("config.json"), "no config.json: not a model folder", {}),
    "no weights": (remove("model.safetensors"), "no weights (model.safetensors, or", {}),
    "bin only": (bin_only, "weights only as pytorch_model.bin; Lading opens safetensors only", {}),
    "missing shard": (sharded, "lists model-00002-of-00002.safetensors, which is not there", {}),
    "shard elsewhere": (escaping, "no usable `weight_map`", {}),
    "remote code": (setting("config.json", auto_map={"AutoModel": "x.Y"}), "config.json: has `auto_map`", {}),
    "remote tokenizer": (
        setting("tokenizer_config.json", auto_map={"AutoTokenizer": "x.Y"}),
        "tokenizer_config.json: has `auto_map`",
        {},
    ),
    "broken json": (
        lambda folder: (folder / "config.json").write_text('{\n"a": '),
        "config.json, line 2: not valid JSON",
        {},
    ),
    "list for object": (
        lambda folder: write(folder / "config.json", []),
        "config.json: expected a JSON object, found list",
        {},
    ),
    "text for number": (
        setting("config.json", max_position_embeddings="512"),
        "max_position_embeddings: expected a whole number",
        {},
    ),
    "no model type": (
        setting("config.json", model_type=None),
        "config.json: model_type: expected text, found None",
        {},
    ),
    "pooling of another size": (
        setting("1_Pooling/config.json", word_embedding_dimension=768),
        "1_Pooling/config.json: takes 768 dimensions, but config.json gives 384",
        {},
    ),
    "two poolings": (
        setting("1_Pooling/config.json", pooling_mode_cls_token=True),
        "joins several poolings (cls, mean)",
        {},
    ),
    "unknown pooling": (setting("1_Pooling/config.json", pooling_mode="lasttokens"), "did you mean 'lasttoken'?", {}),
    "normalised tokens": (
        setting("2_Normalize/config.json", module_input_name="token_embeddings"),
        "module_input_name is 'token_embeddings'",
        {},
    ),
    "unknown setting": (
        setting("sentence_bert_config.json", query_expansion={"length": 32}),
        "sets query_expansion, which Lading does not",
        {},
    ),
    "sparse model": (
        setting("config_sentence_transformers.json", model_type="SparseEncoder"),
        "says SparseEncoder, but its modules give dense output",
        {},
    ),
    "no limit": (
        lambda f: (setting("config.json", max_position_embeddings=None)(f), remove("tokenizer_config.json")(f)),
        "say it with --max-tokens",
        {},
    ),
    "too many tokens": (lambda folder: None, "max_tokens 600 is above the 512 positions", {"max_tokens": 600}),
    "too many dims": (lambda folder: None, "dims 512 is above the 384 dimensions", {"dims": 512}),
    "binary of odd dims": (lambda folder: None, "100 is no multiple of 8", {"dims": 100, "vector_type": "binary"}),
    "unknown prompt": (
        setting("config_sentence_transformers.json", prompts={"search": "s: "}),
        "no prompt 'serach'; did you mean 'search'?",
        {"prompt": "serach"},
    ),
    "default prompt missing": (
        setting("config_sentence_transformers.json", default_prompt_name="x"),
        "default_prompt_name 'x' is none",
        {},
    ),
    "chunk above the model": (
        lambda folder: None,
        "chunk_tokens 600 is above the 512 tokens",
        {"long_text": "chunk", "chunk_tokens": 600},
    ),
    "overlap of a whole chunk": (
        lambda folder: None,
        "chunk_overlap 257 is more than half of a chunk's 512",
        {"long_text": "chunk", "chunk_overlap": 257},
    ),
    "score of an encoder": (
        lambda folder: None,
        "`score` needs a *ForSequenceClassification, and this is BertModel",
        {"task": "score"},
    ),
    "extract of an encoder": (
        lambda folder: None,
        "`extract` needs a *ForTokenClassification, and this is BertModel",
        {"task": "extract"},
    ),
}


@pytest.mark.parametrize(("edit", "message", "wishes"), UNFIT.values(), ids=UNFIT.keys())
def test_unfit_checkpoint_is_refused(tmp_path: Path, edit: Edit, message: str, wishes: dict[str, Any]):
    """What cannot be done right, or not safely, is a ModelError that names the file and the way out."""
    folder = sentence_model(tmp_path / "m", "Normalize")
    recipe(folder)
    edit(folder)
    with pytest.raises(ModelError, match=re.escape(message)) as refused:
        recipe(folder, **wishes)
    assert "m" in str(refused.value)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (["LayerNorm"], "module sentence_transformers.models.LayerNorm is none that Lading knows"),
        (["custom_code.Dense"], "module custom_code.Dense is none that Lading knows"),
        (["Normalize", "Dense"], "in this order"),
        (["Pooling"], "in this order"),
    ],
)
def test_unknown_modules_are_refused_by_name(tmp_path: Path, tail: list[str], message: str):
    """A module that Lading does not have, or in an order it does not run, is never skipped."""
    with pytest.raises(ModelError, match=re.escape(message)):
        recipe(sentence_model(tmp_path / "m", *tail))


def test_dense_without_safe_weights_is_refused(tmp_path: Path):
    """The projection's own weights meet the same rule as the model's, and its sizes must fit."""
    folder = sentence_model(tmp_path / "m", "Dense")
    dense(folder, 2, 384, 64, activation_function="my.Act")
    with pytest.raises(ModelError, match=r"2_Dense/config\.json: activation_function my\.Act; valid: torch"):
        recipe(folder)
    dense(folder, 2, 768, 64)
    with pytest.raises(
        ModelError, match=re.escape("2_Dense/config.json: takes 768 dimensions, but 1_Pooling/config.json gives 384")
    ):
        recipe(folder)
    dense(folder, 2, 384, 64)
    (folder / "2_Dense/model.safetensors").rename(folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(ModelError, match=r"2_Dense: weights only as pytorch_model\.bin"):
        recipe(folder)


def test_models_for_another_verb_are_refused(tmp_path: Path):
    """A reranker does not encode or extract, one with several labels does not score, and class names must be whole."""
    reranker = plain_model(tmp_path / "r", architectures=["BertForSequenceClassification"])
    for task in ("encode", "extract"):
        with pytest.raises(ModelError, match=r"BertForSequenceClassification.* a model for `score`"):
            recipe(reranker, task)
    with pytest.raises(ModelError, match="has 2 labels; a reranker has 1"):
        recipe(reranker, "score")
    update(reranker / "config.json", id2label={"0": "entailment", "1": "neutral", "2": "contradiction"})
    with pytest.raises(ModelError, match=r"has 3 labels \(entailment, neutral, contradiction\); a reranker has 1"):
        recipe(reranker, "score")
    update(reranker / "config.json", id2label={"0": "a"}, sentence_transformers={"activation_fn": "my.Softplus"})
    with pytest.raises(ModelError, match=r"activation_fn my\.Softplus is neither Identity nor Sigmoid"):
        recipe(reranker, "score")
    tagger = plain_model(tmp_path / "t", architectures=["BertForTokenClassification"], id2label={"0": "O", "2": "B"})
    with pytest.raises(ModelError, match="id2label must name every class"):
        recipe(tagger, "extract")


# -- content


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=4), indent=st.none() | st.integers(0, 3))
def test_one_value_of_a_file_is_what_the_whole_has(tmp_path: Path, found: dict[str, Any], indent: int | None):
    """Read alone or with all the rest, a key has the same value; one that is not there has none."""
    path = tmp_path / "some.json"
    path.write_text(json.dumps(found, indent=indent, ensure_ascii=False), encoding="utf-8")
    for key in (*found, "none of them"):
        assert read_json_value(path, key) == found.get(key)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1"),
        ("[1]", "line 1: not valid JSON: Expecting a JSON object"),
        ('{"a": 1,\n"b" 2}', "line 2: not valid JSON: Expecting ':'"),
        ('{"a": 1\n', "line 1"),
        ('{"a":\n\n', "line 3"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_file_that_is_no_object_is_said_with_its_line(tmp_path: Path, text: str, said: str):
    """Also where only one of its values is read."""
    path = tmp_path / "some.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=rf"some\.json.*{said}"):
        read_json_value(path, "z")


def test_content_counts_and_the_place_does_not(tmp_path: Path):
    """A copy has the same hash; every file that can change a result changes it; a README does not."""
    folder = sentence_model(tmp_path / "a", "Dense")
    dense(folder, 2, 384, 64)
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b/README.md").write_text("hello")
    (tmp_path / "b/pytorch_model.bin").write_bytes(b"x")
    modules = ["1_Pooling", "2_Dense"]
    first = content_hash(folder, modules)
    assert content_hash(tmp_path / "b", modules) == first
    assert recipe(tmp_path / "b").hash == recipe(folder).hash
    seen = {first}
    for name in sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()):
        shutil.rmtree(tmp_path / "b")
        shutil.copytree(folder, tmp_path / "b")
        with open(tmp_path / "b" / name, "ab") as file:
            file.write(b" ")
        seen.add(content_hash(tmp_path / "b", modules))
    assert len(seen) == 1 + 8


def test_hashes_of_large_files_are_remembered_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A large file is read once; a replacement of equal size and age is read again; a broken or unwritable cache costs time only."""
    folder = plain_model(tmp_path / "m")
    save_file({"x": np.zeros(1 << 19, np.float32)}, folder / "model.safetensors")
    first = content_hash(folder, [])
    cache = tmp_path / "cache/file-hashes.json"
    (key,) = json.loads(cache.read_text())["files"]
    assert "model.safetensors" in key
    update(cache, files={key: "f" * 64})
    assert content_hash(folder, []) != first, "the cache is not used at all"
    for broken in ("", "[]", '{"files": []}', '{"files": {"a": 3}}', "\xff"):
        cache.write_text(broken)
        assert content_hash(folder, []) == first
    save_file({"x": np.ones(1 << 19, np.float32)}, tmp_path / "new.safetensors")
    shutil.copystat(folder / "model.safetensors", tmp_path / "new.safetensors")
    (tmp_path / "new.safetensors").replace(folder / "model.safetensors")
    second = content_hash(folder, [])
    assert second != first
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LADING_CACHE_DIR", str(tmp_path / "file/below"))
    assert content_hash(folder, []) == second


# -- where it is


def in_hub_cache(cache: Path, name: str, **config: Any) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = plain_model(repository / "snapshots" / COMMIT, **config)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    return folder


def test_a_folder_comes_first_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An existing folder wins over the hub's cache, relative ones too, and has no revision."""
    in_hub_cache(tmp_path / "hub", "models/minilm")
    plain_model(tmp_path / "models/minilm")
    monkeypatch.chdir(tmp_path)
    found = locate("models/minilm")
    assert found == Checkpoint(tmp_path / "models/minilm", "folder", "models/minilm", "")
    assert found.describe() == f"folder {tmp_path}/models/minilm"
    with pytest.raises(ModelError, match="models/minilm is a folder, and only a name on the hub has revisions"):
        locate("models/minilm", "main")
    with pytest.raises(ModelError, match=r"config\.json is a file; name the folder"):
        locate("models/minilm/config.json")


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_the_hub_cache_comes_next_and_is_said(tmp_path: Path, revision: str):
    """A whole snapshot in the hub's cache is used without asking the hub, by branch or by commit."""
    folder = in_hub_cache(tmp_path / "hub", "owner/minilm")
    found = locate("owner/minilm", revision)
    assert found == Checkpoint(folder, "hub cache", "owner/minilm", COMMIT)
    assert found.describe() == f"owner/minilm at {COMMIT[:12]} (hub cache: {folder})"
    assert resolve(found, task="encode").hash == recipe(plain_model(tmp_path / "copy")).hash


def test_a_table_in_the_hub_cache_is_whole_without_a_config(tmp_path: Path):
    """A static model has no config.json: its snapshot is whole with its table and its tokenizer."""
    folder = in_hub_cache(tmp_path / "hub", "owner/static")
    (folder / "config.json").unlink()
    kinds = [{"type": "sentence_transformers.models.StaticEmbedding", "path": "."}]
    (folder / "modules.json").write_text(json.dumps(kinds))
    assert locate("owner/static").origin == "hub cache"
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="only parts of it are in the hub's cache"):
        locate("owner/static", offline=True)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/c", "HF_HOME": "/b"}, "/c"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/d"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(variables: dict[str, str], folder: str):
    """Both agree on the folder, whichever variable says it."""
    names = "import lading.config.hub as ours, huggingface_hub.constants as theirs"
    script = f"{names}; print(ours.cache_folder(), theirs.HF_HUB_CACHE)"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"HOME": "/h", **variables}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [folder, folder]


def test_an_unknown_model_says_where_it_was_looked_for(tmp_path: Path):
    """The message names the folder, the cache and why the hub did not help, and the nearest name there is."""
    in_hub_cache(tmp_path / "hub", "sentence-transformers/all-MiniLM-L6-v2")
    looked = f"not a folder here, not in the hub's cache ({tmp_path}/hub), and the hub was not asked (offline)"
    with pytest.raises(
        ModelError, match=re.escape(f"{looked}; did you mean 'sentence-transformers/all-MiniLM-L6-v2'?")
    ):
        locate("all-MiniLM-L6-v2", offline=True)
    with pytest.raises(ModelError, match=re.escape("at revision 'v9': not a folder here")):
        locate("sentence-transformers/all-MiniLM-L6-v2", "v9", offline=True)
    (tmp_path / "hub/models--sentence-transformers--all-MiniLM-L6-v2/snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="only parts of it are in the hub's cache"):
        locate("sentence-transformers/all-MiniLM-L6-v2", offline=True)


def test_a_path_that_is_not_there_names_its_neighbours(tmp_path: Path):
    """What can only be a path is never asked of the hub; the nearest folder is named."""
    (tmp_path / "minilm").mkdir()
    with pytest.raises(
        ModelError, match=re.escape(f"no model {tmp_path}/minlm: no such folder; did you mean 'minilm'?")
    ):
        locate(f"{tmp_path}/minlm")
    with pytest.raises(ModelError, match=re.escape(f"there is no folder {tmp_path}/x")):
        locate(f"{tmp_path}/x/y")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """Address of a small hub over HTTP: owner/minilm with one commit, everything else unknown."""
    folder = sentence_model(tmp_path / "remote", "Normalize")
    (folder / "pytorch_model.bin").write_bytes(b"unwanted")
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    tree = [
        {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40} for name, file in files.items()
    ]
    answers = {f"/api/models/owner/minilm/tree/{COMMIT}": tree}
    for revision in ("", "/revision/main"):
        answers[f"/api/models/owner/minilm{revision}"] = {
            "id": "owner/minilm",
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name in files],
        }

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            file = files.get(path.removeprefix(f"/owner/minilm/resolve/{COMMIT}/"))
            body = (
                file.read_bytes() if file else json.dumps(answers.get(path, {"error": "Repository not found"})).encode()
            )
            self.send_response(200 if file or path in answers else 404)
            if not file and path not in answers:
                self.send_header(
                    "X-Error-Code", "RevisionNotFound" if "/revision/" in path and "minilm" in path else "RepoNotFound"
                )
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(hub: str, *names: tuple[str, str]) -> list[str]:
    """What locate says of each (name, revision), in a process of its own: huggingface-hub reads its address once."""
    script = (
        "import sys, json\n"
        "from lading.config.checkpoint import locate\n"
        "for name, revision in json.loads(sys.argv[1]):\n"
        "    try: print(locate(name, revision).describe())\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    environ = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(names)], env=environ, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_the_hub_comes_last_and_is_said(tmp_path: Path, hub: str):
    """A name the cache lacks is fetched, its unsafe files left behind, and found in the cache the next time."""
    folder = tmp_path / "hub/models--owner--minilm/snapshots" / COMMIT
    lines = ask(hub, ("owner/minilm", ""), ("owner/minilm", ""), ("owner/minilm", "v9"), ("owner/minlm", ""))
    assert lines[0] == f"owner/minilm at {COMMIT[:12]} (hub: {folder})"
    assert lines[1] == f"owner/minilm at {COMMIT[:12]} (hub cache: {folder})"
    assert "ModelError no model owner/minilm at revision 'v9'" in lines[2]
    assert "the hub has the model, but no revision 'v9'" in lines[2]
    assert "the hub has no such model (or it is private: set HF_TOKEN); did you mean 'owner/minilm'?" in lines[3]
    assert not (folder / "pytorch_model.bin").exists()
    assert recipe(folder).hash == recipe(tmp_path / "remote").hash


def test_a_hub_that_does_not_answer_is_said():
    """No network is an error of two sentences, never a traceback."""
    (line,) = ask("http://127.0.0.1:9", ("owner/minilm", ""))
    assert line.startswith("HubAway no model owner/minilm: not a folder here, not in the hub's cache")
    assert "the hub could not be reached" in line


def test_resolving_needs_no_torch(minilm: Path):
    """A producer without torch, transformers or huggingface-hub resolves a recipe."""
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'huggingface_hub', 'safetensors'): sys.modules[name] = None\n"
        "from lading.config.checkpoint import locate, resolve\n"
        f"print(resolve(locate({str(minilm)!r}), task='encode').dims)\n"
        "try: locate('owner/none')\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("384\n")
    assert "without the package huggingface-hub" in done.stdout
