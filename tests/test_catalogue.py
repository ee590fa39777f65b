"""The catalogue: its entries are whole and graded as tested, a user's file goes over it, and it fills what a checkpoint leaves open."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lading.config import catalogue
from lading.config.catalogue import TESTED, VERIFIED, Entry
from lading.config.checkpoint import Checkpoint, locate, resolve, resolve_with_origins
from lading.config.errors import ModelError, UsageError
from lading.config.hub import cache_folder
from lading.config.natives import WITHOUT_CODE
from lading.config.weights import parameters
from lading.schedulers.bodies import RequestOptions
from lading.workers.models import RequestedModels
from lading.workers.residency import Residency
from lading.workers.residents import Residents
from tests import models, models_outputs
from tests.test_checkpoint import dense, plain_model, sentence_model, update

PACKAGED = catalogue.load({})
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ALL = pytest.mark.parametrize("entry", PACKAGED.values(), ids=lambda entry: entry.name)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def own(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch | None = None) -> dict[str, Entry]:
    """The catalogue with this models.yaml, for the whole test where it is given the monkeypatch."""
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config/models.yaml").write_text(text)
    if monkeypatch is not None:
        monkeypatch.setenv("LADING_CONFIG_DIR", str(tmp_path / "config"))
    return catalogue.load({"LADING_CONFIG_DIR": str(tmp_path / "config")})


def named(folder: Path, name: str) -> Checkpoint:
    """The folder's files as the hub's cache has them under a name."""
    repository = cache_folder() / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    return locate(name, offline=True)


# -- the entries


def test_there_are_enough():
    """The models that people use: at least 85, with some for every task that this release runs."""
    assert len(PACKAGED) >= 85
    runs = [one for one in PACKAGED.values() if one.runs]
    assert {one.task for one in runs} == {"encode", "score", "extract"}
    assert {output for one in runs for output in one.outputs} == {
        "dense",
        "sparse",
        "multi_vector",
        "score",
        "entities",
    }


@ALL
def test_entries_make_sense(entry: Entry):
    """Facts go together: sizes where they belong, prompts whose slots can be filled, sources for facts that are there."""
    encodes = entry.task == "encode"
    assert bool(entry.dims) == encodes
    assert all(0 < length < entry.dims for length in entry.matryoshka)
    assert list(entry.matryoshka) == sorted(set(entry.matryoshka))
    assert encodes or not (entry.pooling or entry.prompts or entry.normalize is not None)
    assert bool(entry.input) == (entry.task == "score") or not entry.runs
    assert entry.task == "score" or not entry.activation
    assert "dense" in entry.outputs or not entry.prompts  # markers of multi-vector models are the checkpoint's
    assert not any("{" in text for text in entry.texts.values())
    assert bool(entry.instruction) == ("{instruction}" in f"{entry.prompts}{entry.template}")
    facts = entry.to_dict()
    assert set(entry.sources) <= facts.keys()
    assert entry.source in catalogue.SOURCES[:-1]


def test_the_real_model_is_as_its_entry_says(minilm: Path):
    """The one entry that can be held to its files here agrees with every one of them."""
    entry = catalogue.find("sentence-transformers/all-MiniLM-L6-v2")
    assert entry is not None
    found = resolve(locate(str(minilm)), task="encode")
    assert (entry.architecture, entry.pooling, entry.normalize, entry.max_tokens, entry.dims) == (
        found.architecture,
        found.pooling,
        found.normalize,
        found.max_tokens,
        found.dims,
    )
    assert abs(parameters(minilm) - entry.parameters) <= 512  # a table of position numbers is no parameter


# -- the grades


HEADS = {
    "SPLADE",
    "late interaction",
    "reranker",
}  # of the contract's cases that have another output than their task's first


def parametrized(module: str, test: str, argument: str) -> set[str]:
    """The values that a test is run for."""
    for mark in getattr(importlib.import_module(module), test).pytestmark:
        if mark.name != "parametrize":
            continue
        if mark.args[0] == argument:
            return set(mark.args[1])
        if argument in mark.args[0]:
            return {values[mark.args[0].index(argument)] for values in mark.args[1]}
    raise AssertionError(f"{test} has no {argument}")


def test_tested_is_what_the_tests_compare():
    """An architecture counts as tested exactly where a test compares it with the reference library."""
    cases = importlib.import_module("tests.adapters.test_contract").CASES
    late = importlib.import_module("tests.adapters.test_multi_vector").FOLDERS
    score, extract = "tests.adapters.test_score", "tests.adapters.test_extract"
    sparse = parametrized("tests.adapters.test_sparse", "test_weights_are_those_of_the_reference", "architecture")

    rerankers = set(importlib.import_module("tests.adapters.test_rerank").NAMES)

    def of(task: str, *heads: str) -> set[str]:
        """Architectures of the cases with no other head than these."""
        found = {tuple(one.name.split(", ")) for one in cases if one.task == task}
        plain = {name[0] for name in found if not set(name[1:]) & HEADS or set(name[1:]) & set(heads)}
        return {name.split(" ")[0].replace("-embeddings-", "_embeddings_") for name in plain}

    compared = {
        "dense": of("encode") | {"static"},  # test_static.py
        "sparse": sparse | {"xlm-roberta"},  # BGE-M3
        "multi_vector": {architecture or "bert" for _, architecture in late.values()} | {"xlm-roberta"},
        "score": of("score", "reranker")
        | rerankers
        | parametrized(score, "test_scores_are_those_of_the_reference", "architecture"),
        "entities": parametrized(extract, "test_entities_are_those_of_the_pipeline", "architecture"),
    }
    assert compared == TESTED


def test_verified_is_what_the_tests_have():
    """Only the model whose weights the tests have is graded verified (test_cli_models.py compares it)."""
    assert {key for key, one in PACKAGED.items() if one.grade == "verified"} == VERIFIED
    assert {"sentence-transformers/all-minilm-l6-v2"} == VERIFIED


@ALL
def test_grades_are_earned(entry: Entry):
    """What is not run, or refused for its code, is facts only; the rest goes by architecture and outputs."""
    tested = all(entry.architecture in TESTED.get(output, ()) for output in entry.outputs)
    refused = entry.remote_code and entry.architecture not in WITHOUT_CODE
    earned = "architecture verified" if tested and entry.runs and not refused else "facts only"
    assert entry.grade == ("verified" if entry.name.lower() in VERIFIED else earned)


@pytest.mark.parametrize(
    ("name", "grade"),
    [
        ("Alibaba-NLP/gte-base-en-v1.5", "architecture verified"),
        ("nomic-ai/nomic-embed-text-v1.5", "architecture verified"),
        ("jinaai/jina-embeddings-v3", "architecture verified"),
        ("Alibaba-NLP/gte-multilingual-reranker-base", "architecture verified"),
        ("Alibaba-NLP/gte-multilingual-base", "facts only"),  # its sparse weights are not computed
        ("nomic-ai/nomic-embed-text-v2-moe", "facts only"),
        ("jinaai/jina-reranker-v2-base-multilingual", "facts only"),
    ],
)
def test_code_that_is_not_needed_costs_no_grade(name: str, grade: str):
    """Models that are read without the code that they name are graded as others are; those that need it are facts only."""
    assert PACKAGED[name.lower()].grade == grade


# -- a user's own file


def test_an_own_file_adds_and_overrides_key_by_key(tmp_path: Path):
    """A new model is added, of a known one only what is said changes, and it is known who said it."""
    text = """
mine/model: {task: encode, outputs: [dense], architecture: bert, licence: mit, dims: 384}
baai/bge-SMALL-en-v1.5: {prompts: {query: "find: "}}
sentence-transformers/all-MiniLM-L6-v2: {max_tokens: 512}
"""
    found = own(tmp_path, text)
    assert len(found) == len(PACKAGED) + 1
    mine, bge = found["mine/model"], found["baai/bge-small-en-v1.5"]
    assert (mine.source, mine.grade) == ("own", "architecture verified")
    assert (bge.prompts, bge.pooling, bge.dims) == ({"query": "find: "}, "cls", 384)
    assert bge.origin("prompts") == f"catalogue ({tmp_path}/config/models.yaml: own)"
    assert bge.origin("pooling") == "catalogue (models_dense.yaml: notes)"
    assert found["sentence-transformers/all-minilm-l6-v2"].grade == "architecture verified"  # not as it was verified
    assert PACKAGED["baai/bge-small-en-v1.5"].prompts != bge.prompts


GOOD = "task: encode, outputs: [dense], architecture: bert, licence: mit"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/b: [", "models.yaml, line 1: not valid YAML"),
        ("- a", "models.yaml: expected keys and values at the top"),
        (f"model: {{{GOOD}}}", "models.yaml: model: expected a name on the hub, like owner/model"),
        ("a/b: bert", "models.yaml: a/b: expected the keys of a model, found 'bert'"),
        ("a/b: {task: encode}", "models.yaml: a/b.outputs: is missing"),
        (f"a/b: {{{GOOD}, poling: cls}}", "a/b.poling: unknown key; did you mean 'pooling'?"),
        (f"a/b: {{{GOOD}, grade: verified}}", "a/b.grade: unknown key"),
        (f"a/b: {{{GOOD}, pooling: clss}}", "a/b.pooling: 'clss' is none; did you mean 'cls'?"),
        (f"a/b: {{{GOOD}, dims: 384.0}}", "a/b.dims: expected a whole number from 1, found 384.0"),
        (f"a/b: {{{GOOD}, dims: true}}", "a/b.dims: expected a whole number from 1, found True"),
        (f"a/b: {{{GOOD}, normalize: 1}}", "a/b.normalize: expected true or false, found 1"),
        (f"a/b: {{{GOOD}, matryoshka: 64}}", "a/b.matryoshka: expected a list of whole numbers, found 64"),
        (f"a/b: {{{GOOD}, prompts: 'query: '}}", "a/b.prompts: expected names with texts, found 'query: '"),
        (f"a/b: {{{GOOD}, sources: {{dim: card}}}}", "a/b.sources.dim: unknown key; did you mean 'dims'?"),
        (f"a/b: {{{GOOD}, sources: {{dims: cards}}}}", "a/b.sources.dims: 'cards' is no source; did you mean 'card'?"),
        (f"a/b: {{{GOOD}, source: blog}}", "a/b.source: 'blog' is none; valid: "),
        (f"a/b: {{{GOOD}, notes: ''}}", "a/b.notes: expected text, found ''"),
        ("a/b: {task: embed}", "a/b.task: 'embed' is none"),
        (f"a/b: {{{GOOD}}}\na/b: {{{GOOD}}}", "models.yaml, line 2: not valid YAML: the key 'a/b' is there twice"),
    ],
)
def test_a_wrong_file_names_file_model_and_key(tmp_path: Path, text: str, message: str):
    """Every complaint says where it is and what would have been right."""
    with pytest.raises(UsageError, match=re.escape(message)):
        own(tmp_path, text)


def test_the_file_may_be_alone_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither settings.yaml nor pools.yaml must be there, and a misspelt name is noticed."""
    own(tmp_path, "")
    (tmp_path / "config/model.yaml").write_text("")
    with pytest.raises(UsageError, match=re.escape("not a file Lading reads; did you mean 'models.yaml'?")):
        catalogue.load({"LADING_CONFIG_DIR": str(tmp_path / "config")})


# -- what it does to recipes


def test_a_folder_never_asks_the_catalogue_by_itself(tmp_path: Path):
    """What a folder is called, or says it is, changes nothing; only `known_as` does, and then it fills what the files leave open."""
    folder = plain_model(tmp_path / "BAAI/bge-small-en-v1.5", _name_or_path="BAAI/bge-small-en-v1.5")
    found, origins = resolve_with_origins(locate(str(folder)), task="encode", prompt="query")
    assert (found.pooling, found.normalize, found.prompt) == ("mean", False, "")
    assert {origins[name] for name in ("pooling", "normalize", "prompt")} == {"default"}
    found, origins = resolve_with_origins(
        locate(str(folder)), task="encode", prompt="query", known_as="baai/BGE-small-en-v1.5"
    )
    assert (found.pooling, found.normalize, found.prompt) == (
        "cls",
        True,
        "Represent this sentence for searching relevant passages: ",
    )
    said = "catalogue (models_dense.yaml: notes)"
    assert {origins[name] for name in ("pooling", "normalize", "prompt")} == {said}
    assert resolve(locate(str(folder)), task="encode", known_as="BAAI/bge-small-en-v1.5").prompt == ""


def test_a_hub_name_is_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """In the hub's cache the name, in whatever letters, brings the prompts of documents and queries along."""
    folder = sentence_model(tmp_path / "m", "Normalize")
    checkpoint = named(folder, "intfloat/E5-small-v2")
    caplog.set_level("INFO", "lading")
    for prompt, text in (("document", "passage: "), ("query", "query: "), ("none", "")):
        caplog.clear()
        found = resolve(checkpoint, task="encode", prompt=prompt)
        said = f"recipe from catalogue: model=intfloat/E5-small-v2 key=prompt value={text!r} origin='catalogue (models_dense.yaml: notes)'"
        assert caplog.messages == ([said] if text else [])
        assert found.prompt == text
        plain = resolve(locate(str(folder)), task="encode", prompt_text=text, prompt="document" if text else "none")
        assert found.hash == plain.hash  # the recipe is the prompt, not who said it
    with pytest.raises(ModelError, match=r"models_dense\.yaml: notes\) has no prompt 'querry'; did you mean 'query'"):
        resolve(checkpoint, task="encode", prompt="querry")


def test_the_checkpoint_s_own_prompts_come_first(tmp_path: Path):
    """A checkpoint that has prompts keeps its recipe, hash and all, whatever the catalogue says."""
    folder = sentence_model(tmp_path / "m", "Normalize")
    update(folder / "config_sentence_transformers.json", prompts={"query": "mine: "})
    checkpoint = named(folder, "intfloat/e5-small-v2")
    for prompt, text in (("document", ""), ("query", "mine: ")):
        found, origins = resolve_with_origins(checkpoint, task="encode", prompt=prompt)
        assert (found.prompt, origins["prompt"]) == (text, "config_sentence_transformers.json")
        assert found.hash == resolve(locate(str(folder)), task="encode", prompt=prompt).hash


def test_an_instruction_stands_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The prompt of an instruct model comes with the task that its card gives."""
    text = f'a/b: {{{GOOD}, prompts: {{query: "Instruct: {{instruction}}\\nQuery: "}}, instruction: "Find it"}}'
    own(tmp_path, text, monkeypatch)
    checkpoint, wish = locate(str(plain_model(tmp_path / "m"))), {"prompt": "query", "known_as": "a/b"}
    assert resolve(checkpoint, task="encode", **wish).prompt == "Instruct: Find it\nQuery: "
    own_words, origins = resolve_with_origins(checkpoint, task="encode", instruction="Find {cats}", **wish)
    assert own_words.prompt == "Instruct: Find {cats}\nQuery: "
    assert origins["prompt"] == "asked for"
    with pytest.raises(ModelError, match="no place for an instruction"):
        resolve(checkpoint, task="encode", instruction="Find cats", known_as="a/b")


def test_max_tokens_where_no_file_says_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The catalogue's recommendation stands in for files that say nothing, below the positions, and never above the files."""
    own(tmp_path, f"a/b: {{{GOOD}, max_tokens: 200}}", monkeypatch)
    folder = plain_model(tmp_path / "m")

    def limit(**files: Any) -> tuple[int, str]:
        update(folder / "tokenizer_config.json", model_max_length=files.get("tokenizer"))
        update(folder / "sentence_bert_config.json", max_seq_length=files.get("sentence"))
        found, origins = resolve_with_origins(
            locate(str(folder)), task="encode", known_as="a/b", max_tokens=files.get("wanted", 0)
        )
        return found.max_tokens, origins["max_tokens"]

    said = f"catalogue ({tmp_path}/config/models.yaml: own)"
    assert limit() == (200, said)
    assert limit(tokenizer=10**30) == (200, said)
    assert limit(tokenizer=300) == (300, "tokenizer_config.json")
    assert limit(tokenizer=300, sentence=64) == (64, "sentence_bert_config.json")
    assert limit(tokenizer=1000) == (512, "config.json")
    assert limit(wanted=100) == (100, "asked for")


@pytest.mark.parametrize(
    ("nested", "wish", "expected", "origin"),
    [
        (None, "", "identity", "catalogue (models_score.yaml: notes)"),
        ("torch.nn.modules.activation.Sigmoid", "", "sigmoid", "config.json"),
        (None, "sigmoid", "sigmoid", "asked for"),
    ],
)
def test_activation_of_a_reranker(tmp_path: Path, nested: str | None, wish: str, expected: str, origin: str):
    """The wish, else the checkpoint's files, else the catalogue."""
    folder = plain_model(tmp_path / "m", architectures=["BertForSequenceClassification"], id2label={"0": "LABEL_0"})
    if nested:
        update(folder / "config.json", sentence_transformers={"activation_fn": nested})
    found, origins = resolve_with_origins(
        locate(str(folder)), task="score", activation=wish, known_as="cross-encoder/ms-marco-MiniLM-L6-v2"
    )
    assert (found.activation, origins["activation"]) == (expected, origin)


def test_disagreement_is_refused_with_both_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another length of vectors, or fewer positions than the catalogue's tokens, is no model of that name."""
    small = sentence_model(tmp_path / "small", "Normalize")
    message = f"BAAI/bge-base-en-v1.5: dims: catalogue (models_dense.yaml: notes) says 768, but {small} says 384."
    with pytest.raises(ModelError, match=re.escape(message)):
        resolve(locate(str(small)), task="encode", known_as="BAAI/bge-base-en-v1.5")
    with pytest.raises(
        ModelError, match=re.escape(f"max_tokens: catalogue (models_dense.yaml: notes) says 8192, but {small}")
    ):
        resolve(locate(str(small)), task="encode", known_as="ibm-granite/granite-embedding-small-english-r2")
    checkpoint = named(small, "BAAI/bge-base-en-v1.5")
    with pytest.raises(ModelError, match=r"say so in models\.yaml of LADING_CONFIG_DIR"):
        resolve(checkpoint, task="encode")
    own(tmp_path, "BAAI/bge-base-en-v1.5: {dims: 384}", monkeypatch)  # which helps
    assert resolve(checkpoint, task="encode").dims == 384


def test_dims_are_those_after_the_projections(tmp_path: Path):
    """The length that is compared is the one that the modules give, not the transformer's."""
    folder = sentence_model(tmp_path / "m", "Dense", hidden_size=768)
    update(folder / "1_Pooling/config.json", word_embedding_dimension=768)
    dense(folder, 2, 768, 512)
    known = "sentence-transformers/distiluse-base-multilingual-cased-v2"
    found, origins = resolve_with_origins(locate(str(folder)), task="encode", known_as=known)
    assert (found.dims, origins["dims"]) == (512, "2_Dense/config.json")
    assert resolve_with_origins(locate(str(folder)), task="encode", known_as=known, dims=8)[1]["dims"] == "asked for"


def test_an_unknown_name_names_the_nearest(tmp_path: Path):
    """A name that the catalogue lacks, and one of another task, are said."""
    folder = locate(str(plain_model(tmp_path / "m")))
    for wrong in ("BAAI/bge-smal-en-v1.5", "bge-small-en-v1.5"):
        with pytest.raises(ModelError, match=f"no model '{wrong}'; did you mean 'BAAI/bge-small-en-v1.5'"):
            resolve(folder, task="encode", known_as=wrong)
    with pytest.raises(ModelError, match=r"no model 'x/zzzzzzzzz' \(lading models\)"):
        resolve(folder, task="encode", known_as="x/zzzzzzzzz")
    with pytest.raises(ModelError, match="BAAI/bge-reranker-base is a model for `score`"):
        resolve(folder, task="encode", known_as="BAAI/bge-reranker-base")


# -- without the catalogue


def test_pooling_and_normalisation_may_be_asked_for(tmp_path: Path):
    """They go over what files say, equal recipes have equal hashes, and a model without a Pooling needs the former."""
    plain = locate(str(plain_model(tmp_path / "plain")))
    found, origins = resolve_with_origins(plain, task="encode", pooling="cls", normalize=True)
    assert (found.pooling, found.normalize) == ("cls", True)
    assert {origins[name] for name in ("pooling", "normalize")} == {"asked for"}
    assert resolve(plain, task="encode", pooling="mean", normalize=False).hash == resolve(plain, task="encode").hash
    whole = locate(str(sentence_model(tmp_path / "whole", "Normalize")))
    assert resolve(whole, task="encode", pooling="max", normalize=False).normalize is False
    folder = sentence_model(tmp_path / "tokens")
    update_list = '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'
    (folder / "modules.json").write_text(update_list)
    with pytest.raises(ModelError, match=r"has no Pooling.*--pooling mean, cls or last"):
        resolve(locate(str(folder)), task="encode")
    assert resolve(locate(str(folder)), task="encode", pooling="last").pooling == "last"


def test_a_causal_model_must_be_told_its_pooling(tmp_path: Path):
    """No file of a plain *ForCausalLM says how its token vectors become one, and no default is right for most."""
    folder = plain_model(tmp_path / "m", model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(
        ModelError, match="no file says how the token vectors of Qwen2ForCausalLM become one: give --pooling"
    ):
        resolve(locate(str(folder)), task="encode")
    assert resolve(locate(str(folder)), task="encode", pooling="last").pooling == "last"


def test_a_request_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The options of a request reach its recipe, and what a table is told of the model names the entry."""
    own(tmp_path, f"a/b: {{{GOOD}, dims: 32, prompts: {{document: 'd: '}}}}", monkeypatch)
    folder = models.tiny_encoder(tmp_path / "m")
    asked = RequestedModels(Residents("cpu", 1, Residency(0)), [str(tmp_path)], ["float32"])
    recipe, _, said = asked("encode", str(folder), RequestOptions(known_as="a/b", pooling="cls", normalize=False))
    assert (recipe.prompt, recipe.pooling, recipe.normalize) == ("d: ", "cls", False)
    assert said["known_as"] == "a/b"
    with pytest.raises(ModelError, match="no model 'a/c'; did you mean 'a/b'"):
        asked("encode", str(folder), RequestOptions(known_as="a/c"))


def test_origins_name_every_field_of_the_recipe(tmp_path: Path):
    """Each value of a recipe that is not its default has an origin: a file that is there, or one of the four words."""
    checkpoint = locate(
        str(models.tiny_encoder(tmp_path / "m", dense=16, prompts={"query": "q: "}, include_prompt=False))
    )
    found, origins = resolve_with_origins(
        checkpoint, task="encode", prompt="query", precision="bfloat16", long_text="chunk", chunk_tokens=32
    )
    assert origins.keys() >= found.to_dict().keys() - {"version", "task", "content"}
    assert origins["include_prompt"] == "1_Pooling/config.json"
    files = {str(one.relative_to(tmp_path / "m")) for one in (tmp_path / "m").rglob("*.json")}
    assert set(origins.values()) <= files | {"asked for", "default"}
    assert (origins["pooling"], origins["modules"], origins["dims"]) == (
        "1_Pooling/config.json",
        "modules.json",
        "2_Dense/config.json",
    )
    assert {origins[name] for name in ("precision", "long_text", "chunk_tokens")} == {"asked for"}


LATE = {"architecture": "config.json", "outputs": "modules.json", "token_modules": "modules.json"}
LATE |= {
    "token_dims": "1_Dense/config.json",
    "token_normalize": "modules.json",
    "prompt": "config_sentence_transformers.json",
}
OTHER_ORIGINS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], dict[str, str]]] = {
    "SPLADE": (
        lambda path: models_outputs.splade(path, max_active_dims=5),
        {},
        {
            "outputs": "modules.json",
            "sparse": "1_SpladePooling/config.json",
            "top_k": "config_sentence_transformers.json",
        },
    ),
    "SPLADE, asked": (
        models_outputs.splade,
        {"top_k": 3, "max_tokens": 9},
        {"top_k": "asked for", "max_tokens": "asked for"},
    ),
    "a plain *ForMaskedLM": (
        models_outputs.masked_lm,
        {"outputs": ("sparse",)},
        {"outputs": "asked for", "sparse": "config.json"},
    ),
    "a Router's table": (
        models_outputs.inference_free,
        {"prompt": "query"},
        {"sparse": "modules.json", "part": "modules.json"},
    ),
    "BGE-M3": (
        models_outputs.bge_m3,
        {"outputs": ("sparse", "multi_vector")},
        {"sparse": "sparse_linear.safetensors", "token_dims": "colbert_linear.safetensors"},
    ),
    "MultiVectorEncoder": (
        lambda path: models_outputs.late_interaction(path, document_length=99),
        {},
        LATE | {"max_tokens": "sentence_bert_config.json", "skip_tokens": "2_MultiVectorMask/config.json"},
    ),
    "PyLate": (
        models_outputs.pylate,
        {},
        LATE | dict.fromkeys(("max_tokens", "markers", "skip_tokens"), "config_sentence_transformers.json"),
    ),
    "ColBERT": (
        models_outputs.stanford_colbert,
        {"prompt": "query"},
        dict.fromkeys(("max_tokens", "markers", "prompt", "expand_to", "expand_with"), "artifact.metadata"),
    ),
    "a table": (
        models_outputs.static,
        {},
        {"dims": "model.safetensors", "pooling": "modules.json", "max_tokens": "default"},
    ),
}


@pytest.mark.parametrize(("build", "wishes", "said"), OTHER_ORIGINS.values(), ids=OTHER_ORIGINS)
def test_values_of_other_outputs_have_their_files(
    tmp_path: Path, build: Callable[[Path], Path], wishes: dict[str, Any], said: dict[str, str]
):
    """Of sparse, late-interaction and static models too, each value is said to be from the file that has it."""
    _, origins = resolve_with_origins(locate(str(build(tmp_path / "m"))), task="encode", **wishes)
    assert origins | said == origins
