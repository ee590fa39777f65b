"""Sparse, multi-vector and static models through the whole product: jobs into both sinks, queries, plans, requests by the queue."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from benchmarks.corpus import texts_of_lengths
from lading import adapters
from lading.config.checkpoint import locate, resolve
from lading.config.errors import InputsFailed, SpecError
from lading.config.settings import load as load_settings
from lading.pipelines import Client
from lading.pipelines.job import draft
from lading.pipelines.provenance import RECIPES
from lading.pipelines.reading import open_reading
from lading.pipelines.registry import Registry
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
from lading.schedulers import pools
from lading.schedulers.connection import Broker
from lading.workers.estimate import estimate
from lading.workers.query import maxsim, query
from lading.workers.run import run
from lading.workers.worker import Worker
from tests import models_outputs
from tests.redis_server import RedisServer

TEXTS = texts_of_lengths([1 + n * 7 % 23 for n in range(40)])
BUILDERS = {
    "splade": (models_outputs.splade, {}),
    "router": (models_outputs.inference_free, {}),
    "bge-m3": (models_outputs.bge_m3, {"outputs": ("dense", "sparse", "multi_vector")}),
    "colbert": (models_outputs.stanford_colbert, {"vector_type": "float16"}),
    "static": (models_outputs.static, {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


def checkpoint(folders: Path, kind: str) -> Path:
    if not (folders / kind).exists():
        BUILDERS[kind][0](folders / kind)
    return folders / kind


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"key": [f"k{n:03}" for n in range(len(TEXTS))], "body": TEXTS}), path)
    return path


@pytest.fixture(params=["lancedb", "parquet"])
def to(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}://{tmp_path}/out/docs"


def spec_of(corpus: Path, model: Path, to: str, policy: dict | None = None, **step) -> JobSpec:
    return JobSpec(
        source=SourceSpec(paths=(str(corpus),), id="key"),
        steps=(StepSpec(verb="encode", model=str(model), text=("body",), **step),),
        sink=SinkSpec(to=to),
        policy=PolicySpec(shard_rows=16, **(policy or {})),
    )


def done(spec: JobSpec):
    summary = run(draft(spec), device="cpu", threads=1)
    assert summary.rows_in == summary.rows_done + summary.rejected + summary.failed
    return summary


def table_of(to: str) -> pa.Table:
    reading = open_reading(to)
    return pa.Table.from_batches(list(reading.to_batches(columns=reading.schema.names))).sort_by("id").combine_chunks()


def alone(model: Path, texts: list[str] = TEXTS, **wishes) -> pa.RecordBatch:
    """What the adapter gives for one batch of all texts."""
    adapter = adapters.load(resolve(locate(str(model)), task="encode", **wishes), model, device="cpu", threads=1)
    return adapter.run([(adapter.prepare([pa.array(texts)]), np.arange(len(texts)))]).batch


def numbers(column: pa.Array | pa.ChunkedArray) -> list[np.ndarray]:
    """All numbers of each row, one after the other."""
    rows = column.to_pylist()
    if rows and isinstance(rows[0], dict):
        return [np.array([row["indices"], row["values"]], np.float64).ravel() for row in rows]
    return [np.array(row, np.float64).ravel() for row in rows]


def same(found: pa.Table | pa.RecordBatch, expected: pa.RecordBatch, *, atol: float = 2e-5) -> None:
    for name in expected.schema.names:
        for one, other in zip(numbers(found.column(name)), numbers(expected.column(name)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_job_writes_what_the_model_gives(folders: Path, corpus: Path, to: str, kind: str):
    """A whole job into both sinks: the columns of the outputs, each with its recipe, the rows those of the adapter."""
    model, (_, wishes) = checkpoint(folders, kind), BUILDERS[kind]
    spec = spec_of(corpus, model, to, **wishes)
    assert done(spec).rows_out == len(TEXTS)
    assert run(draft(spec), device="cpu", threads=1).state == "nothing to do"
    table, expected = table_of(to), alone(model, **wishes)
    assert table.schema.names == ["id", "body", *expected.schema.names]
    assert table["id"].to_pylist() == [f"k{n:03}" for n in range(len(TEXTS))]
    same(table, expected, atol=1e-3 if kind == "colbert" else 2e-5)
    recipes = json.loads(table.schema.metadata[RECIPES.encode()])
    assert set(recipes) == set(expected.schema.names)
    assert {name: entry.get("output", "dense") for name, entry in recipes.items()} == {
        name: "dense" if name == "vector" else name for name in recipes
    }


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_query_finds_the_text_it_repeats(folders: Path, corpus: Path, to: str, kind: str):
    """`lading query` compares by the output's own measure: the scores are those of all rows, computed here."""
    model, (_, wishes) = checkpoint(folders, kind), BUILDERS[kind]
    done(spec_of(corpus, model, to, **wishes))
    outputs = resolve(locate(str(model)), task="encode", **wishes).outputs
    first = query(to, TEXTS[22], top=3, device="cpu")
    main = "vector" if "dense" in outputs else outputs[0]
    assert first == query(to, TEXTS[22], top=3, column=main, device="cpu")
    for output in outputs:
        column = "vector" if output == "dense" else output
        hits = query(to, TEXTS[22], top=len(TEXTS), column=column, device="cpu")
        asked = alone(model, [TEXTS[22]], prompt="query", **{**wishes, "vector_type": "float32"}).column(column)
        expected = scores(output, asked, alone(model, **wishes).column(column))
        found = np.array([hit.score for hit in sorted(hits, key=lambda hit: hit.id)])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        assert [hit.score for hit in hits] == sorted(found, reverse=True)
        assert not any("vector" in name or name == "sparse" for name in hits[0].columns)


def scores(output: str, asked: pa.Array, stored: pa.Array) -> np.ndarray:
    if output == "sparse":
        (one,) = asked.to_pylist()
        weights = dict(zip(one["indices"], one["values"], strict=True))
        return np.array(
            [
                sum(weights.get(id, 0.0) * value for id, value in zip(row["indices"], row["values"], strict=True))
                for row in stored.to_pylist()
            ]
        )
    if output == "multi_vector":
        matrices = [[np.array(row, np.float32) for row in column.to_pylist()] for column in (asked, stored)]
        return maxsim(*matrices)[0]
    one, rows = np.array(asked.to_pylist()[0]), np.array(stored.to_pylist())
    return rows @ one / np.linalg.norm(rows, axis=1) / np.linalg.norm(one)


def test_lancedb_searches_multi_vectors_by_maxsim(folders: Path, corpus: Path, tmp_path: Path):
    """Plain LanceDB finds the same rows in the same order as MaxSim, in the float16 column of a job."""
    model = checkpoint(folders, "colbert")
    done(spec_of(corpus, model, f"lancedb://{tmp_path}/db/docs", vector_type="float16"))
    table = lancedb.connect(tmp_path / "db").open_table("docs")
    (asked,) = alone(model, [TEXTS[22]], prompt="query").column("multi_vector").to_pylist()
    found = table.search(np.array(asked, np.float16), vector_column_name="multi_vector").metric("cosine").limit(5)
    hits = query(f"lancedb://{tmp_path}/db/docs", TEXTS[22], top=5, device="cpu")
    assert [row["id"] for row in found.to_list()] == [hit.id for hit in hits]


def test_chunks_have_every_output(folders: Path, tmp_path: Path, to: str):
    """A long document's chunks are rows with sparse and multi-vector columns, each as its own text gives them."""
    source = tmp_path / "long.parquet"
    body = texts_of_lengths([300, 3])
    pq.write_table(pa.table({"key": ["long", "short"], "body": body}), source)
    model, (_, wishes) = checkpoint(folders, "bge-m3"), BUILDERS["bge-m3"]
    done(spec_of(source, model, to, {"long_text": "chunk", "chunk_tokens": 60}, **wishes))
    table = table_of(to).sort_by([("doc_id", "ascending"), ("chunk", "ascending")])
    assert table.num_rows > 5
    same(table, alone(model, table["body"].to_pylist(), **wishes))


def test_a_row_whose_weights_are_not_finite_is_a_reject(folders: Path, corpus: Path, to: str, tmp_path: Path):
    """A word of which the model makes NaN loses its own rows and no others, in sparse and multi-vector outputs."""
    for kind in ("splade", "colbert"):
        broken = BUILDERS[kind][0](tmp_path / f"broken-{kind}")
        tokenizer = Tokenizer.from_file(str(broken / "tokenizer.json"))
        token = tokenizer.encode(TEXTS[5], add_special_tokens=False).ids[0]
        weights = load_file(broken / "model.safetensors")
        weights["bert.embeddings.word_embeddings.weight"][token] = np.nan
        if kind == "splade":  # the decoder is the same matrix: every text would have a NaN
            weights["cls.predictions.decoder.weight"] = np.nan_to_num(weights["bert.embeddings.word_embeddings.weight"])
            weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"]
            config = json.loads((broken / "config.json").read_text()) | {"tie_word_embeddings": False}
            (broken / "config.json").write_text(json.dumps(config))
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        summary = done(spec_of(corpus, broken, f"{to}-{kind}"))
        hit = sum(token in tokenizer.encode(text).ids for text in TEXTS)
        assert summary.rejects == {"not-finite": hit}
        assert 0 < hit < len(TEXTS)


def test_columns_have_the_names_asked_for(folders: Path, corpus: Path, tmp_path: Path):
    """`column` names the first output, the others after it; a name that the source has too is refused before the work."""
    model = checkpoint(folders, "bge-m3")
    spec = spec_of(
        corpus, model, f"parquet://{tmp_path}/out", outputs=("sparse", "dense"), column="v", vector_type="int8"
    )
    done(spec)
    assert table_of(spec.sink.to).schema.names == ["id", "body", "v", "v_scale", "v_sparse"]
    splade = checkpoint(folders, "splade")
    path = tmp_path / "sparse.parquet"
    pq.write_table(pa.table({"key": ["a"], "sparse": ["a text"]}), path)
    named = JobSpec(
        source=SourceSpec(paths=(str(path),), id="key"),
        steps=(StepSpec(verb="encode", model=str(splade), text=("sparse",)),),
        sink=SinkSpec(to=f"parquet://{tmp_path}/other"),
    )
    with pytest.raises(SpecError, match="column 'sparse' is also a column of the output"):
        draft(named)


@pytest.mark.parametrize("kind", ["router", "bge-m3", "colbert", "static"])
def test_a_plan_knows_tokens_and_bytes(folders: Path, corpus: Path, tmp_path: Path, kind: str):
    """Tokens are the run's own; bytes are right within a tenth where the tokens decide them."""
    model, (_, wishes) = checkpoint(folders, kind), BUILDERS[kind]
    prompt = {"prompt": "query"} if kind == "router" else {}
    spec = spec_of(corpus, model, f"parquet://{tmp_path}/out", **wishes, **prompt)
    told, found = estimate(draft(spec)), done(spec)
    assert told.tokens == found.tokens
    if kind in ("bge-m3", "static"):
        assert told.bytes_out == pytest.approx(table_of(spec.sink.to).nbytes, rel=0.1)


# -- requests


@pytest.fixture
def client(
    redis_server: RedisServer, tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    """A client, and a worker that answers it."""
    settings = {"BROKER_URL": redis_server.url, "JOBS": str(tmp_path / "jobs"), "THREADS": "1"}
    settings["ROOTS"] = f"{tmp_path},{folders}"
    for name, value in settings.items():
        monkeypatch.setenv(f"LADING_{name}", value)
    loaded = load_settings()
    worker = Worker(pools.find(pools.load(), "cpu"), loaded, Broker.connect(loaded.broker_url), Registry(loaded.jobs))
    worker.start()
    with Client() as one:
        yield one
    worker.stop(30.0, threading.Event())


def test_requests_give_what_jobs_give(client: Client, folders: Path, tmp_path: Path):
    """Every output by the queue, alone and together, is that of the adapter; an input that fails has none; and into a table."""
    splade, bge_m3, colbert, static = (checkpoint(folders, kind) for kind in ("splade", "bge-m3", "colbert", "static"))
    texts = TEXTS[:9]
    found = client.encode(str(splade), texts, top_k=20)
    same(as_batch(sparse=found), alone(splade, texts, top_k=20))
    vectors = client.encode(str(colbert), texts, prompt="query")
    assert [one.shape for one in vectors] == [(32, 16)] * 9
    same(as_batch(multi_vector=vectors), alone(colbert, texts, prompt="query"))
    together = client.encode(str(bge_m3), texts, outputs=["dense", "sparse", "multi_vector"])
    batch = as_batch(vector=together.dense, sparse=together.sparse, multi_vector=together.multi_vector)
    same(batch, alone(bge_m3, texts, outputs=("dense", "sparse", "multi_vector")))
    same(as_batch(vector=client.encode(str(static), texts)), alone(static, texts))
    with pytest.raises(InputsFailed) as failed:
        client.encode(str(splade), [texts[0], " ", texts[1]])
    assert [len(one.indices) > 0 for one in failed.value.result] == [True, False, True]
    ticket = client.submit_encode(
        str(bge_m3),
        texts,
        into=f"lancedb://{tmp_path}/db/docs",
        ids=[f"{n}" for n in range(9)],
        outputs=["sparse", "dense"],
    )
    assert ticket.wait(timeout_s=60) == 9
    same(table_of(f"lancedb://{tmp_path}/db/docs"), alone(bge_m3, texts, outputs=("dense", "sparse")))


def as_batch(**columns) -> pa.RecordBatch:
    """A client's results as columns."""
    made = {}
    for name, values in columns.items():
        if name == "sparse":
            values = [{"indices": one.indices.tolist(), "values": one.values.tolist()} for one in values]
        else:
            values = [one.tolist() for one in values]
        made[name] = pa.array(values)
    return pa.RecordBatch.from_pydict(made)
