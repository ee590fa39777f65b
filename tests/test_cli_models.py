"""`lading models`: the list, what is shown of one model, and the comparison with the reference library."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.shell_completion import ShellComplete

from lading.cli import main
from lading.cli.app import cli
from lading.config import catalogue
from lading.config.checkpoint import locate, resolve
from lading.pipelines.provenance import RECIPES
from lading.workers.query import query_recipe
from lading.workers.verify import LENGTHS, texts, verify
from tests import families, models, models_outputs, models_rerank

NAME = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LADING_OFFLINE", "true")


def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/models.yaml").write_text(text)
    monkeypatch.setenv("LADING_CONFIG_DIR", str(tmp_path / "config"))


def printed(capsys: pytest.CaptureFixture[str], *command: str, code: int = 0) -> str:
    assert main(["models", *command]) == code
    said = capsys.readouterr()
    return said.err if code == 2 else said.out


# -- the list


def test_the_list_has_every_model_with_its_grade(capsys: pytest.CaptureFixture[str]):
    """One line each, the columns below their headings; --task leaves the others out; --json has the same models."""
    head, *lines = printed(capsys).splitlines()
    assert head.split() == ["model", "task", "outputs", "architecture", "dims", "tokens", "licence", "grade"]
    assert [line.split()[0] for line in lines] == [one.name for one in catalogue.load().values()]
    (minilm,) = [line for line in lines if line.startswith(NAME + " ")]
    assert minilm.split() == [NAME, "encode", "dense", "bert", "384", "256", "apache-2.0", "verified"]
    assert minilm.index("verified") == head.index("grade")
    (gliner,) = [line for line in lines if line.startswith("urchade/gliner_small")]
    assert gliner.endswith("facts only, not run by this release")
    scorers = printed(capsys, "--task", "score").splitlines()[1:]
    assert {line.split()[1] for line in scorers} == {"score"}
    listed = json.loads(printed(capsys, "--task", "score", "--json"))
    assert [one["name"] for one in listed] == [line.split()[0] for line in scorers]
    assert "'sore' is no task; did you mean 'score'?" in printed(capsys, "--task", "sore", code=2)


# -- one model


def test_show_tells_recipe_origins_memory_and_pool(capsys: pytest.CaptureFixture[str], minilm: Path):
    """Of a folder: the recipe, a source for each value, bytes by precision, and the smallest pool that fits."""
    shown = json.loads(printed(capsys, "show", str(minilm), "--json"))
    recipe = resolve(locate(str(minilm)), task="encode")
    assert (shown["recipe"], shown["hash"]) == (recipe.to_dict(), recipe.hash)
    assert shown["origins"]["pooling"] == "1_Pooling/config.json"
    half = dict.fromkeys(("bfloat16", "float16", "int8"), 45_427_456)
    assert shown["memory_bytes"] == {"float32": 90_854_912, **half}
    assert (shown["pool"], shown["grade"], shown["facts"]) == ("cpu", "architecture verified", None)
    text = printed(capsys, "show", str(minilm), "--as", NAME, "--precision", "float16")
    assert re.search(r"^  pooling +mean +1_Pooling/config\.json$", text, re.MULTILINE)
    assert re.search(r"^  precision +float16 +asked for$", text, re.MULTILINE)
    assert re.search(r"^memory  90\.9 MB in float32, 45\.4 MB in bfloat16", text, re.MULTILINE)
    assert re.search(r"^pool    gpu$", text, re.MULTILINE)  # no processor computes in float16
    assert re.search(r"^grade   architecture verified$", text, re.MULTILINE)  # whose weights they are, nobody knows


def test_show_of_a_model_that_is_not_here_says_so(capsys: pytest.CaptureFixture[str]):
    """From the catalogue alone, nothing is downloaded; a model too large for every pool says why."""
    shown = json.loads(printed(capsys, "show", "qwen/qwen3-embedding-8b@main", "--json"))
    assert (shown["name"], shown["recipe"], shown["found"]) == ("Qwen/Qwen3-Embedding-8B", None, None)
    assert shown["memory_bytes"]["float32"] == 4 * 7_570_000_000
    assert shown["pool"] is None
    assert "no pool can take a model of 30.3 GB in float32" in shown["pool_reason"]
    text = printed(capsys, "show", "Qwen/Qwen3-Embedding-8B", "--precision", "bfloat16")
    assert "not on this machine: what follows are the catalogue's facts alone" in text
    assert re.search(r"^pool    gpu$", text, re.MULTILINE)
    assert r"'Instruct: {instruction}\nQuery:'" in text


def test_show_of_a_model_that_nobody_knows(capsys: pytest.CaptureFixture[str]):
    """An unknown name names the nearest, also where only its owner is missing."""
    said = printed(capsys, "show", "sentence-transformers/all-MiniLM-L6-v3", code=2)
    assert f"did you mean '{NAME}'?" in said
    said = printed(capsys, "show", "all-minilm-l6-v2", code=2)
    assert f"did you mean '{NAME}'?" in said


def test_a_broken_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The error names the file and the key, and nothing is shown."""
    own(tmp_path, monkeypatch, "a/b: {task: encode, dim: 3}")
    said = printed(capsys, "--json", code=2)
    assert f"{tmp_path}/config/models.yaml: a/b.dim: unknown key; did you mean 'dims'?" in said


def test_what_a_model_is_for_is_found_out(
    capsys: pytest.CaptureFixture[str], tiny_cross_encoder: Path, tiny_token_classifier: Path
):
    """By its head; with --task a model for something else is refused."""
    for folder, task in ((tiny_cross_encoder, "score"), (tiny_token_classifier, "extract")):
        shown = json.loads(printed(capsys, "show", str(folder), "--json"))
        assert (shown["recipe"]["task"], shown["grade"]) == (task, "architecture verified")
    assert "a model for `score`, not `encode`" in printed(
        capsys, "show", str(tiny_cross_encoder), "--task", "encode", code=2
    )


def test_names_are_completed() -> None:
    """The shell offers the catalogue's names for MODEL, also without their owner."""
    complete = ShellComplete(cli, {}, "lading", "_LADING_COMPLETE")
    for typed in ("sentence-transformers/all-MiniLM-L6", "all-minilm-l6"):
        for command in (["models", "show"], ["models", "verify"], ["encode", "x", "--model"], ["encode", "x", "--as"]):
            assert [item.value for item in complete.get_completions(command, typed)] == [NAME]


# -- beside the reference


@pytest.mark.parametrize(("precision", "error", "cosine"), [("float32", 2e-5, 0.999999), ("bfloat16", 0.04, 0.9995)])
def test_the_real_model_verifies(
    capsys: pytest.CaptureFixture[str], minilm: Path, precision: str, error: float, cosine: float
):
    """all-MiniLM-L6-v2 on its own weights: far within the bound in float32, within it in bfloat16."""
    done = json.loads(printed(capsys, "verify", str(minilm), "--as", NAME, "--precision", precision, "--json"))
    (dense,) = done["outputs"]
    assert done["passed"]
    assert dense["output"] == "dense"
    assert dense["worst_error"] <= error
    assert dense["lowest_cosine"] >= cosine
    assert done["compared"] == len(LENGTHS)
    assert done["reference"].startswith("sentence-transformers ")


def test_the_texts_are_ragged_and_distinct(minilm: Path):
    """From one word to more than the model takes, and no two alike."""
    lengths = [len(text.split()) for text in texts()]
    assert lengths == sorted(set(lengths))
    assert (lengths[0], lengths[-1]) == (1, 610)
    assert len({text.split()[0] for text in texts()}) > 10


def test_a_plain_folder_verifies_as_the_catalogue_reads_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a catalogue's entry adds to a folder without modules.json is what the library's modules do."""
    folder = models.tiny_encoder(tmp_path / "m", "roberta")
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "1_Pooling")
    own(
        tmp_path,
        monkeypatch,
        "a/b: {task: encode, outputs: [dense], architecture: roberta, licence: mit, pooling: last, normalize: true, "
        "prompts: {document: 'passage: '}, dims: 32, max_tokens: 100}",
    )
    said = printed(capsys, "verify", str(folder), "--as", "a/b")
    assert said.splitlines()[-1] == "pass"
    recipe = resolve(locate(str(folder)), task="encode", known_as="a/b")
    assert (recipe.pooling, recipe.normalize, recipe.prompt) == ("last", True, "passage: ")
    shorter = dataclasses.replace(recipe, max_tokens=20)
    assert verify(locate(str(folder)), shorter, device="cpu").passed


def test_a_reranker_verifies_and_a_wrong_rule_does_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Scores are CrossEncoder's; an entry that says another activation than the library applies is found out, with code 3."""
    folder = models.tiny_cross_encoder(tmp_path / "m")
    done = json.loads(printed(capsys, "verify", str(folder), "--json"))
    (score,) = done["outputs"]
    assert (done["passed"], score["output"], score["lowest_cosine"]) == (True, "score", None)
    assert score["worst_error"] <= 1e-5
    config = json.loads((folder / "config.json").read_text())
    del config["sentence_transformers"]
    (folder / "config.json").write_text(json.dumps(config))
    own(
        tmp_path,
        monkeypatch,
        "a/b: {task: score, outputs: [score], architecture: bert, licence: mit, input: pair, activation: identity}",
    )
    said = printed(capsys, "verify", str(folder), "--as", "a/b", code=3)
    assert said.splitlines()[-1] == "fail: the results are not those of the reference library"


@pytest.mark.parametrize(("wrong", "by"), [({"pooling": "max"}, "cosine"), ({"normalize": False}, "length")])
def test_a_wrong_vector_fails(tiny_encoder: Path, wrong: dict[str, object], by: str):
    """Negative control: another pooling shows in the cosine, a normalisation that is missing in the error alone."""
    checkpoint = locate(str(tiny_encoder))
    recipe = resolve(checkpoint, task="encode")
    assert verify(checkpoint, recipe, device="cpu").passed
    verified = verify(checkpoint, dataclasses.replace(recipe, **wrong), device="cpu")
    (found,) = verified.outputs
    assert not verified.passed
    assert found.worst_error > found.error_bound
    assert found.lowest_cosine is not None
    assert found.cosine_bound is not None
    assert (found.lowest_cosine < found.cosine_bound) == (by == "cosine")


def expanding(path: Path) -> Path:
    expansion = {"strategy": "min", "attend": False, "length": 16}
    return models_outputs.late_interaction(path, "modernbert", expansion=expansion, document_length=300)


# What it is -> how it is made, the output that is compared, and what is asked for besides.
OTHERS: dict[str, tuple[Callable[[Path], Path], str, tuple[str, ...]]] = {
    "SPLADE": (models_outputs.splade, "sparse", ()),
    "SPLADE, few weights": (lambda path: models_outputs.splade(path, pooling="sum", max_active_dims=9), "sparse", ()),
    "SPLADE, a plain folder": (models_outputs.masked_lm, "sparse", ("--outputs", "sparse")),
    "a Router": (models_outputs.inference_free, "sparse", ()),
    "MultiVectorEncoder": (expanding, "multi_vector", ()),
    "PyLate": (models_outputs.pylate, "multi_vector", ()),
    "Stanford's ColBERT": (models_outputs.stanford_colbert, "multi_vector", ()),
    "BGE-M3, its dense vector": (models_outputs.bge_m3, "dense", ()),
    "a table": (lambda path: models_outputs.static(path, normalize=True), "dense", ()),
    "model2vec": (models_outputs.model2vec, "dense", ()),
}


@pytest.mark.parametrize("side", ["document", "query"])
@pytest.mark.parametrize(("build", "output", "options"), OTHERS.values(), ids=OTHERS)
def test_sparse_late_and_static_models_verify(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    build: Callable[[Path], Path],
    output: str,
    options: tuple[str, ...],
    side: str,
):
    """Documents and queries of each kind are those of SparseEncoder, MultiVectorEncoder and StaticEmbedding, far within the bound."""
    folder = build(tmp_path / "m")
    done = json.loads(printed(capsys, "verify", str(folder), "--prompt", side, *options, "--device", "cpu", "--json"))
    assert done["passed"]
    (found,) = done["outputs"]
    assert (found["output"], found["problem"]) == (output, "")
    assert found["worst_error"] <= 1e-4
    assert found["lowest_cosine"] >= 0.999999
    text = printed(capsys, "verify", str(folder), "--prompt", side, *options, "--device", "cpu")
    assert re.search(rf"^{output} +error .* at worst \(bound 0\.005\), cosine 1\.0000000 at worst", text, re.MULTILINE)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["SPLADE", "MultiVectorEncoder"])
def test_other_outputs_verify_in_half_precision(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str, precision: str
):
    """Within the wider bounds of half precision, and not within those of float32."""
    folder = OTHERS[kind][0](tmp_path / "m")
    done = json.loads(printed(capsys, "verify", str(folder), "--precision", precision, "--device", "cpu", "--json"))
    assert done["passed"]
    assert 0.0001 < done["outputs"][0]["worst_error"] <= done["outputs"][0]["error_bound"]


@pytest.mark.parametrize(
    ("kind", "side", "wrong", "why"),
    [
        ("SPLADE", "document", {"log1p": 2}, ""),
        ("SPLADE", "document", {"sparse": "splade-sum"}, ""),
        ("SPLADE", "document", {"top_k": 20}, ""),
        ("MultiVectorEncoder", "document", {"token_normalize": False}, ""),
        ("MultiVectorEncoder", "document", {"prompt": "[Q] "}, ""),
        ("MultiVectorEncoder", "query", {"expand_attended": True}, ""),
        (
            "MultiVectorEncoder",
            "document",
            {"skip_tokens": ()},
            r"the vectors of text \d+ are \(\d+, 16\), the reference's",
        ),
        ("MultiVectorEncoder", "document", {"token_dims": 8}, r"the vectors of text 0 are \(\d+, 8\), .* 16\)"),
    ],
)
def test_a_wrong_reading_of_other_outputs_fails(
    tmp_path: Path, kind: str, side: str, wrong: dict[str, object], why: str
):
    """Negative control: what a recipe may get wrong shows in the error, or in how many vectors there are, and is said."""
    checkpoint = locate(str(OTHERS[kind][0](tmp_path / "m")))
    recipe = dataclasses.replace(resolve(checkpoint, task="encode", prompt=side), **wrong)
    verified = verify(checkpoint, recipe, side=side, device="cpu")
    (found,) = verified.outputs
    assert not verified.passed
    assert (found.worst_error is None) == bool(why)
    assert found.worst_error is None or found.worst_error > found.error_bound
    assert re.search(why, "\n".join(verified.lines()))


def published(path: Path) -> Path:
    return families.publish(models.tiny_encoder(path, "nomic_bert"))


REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], str]] = {
    "a token classifier": (
        models.tiny_token_classifier,
        (),
        "verify compares encode and score: sentence-transformers has no counterpart of `extract`",
    ),
    "BGE-M3's heads": (
        models_outputs.bge_m3,
        ("--outputs", "dense,sparse,multi_vector"),
        "sparse and multi_vector of BGE-M3 are FlagEmbedding's, .* --outputs dense compares the rest",
    ),
    "code of its own": (published, (), r"config\.json: names code of its own \(auto_map\), .* nothing to compare with"),
    "a template of the table": (
        lambda path: models_rerank.tiny_reranker(path / "Qwen3-Reranker-0.6B", "qwen3"),
        ("--task", "score"),
        "this folder has no modules.json: the template is Lading's own",
    ),
    "outputs of a reranker": (models.tiny_cross_encoder, ("--outputs", "dense"), "--outputs is for encode"),
    "the query's side of a reranker": (models.tiny_cross_encoder, ("--prompt", "query"), "--prompt is for encode"),
}


@pytest.mark.parametrize(("build", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compared_is_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    build: Callable[[Path], Path],
    options: tuple[str, ...],
    message: str,
):
    """Where the library has no counterpart, or would run the checkpoint's own code, that is said, and nothing is compared."""
    said = printed(capsys, "verify", str(build(tmp_path / "m")), *options, code=2)
    assert re.search(message, said)


def test_what_the_reference_cannot_run_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """A checkpoint that Lading reads and the library does not is told apart from one whose results differ."""
    folder = models.tiny_encoder(tmp_path / "m")
    path = folder / "modules.json"
    path.write_text(path.read_text().replace("sentence_transformer.modules.pooling.Pooling", "gone.Pooling"))
    said = printed(capsys, "verify", str(folder), code=2)
    assert re.search(r"sentence-transformers \d.* cannot run it, so there is nothing to compare with: .*gone", said)


def test_a_saved_language_model_verifies(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """A language model as sentence-transformers saves its CrossEncoder is asked as that library asks it."""
    model = models_rerank.tiny_reranker(tmp_path / "lm", "qwen3", template=models_rerank.CHAT_TEMPLATE)
    folder = models_rerank.as_cross_encoder(tmp_path / "ce", model, (40, 41))
    done = json.loads(printed(capsys, "verify", str(folder), "--json"))
    assert done["passed"]
    assert 10 < done["compared"] < len(LENGTHS)  # of the longest queries, none leaves its document room
    assert done["outputs"][0]["worst_error"] <= 1e-4


def test_without_the_reference_verify_says_what_to_install(tiny_encoder: Path):
    """An environment without sentence-transformers gets the extra's name, before anything is loaded."""
    program = (
        "import sys\n"
        "for name in ('sentence_transformers', 'torch'): sys.modules[name] = None\n"
        "from lading.cli import main\n"
        f"sys.exit(main(['models', 'verify', {str(tiny_encoder)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not installed: pip install 'lading[verify]'" in done.stderr


# -- in jobs


def test_a_job_is_told_what_the_files_do_not_say(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """--as, --pooling and --normalize reach the rows, and `query` asks by the same with the query prompt of the same entry."""
    folder = models.tiny_encoder(tmp_path / "m")
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    entry = "{task: encode, outputs: [dense], architecture: bert, licence: mit, pooling: cls, prompts: {query: 'q: ', document: 'd: '}}"
    own(tmp_path, monkeypatch, f"a/b: {entry}")
    pq.write_table(pa.table({"text": ["one", "two words"]}), tmp_path / "in.parquet")
    to = f"{tmp_path}/db/docs"
    command = ["encode", str(tmp_path / "in.parquet"), "--model", str(folder), "--as", "a/b", "--to", f"lancedb://{to}"]
    assert main([*command, "--normalize", "--quiet"]) == 0
    table = lancedb.connect(f"{tmp_path}/db").open_table("docs")
    stored = json.loads(table.schema.metadata[RECIPES.encode()])["vector"]
    recipe = resolve(locate(str(folder)), task="encode", pooling="cls", normalize=True, prompt_text="d: ")
    assert (stored["known_as"], stored["hash"]) == ("a/b", recipe.hash)
    assert b"embedding_functions" not in table.schema.metadata  # LanceDB's function would read the folder alone
    asked, _ = query_recipe(stored)
    assert dataclasses.replace(asked, prompt="d: ") == recipe
    assert asked.prompt == "q: "
    capsys.readouterr()
    assert main(["query", to, "one", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main([*command[:-2], "--pooling", "last", "--to", f"parquet://{tmp_path}/p", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["pooling"] == "last"


def test_a_job_at_a_revision_is_found_again(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_encoder: Path):
    """`--model name@revision` stores name and commit, by which `query` finds the same files, wherever the revision is by then."""
    repository, commit = tmp_path / "hub/models--owner--tiny", "a" * 40
    shutil.copytree(tiny_encoder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/v2").write_text(commit)
    pq.write_table(pa.table({"text": ["one", "two words"]}), tmp_path / "in.parquet")
    to = f"{tmp_path}/db/docs"
    command = ["encode", str(tmp_path / "in.parquet"), "--model", "owner/tiny@v2", "--to", f"lancedb://{to}", "--quiet"]
    assert main(command) == 0
    table = lancedb.connect(f"{tmp_path}/db").open_table("docs")
    stored = json.loads(table.schema.metadata[RECIPES.encode()])["vector"]
    assert (stored["model"], stored["revision"]) == ("owner/tiny", commit)
    (repository / "refs/v2").unlink()
    assert main(["query", to, "one", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_broken_file_offers_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completion stays silent where models.yaml cannot be read; the command will say why."""
    own(tmp_path, monkeypatch, "a/b: [")
    complete = ShellComplete(cli, {}, "lading", "_LADING_COMPLETE")
    assert complete.get_completions(["models", "show"], "sent") == []
