"""The three ways to say which query goes with which document: two columns, one query, a table of queries. Whole jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from lading.adapters import load
from lading.cli import main
from lading.config.checkpoint import locate, resolve
from lading.config.errors import SourceChanged, SourceError
from lading.pipelines.job import draft, start
from lading.pipelines.spec import from_dict
from lading.workers.estimate import estimate
from lading.workers.run import run
from tests import models_rerank

QUERIES = {1: "what is a lading", 2: "how to open a file", 3: "a third question"}
DOCUMENTS = ["A bill of lading lists goods.", "open() returns a file object.", "Nothing of the kind."]
CANDIDATES = [(1, 0), (2, 1), (1, 1), (3, 2), (9, 0), (None, 1), (2, 0)]  # query 9 is not in the table


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    table: dict[str, Any] = {
        "qid": pa.array([query for query, _ in CANDIDATES], pa.int64()),
        "docid": [f"d{document}" for _, document in CANDIDATES],
        "passage": [DOCUMENTS[document] for _, document in CANDIDATES],
        "query": [QUERIES.get(query or 0, "") for query, _ in CANDIDATES],
    }
    pq.write_table(pa.table(table), "candidates.parquet")
    lines = [json.dumps({"qid": str(name), "text": text}) + "\n" for name, text in QUERIES.items()]
    Path("queries.jsonl").write_text("".join(lines))
    return tmp_path


def expected(folder: Path, pairs: list[tuple[str, str]]) -> np.ndarray:
    """The model's own scores of these pairs, alone."""
    adapter = load(resolve(locate(str(folder)), task="score"), folder, device="cpu", threads=1)
    prepared = adapter.prepare([pa.array(column) for column in zip(*pairs, strict=True)])
    return adapter.run([(prepared, np.arange(len(pairs)))]).batch.column(0).to_numpy()


def spec(model: Path, **more: Any) -> dict[str, Any]:
    step = {"text": "passage", "model": str(model), **more.pop("step", {})}
    source = {"path": "candidates.parquet"}
    return {"source": source, "steps": [{"score": step}], "sink": {"to": "parquet://out"}, **more}


def output() -> pa.Table:
    return pads.dataset("out", format="parquet").to_table()


def test_one_query_for_all_rows(place: Path, tiny_cross_encoder: Path):
    """`query` goes before every row's document, and the command line says it as --query."""
    command = [
        "score",
        "candidates.parquet",
        "--text",
        "passage",
        "--query",
        QUERIES[1],
        "--model",
        str(tiny_cross_encoder),
    ]
    assert main([*command, "--to", "parquet://out", "--keep", "docid", "-q"]) == 0
    found = output()
    assert found.column_names == ["id", "docid", "score"]
    wanted = expected(tiny_cross_encoder, [(QUERIES[1], DOCUMENTS[document]) for _, document in CANDIDATES])
    np.testing.assert_allclose(found["score"].to_numpy(), wanted, rtol=1e-5)


def test_a_language_model_in_a_job(place: Path):
    """Template and instruction come from the command line, and are in the recipe that the output carries."""
    folder = models_rerank.tiny_reranker(place / "lm", "qwen3")
    command = ["score", "candidates.parquet", "--text", "passage", "--query", QUERIES[1], "--model", str(folder)]
    command += ["--template", "qwen3", "--instruction", "Find the same.", "--to", "parquet://out", "-q"]
    assert main(command) == 0
    found = output()
    recipe = resolve(locate(str(folder)), task="score", template="qwen3", instruction="Find the same.")
    assert "<Instruct>: Find the same.\n<Query>: {query}\n<Document>: {document}" in recipe.template
    assert json.loads(found.schema.metadata[b"lading.recipes"])["score"]["hash"] == recipe.hash
    adapter = load(recipe, folder, device="cpu", threads=1)
    pairs = [pa.array([QUERIES[1]] * len(CANDIDATES)), pa.array([DOCUMENTS[document] for _, document in CANDIDATES])]
    wanted = adapter.run([(adapter.prepare(pairs), np.arange(len(CANDIDATES)))]).batch.column(0).to_numpy()
    np.testing.assert_allclose(found["score"].to_numpy(), wanted, rtol=1e-4)


def test_two_columns_say_the_same_as_a_table(place: Path, tiny_cross_encoder: Path):
    """Rows that name their query in a table score as rows that hold it; names may be numbers in one and text in the other."""
    summary = run(draft(from_dict(spec(tiny_cross_encoder, queries={"path": "queries.jsonl"}))), device="cpu")
    assert (summary.rows_done, summary.rejected) == (5, 2)
    found = output()
    assert found.column_names == ["id", "qid", "passage", "score"]
    known = [(query, document) for query, document in CANDIDATES if query in QUERIES]
    wanted = expected(tiny_cross_encoder, [(QUERIES[query], DOCUMENTS[document]) for query, document in known])
    assert found["qid"].to_pylist() == [query for query, _ in known]
    np.testing.assert_allclose(found["score"].to_numpy(), wanted, rtol=1e-5)
    both = spec(tiny_cross_encoder, step={"text": ["query", "passage"]}, sink={"to": "parquet://both"})
    assert run(draft(from_dict(both)), device="cpu").rejected == 2  # blank queries
    two = pads.dataset("both", format="parquet").to_table()
    np.testing.assert_allclose(two["score"].to_numpy(), wanted, rtol=1e-5)


def test_rows_without_their_query_are_rejects(
    place: Path, tiny_cross_encoder: Path, capsys: pytest.CaptureFixture[str]
):
    """A row whose query the table has not is a reject that names it; the plan counts it too."""
    drafted = draft(from_dict(spec(tiny_cross_encoder, queries={"path": "queries.jsonl"})))
    assert estimate(drafted).sampled_rejects == 2
    run(drafted, device="cpu")
    assert main(["rejects", "out", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["position"], line["code"]) for line in lines] == [(4, "unknown-query"), (5, "unknown-query")]
    assert lines[0]["detail"] == "column 'qid': no query is called 9"


def test_the_table_of_queries_is_part_of_the_job(place: Path, tiny_cross_encoder: Path):
    """The same queries resume, changed ones are another job, and a planned job does not take them."""
    sink = {"to": "parquet://out", "on_existing": "append"}
    asked = from_dict(spec(tiny_cross_encoder, queries={"path": "queries.jsonl"}, sink=sink))
    first = draft(asked)
    job = start(first)
    assert draft(asked).id == first.id
    Path("queries.jsonl").write_text('{"qid": "1", "text": "another question"}\n')
    assert draft(asked).id != first.id
    (work,) = job.manifest.work()
    with pytest.raises(SourceChanged, match="no longer what they were"):
        list(job.read(work))
    Path("queries.jsonl").unlink()
    with pytest.raises(SourceChanged, match="no longer where they were"):
        list(job.read(work))


def test_tables_that_cannot_be_used(place: Path, tiny_cross_encoder: Path):
    """Names that come twice, a table with no query, a column of the source that can name none: refused before any work."""
    Path("queries.jsonl").write_text('{"qid": "1", "text": "a"}\n{"qid": "1", "text": "b"}\n')
    asked = spec(tiny_cross_encoder, queries={"path": "queries.jsonl"})
    with pytest.raises(SourceError, match="column 'qid': 1 row with the name of an earlier query"):
        draft(from_dict(asked))
    Path("queries.jsonl").write_text('{"qid": "1"}\n')
    with pytest.raises(SourceError, match=r"holds no query|no column 'text'"):
        draft(from_dict(asked))
    Path("queries.jsonl").write_text('{"qid": "1", "text": "a"}\n')
    with pytest.raises(SourceError, match="has no column 'query_id'"):
        draft(from_dict(spec(tiny_cross_encoder, queries={"path": "queries.jsonl", "by": "query_id"})))
