"""What every family owes: results equal to the reference library's, whatever shares the batch.

`CASES` is the table: one line a family (or head), each with a checkpoint in its real layout and a reference that runs one text at a
time. `LADING_WRITE_TABLE=1 pytest tests/adapters/test_contract.py` writes the worst errors into docs/models.md.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.corpus import texts_of_lengths
from lading.adapters import Adapter, Prepared, load
from lading.config.checkpoint import locate, resolve
from lading.workers.packer import pack
from tests import families, models, models_outputs, models_rerank
from tests.adapters.test_rerank import expected as by_card

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
BLOCK = re.compile(r"(<!-- families: [^>]*-->\n)(.*?)(<!-- /families -->)", re.DOTALL)
MAX_TOKENS = 600
WORDS = [1, 1, 2, 3, 3, 3, 5, 8, 8, 13, 24, 24, 45, 90, 130, 400]  # of the texts: 2 to 600 tokens, the longest is cut


def first_column(batch: pa.RecordBatch) -> np.ndarray:
    """The result column of a batch as float (items, numbers)."""
    found = batch.column(0).to_numpy(zero_copy_only=False)
    return np.stack(found) if found.dtype == object else found[:, None]


Reference = Callable[[Path, list[str]], np.ndarray]
Build = Callable[[Path], Path]


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One family with one head. To add one, add a line to CASES."""

    name: str
    build: Build
    reference: Reference  # (folder, texts) -> float (texts, numbers), each text alone
    attention: str = "packed"  # or bucketed: once for all texts of one length
    task: str = "encode"
    wishes: dict[str, object] = dataclasses.field(default_factory=dict)  # what else is asked of the checkpoint
    numbers: Callable[[pa.RecordBatch], np.ndarray] = first_column  # result columns -> what the reference gives
    bfloat16: tuple[float, float] = (0.995, 0.1)  # least cosine and largest relative error against float32


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def sentence_transformer(folder: Path, texts: list[str]) -> np.ndarray:
    """sentence-transformers, without padding."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=1)


def cross_encoder(folder: Path, texts: list[str]) -> np.ndarray:
    """sentence-transformers' CrossEncoder, without padding."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", max_length=MAX_TOKENS)
    return model.predict(pairs(texts), batch_size=1)[:, None]


def pairs(texts: list[str]) -> list[tuple[str, str]]:
    return [(texts[n - 3], text) for n, text in enumerate(texts)]


def encoder(architecture: str, **options) -> Build:
    known = {"normalize": False, "max_tokens": MAX_TOKENS, "max_position_embeddings": 640, "pooling": "mean"}
    return functools.partial(models.tiny_encoder, architecture=architecture, **known | options)


def scorer(architecture: str, **options) -> Build:
    return functools.partial(
        models.tiny_cross_encoder,
        architecture=architecture,
        activation="Identity",
        max_position_embeddings=640,
        **options,
    )


NTK = {
    "rope_type": "linear",
    "factor": 2.0 ** (2 / 16),
    "rope_theta": 40000.0,
}  # what `ntk` by 2 from 20000 is for heads of 16


def published(build: Build, prefix: str = "") -> Build:
    """The checkpoint in its authors' layout, and beside it, for the reference, as transformers' own class saves it."""

    def make(path: Path) -> Path:
        build(path.parent / "native")
        return families.publish(build(path), prefix)

    return make


def with_tasks(task: str) -> Build:
    """jina-embeddings-v3 as first published, and beside it the same with the adapter of `task` merged in."""
    build = encoder("jina_embeddings_v3")

    def make(path: Path) -> Path:
        return families.publish_tasks(build(path), build(path.parent / "native"), task)

    return make


def natively(reference: Reference) -> Reference:
    return lambda folder, texts: reference(folder.parent / "native", texts)


def dense(name: str, architecture: str = "", attention: str = "packed", bfloat16=(0.995, 0.1), **options) -> Case:
    return Case(name, encoder(architecture or name, **options), sentence_transformer, attention, bfloat16=bfloat16)


def score(architecture: str, attention: str = "packed", **options) -> Case:
    build = scorer(architecture, **options)
    return Case(f"{architecture}, score", build, cross_encoder, attention, "score")


def sparse_encoder(folder: Path, texts: list[str]) -> np.ndarray:
    """sentence-transformers' SparseEncoder, without padding: (texts, words of the vocabulary)."""
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(folder), device="cpu")
    model.max_seq_length = MAX_TOKENS
    return model.encode_document(texts, batch_size=1, convert_to_sparse_tensor=False).detach().numpy()


def weights(batch: pa.RecordBatch) -> np.ndarray:
    found = np.zeros((batch.num_rows, models.VOCABULARY), np.float32)
    for row, one in enumerate(batch.column("sparse").to_pylist()):
        found[row, one["indices"]] = one["values"]
    return found


def late_encoder(folder: Path, texts: list[str]) -> np.ndarray:
    """sentence-transformers' MultiVectorEncoder, without padding; of each text its MaxSim with some vectors."""
    from sentence_transformers import MultiVectorEncoder

    found = MultiVectorEncoder(str(folder), device="cpu").encode_document(texts, batch_size=1)
    return np.stack([nearest(np.asarray(one)) for one in found])


def nearest(vectors: np.ndarray) -> np.ndarray:
    """The largest product of some fixed vectors with any of these (tokens, dims): float (8,)."""
    return (np.random.default_rng(0).normal(size=(8, vectors.shape[1])) @ vectors.T).max(1)


def reranker(architecture: str, template: str) -> Case:
    return Case(
        f"{architecture}, reranker",
        functools.partial(models_rerank.tiny_reranker, architecture=architecture),
        lambda folder, texts: by_card(folder, architecture, pairs(texts), MAX_TOKENS)[0][:, None],
        task="score",
        wishes={"template": template},
    )


CASES = [
    *(dense(name) for name in ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert")),
    *(dense(name) for name in ("modernbert", "nomic_bert", "gte", "jina_embeddings_v3", "eurobert")),
    *(dense(name) for name in ("ernie", "data2vec-text", "roberta-prelayernorm", "xlm-roberta-xl")),
    *(
        dense(name, pooling="lasttoken")
        for name in ("qwen2", "qwen3", "mistral", "llama", "gemma", "gemma2", "gemma3_text")
    ),
    *(dense(name, pooling="lasttoken") for name in ("granite", "olmo2", "smollm3", "phi3", "gpt2")),
    dense("qwen2, bidirectional", "qwen2", is_causal=False),
    dense("mistral, bidirectional", "mistral", is_causal=False),
    dense("gemma3_text, bidirectional", "gemma3_text", use_bidirectional_attention=True),
    dense("gemma3_text, heads of 256", "gemma3_text", use_bidirectional_attention=True, head_dim=256),
    Case("new (gte)", published(encoder("gte", rope_parameters=NTK, pooling="cls")), natively(sentence_transformer)),
    Case("nomic_bert, as published", published(encoder("nomic_bert")), natively(sentence_transformer)),
    Case("jina-embeddings-v3, as published", with_tasks("retrieval.passage"), natively(sentence_transformer)),
    dense("mpnet", attention="bucketed"),
    dense("deberta-v2", attention="bucketed"),
    dense("t5", attention="bucketed"),
    dense("mt5", attention="bucketed"),
    dense("umt5", attention="bucketed", bfloat16=(0.99, 0.15)),
    *(score(name) for name in ("bert", "xlm-roberta", "distilbert", "electra", "modernbert", "gte")),
    Case(
        "new (gte), score",
        published(scorer("gte", rope_parameters=NTK), "new."),
        natively(cross_encoder),
        task="score",
        bfloat16=(0.995, 0.15),
    ),
    *(score(name, "bucketed") for name in ("mpnet", "deberta-v2")),
    *(
        Case(
            f"{name}, SPLADE",
            functools.partial(models_outputs.splade, architecture=name),
            sparse_encoder,
            wishes={"max_tokens": MAX_TOKENS},
            numbers=weights,
        )
        for name in ("bert", "distilbert", "roberta")
    ),
    *(
        Case(
            f"{name}, late interaction",
            functools.partial(models_outputs.late_interaction, architecture=name, document_length=MAX_TOKENS),
            late_encoder,
            numbers=lambda batch: np.stack([nearest(np.array(one.as_py())) for one in batch.column("multi_vector")]),
        )
        for name in ("bert", "modernbert", "roberta")
    ),
    reranker("gemma", "bge-gemma"),  # templates of others leave these long queries no room: test_rerank.py
]


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    case: Case
    folder: Path
    texts: list[str]
    expected: np.ndarray

    def adapter(self, **wishes) -> Adapter:
        given = {"max_tokens": MAX_TOKENS} if self.case.task == "score" else {}
        recipe = resolve(locate(str(self.folder)), task=self.case.task, **given | self.case.wishes | wishes)
        return load(recipe, self.folder, device="cpu", threads=1)

    def prepare(self, adapter: Adapter, texts: list[str]) -> Prepared:
        columns = list(zip(*pairs(texts), strict=True)) if self.case.task == "score" else [texts]
        return adapter.prepare([pa.array(column, pa.string()) for column in columns])

    def run(self, adapter: Adapter, texts: list[str], budget: int = 100_000) -> np.ndarray:
        """Results of all texts in their order, in batches of at most `budget` tokens."""
        prepared = self.prepare(adapter, texts)
        assert not prepared.bad
        found = np.empty((len(texts), self.expected.shape[1]), np.float32)
        for batch in pack(prepared.costs, budget):
            outputs = adapter.run([(prepared, batch)])
            assert not outputs.bad
            found[batch] = self.case.numbers(outputs.batch)
        return found


WORST: dict[str, dict[str, float]] = {}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    pytest.importorskip("sentence_transformers")
    case: Case = request.param
    folder = case.build(tmp_path_factory.mktemp("contract") / "model")
    texts = texts_of_lengths(WORDS)
    return Built(case, folder, texts, case.reference(folder, texts))


@pytest.fixture(scope="module")
def adapter(built: Built) -> Adapter:
    return built.adapter()


@pytest.fixture(scope="module")
def found(built: Built, adapter: Adapter) -> np.ndarray:
    """All texts in one batch."""
    return built.run(adapter, built.texts)


def test_equals_the_reference(built: Built, adapter: Adapter, found: np.ndarray):
    """Results of one ragged packed batch are those of the reference, text by text: at most 1e-4 apart, relative to their size."""
    assert adapter.prepare([pa.array(built.texts)] * adapter.inputs).costs.max() == MAX_TOKENS
    assert adapter.kernel.startswith("sdpa-runs") or built.case.attention == "packed"
    error = relative_error(found, built.expected)
    WORST.setdefault(built.case.name, {})["float32"] = error
    assert error <= 1e-4
    assert relative_error(np.roll(found, 1, 0), built.expected) > 1e-2  # texts do differ, so the comparison can fail


def test_batches_and_order_do_not_matter(built: Built, adapter: Adapter, found: np.ndarray):
    """Small batches, another order, and every text alone (the longest is above the budget) give the same within 1e-5."""
    order = np.random.default_rng(0).permutation(len(built.texts))
    if built.case.task == "encode":
        shuffled = np.empty_like(found)
        shuffled[order] = built.run(adapter, [built.texts[n] for n in order], budget=256)
        assert relative_error(shuffled, found) <= 1e-5
    assert relative_error(built.run(adapter, built.texts, budget=1), found) <= 1e-5


def test_a_neighbour_does_not_leak(built: Built, adapter: Adapter, found: np.ndarray):
    """Changing one text of a batch, not its length, leaves the others where they were, to 1e-6."""
    costs, words = built.prepare(adapter, built.texts).costs, built.texts[10].split()
    for seed in range(
        100
    ):  # another order of its words that gives as many tokens, so that all products have the same shapes
        order = np.random.default_rng(seed).permutation(len(words))
        changed = [*built.texts[:10], " ".join(words[n] for n in order), *built.texts[11:]]
        if (built.prepare(adapter, changed).costs == costs).all():
            break
    else:
        pytest.fail("no order of the words has as many tokens")
    moved = np.abs(built.run(adapter, changed) - found).max(1) / np.abs(found).max()
    touched = {10, 13} if built.case.task == "score" else {10}
    assert all(moved[n] > 1e-4 if n in touched else moved[n] <= 1e-6 for n in range(len(moved)))


def test_bfloat16_stays_close(built: Built):
    """Computed in bfloat16, results stay within the family's stated bounds of the float32 reference."""
    low = built.run(built.adapter(precision="bfloat16"), built.texts).astype(np.float64)
    error = relative_error(low, built.expected)
    cosine, bound = built.case.bfloat16
    WORST.setdefault(built.case.name, {})["bfloat16"] = error
    assert error <= bound
    if built.case.task == "encode":
        norms = np.linalg.norm(low, axis=1) * np.linalg.norm(built.expected, axis=1)
        least = float(((low * built.expected).sum(1) / norms).min())
        WORST[built.case.name]["cosine"] = least
        assert least >= cosine


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_tokens_are_found_whatever_side_is_padded(tmp_path: Path, side: str):
    """Last-token pooling equals sentence-transformers' on padded batches of either side: packing knows no side."""
    import json

    folder = encoder("qwen3", pooling="lasttoken")(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": side}))
    from sentence_transformers import SentenceTransformer

    texts = texts_of_lengths(WORDS)
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.tokenizer.padding_side == side
    expected = model.encode(texts, batch_size=len(texts))
    one = Built(CASES[0], folder, texts, expected)
    assert relative_error(one.run(one.adapter(), texts), expected) <= 1e-4


def table() -> str:
    """The families and their worst errors, as docs/models.md shows them."""
    lines = [
        "| family | attention | float32, relative error | bfloat16, relative error | bfloat16, least cosine |",
        "|---|---|---|---|---|",
    ]
    for case in CASES:
        worst = WORST[case.name]
        cosine = f"{worst['cosine']:.5f}" if "cosine" in worst else ""
        lines.append(
            f"| {case.name} | {case.attention} | {worst['float32']:.1e} | {worst['bfloat16']:.1e} | {cosine} |"
        )
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module", autouse=True)
def written() -> Iterator[None]:
    """After the last test, and where asked, the table is written."""
    yield
    if os.environ.get("LADING_WRITE_TABLE"):
        DOCS.write_text(BLOCK.sub(lambda found: found[1] + table() + found[3], DOCS.read_text()))


def test_the_table_lists_these_families():
    """docs/models.md names each case of this file and its kind of attention, and no other."""
    if os.environ.get("LADING_WRITE_TABLE"):
        pytest.skip("it is being written")
    listed = re.findall(r"^\| (.+?) \| (packed|bucketed) \|", BLOCK.search(DOCS.read_text())[2], re.MULTILINE)
    assert listed == [(case.name, case.attention) for case in CASES]


def test_the_example_of_a_new_family_is_what_is_there():
    """docs/adding-a-model.md shows lines that the named files really have, and says truly that they are fewer than 40."""
    text = (DOCS.parent / "adding-a-model.md").read_text()
    shown = [(part[1], part[2]) for part in re.finditer(r"^\+\+\+ b/(.+)\n((?:\+(?!\+\+ ).*\n)+)", text, re.MULTILINE)]
    assert len(shown) == 4
    assert sum(lines.count("\n") for _, lines in shown) < 40
    for name, lines in shown:
        there = (DOCS.parents[1] / name).read_text().splitlines()
        for line in lines.splitlines():
            assert line[1:] in there or 'dense("olmo2"' in line, f"{name}: {line}"
