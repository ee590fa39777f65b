"""Whole jobs in this process, on real files, tiny models and both sinks: every row in is a row out or a reject."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import threading
from pathlib import Path

import duckdb
import lancedb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from lading.cli import main
from lading.config.errors import ModelError, OutputError, TableChanged
from lading.pipelines.job import draft, start
from lading.pipelines.reading import open_reading
from lading.pipelines.records import Receipt
from lading.pipelines.report import rejects, status
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
from lading.workers.query import Searcher, query
from lading.workers.run import run
from tests import models

WORDS = [
    "cat",
    "dog",
    "house",
    "river",
    "stone",
    "light",
    "green",
    "paper",
    "music",
    "seven",
    "run",
    "walk",
    "open",
    "file",
    "read",
    "write",
]
SINKS = ("lancedb", "parquet")


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(count)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    rows = texts(100)
    pq.write_table(pa.table({"key": [f"k{n}" for n in range(100)], "body": rows, "year": list(range(100))}), path)
    return path


def job_spec(
    source: Path, model: Path, to: str, *, verb="encode", text=("body",), keep=None, id="key", **more
) -> JobSpec:
    step = {key: more.pop(key) for key in list(more) if key in {field.name for field in dataclasses.fields(StepSpec)}}
    policy = {
        key: more.pop(key) for key in list(more) if key in {field.name for field in dataclasses.fields(PolicySpec)}
    }
    on_existing = more.pop("on_existing", "refuse")
    return JobSpec(
        source=SourceSpec(paths=(str(source),), id=id, keep=keep, **more),
        steps=(StepSpec(verb=verb, model=str(model), text=text, **step),),
        sink=SinkSpec(to=to, on_existing=on_existing),
        policy=PolicySpec(**{"shard_rows": 16, **policy}),
    )


def done(spec: JobSpec, **options):
    """Run a job; the balance of rows is asserted whatever its end."""
    summary = run(draft(spec), **{"device": "cpu", "threads": 1, **options})
    assert summary.rows_in == summary.rows_done + summary.rejected + summary.failed
    return summary


def table_of(spec: JobSpec) -> pa.Table:
    reading = open_reading(spec.sink.to)
    batches = list(reading.to_batches(columns=reading.schema.names))
    return pa.Table.from_batches(batches, batches[0].schema if batches else reading.schema).sort_by("id")


@pytest.fixture(params=SINKS)
def to(request, tmp_path: Path) -> str:
    return f"{request.param}://{tmp_path}/out/docs"


def test_every_row_is_in_the_output_once(corpus, tiny_encoder, to):
    """All hundred rows arrive with their carried columns, and the job says so."""
    spec = job_spec(corpus, tiny_encoder, to, keep=("year", "body"))
    summary = done(spec)
    assert (summary.state, summary.exit_code, summary.rows_done, summary.rejected) == ("finished", 0, 100, 0)
    table = table_of(spec)
    assert table.column_names == ["id", "year", "body", "vector"]
    source = pq.read_table(corpus).sort_by("key")
    assert table["id"].to_pylist() == source["key"].to_pylist()
    assert table["body"].to_pylist() == source["body"].to_pylist()
    assert table["year"].to_pylist() == source["year"].to_pylist()


def test_the_same_command_again_does_nothing_and_says_so(corpus, tiny_encoder, to):
    """A finished job is recognised; its output is not touched."""
    spec = job_spec(corpus, tiny_encoder, to)
    done(spec)
    before = table_of(spec)
    summary = done(spec)
    assert summary.state == "nothing to do"
    assert summary.exit_code == 0
    assert table_of(spec).equals(before)


def test_two_runs_of_one_command_give_equal_bytes(corpus, tiny_encoder, tmp_path):
    """The same kernel and plan give the same vectors bit for bit, on however many threads."""
    tables = []
    for name, threads in (("a", 1), ("b", 1), ("c", 3)):
        spec = job_spec(corpus, tiny_encoder, f"parquet://{tmp_path}/{name}")
        done(spec, threads=threads, batch_tokens=64)
        tables.append(table_of(spec))
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_an_interrupted_job_is_resumed_where_it_was(corpus, tiny_encoder, to, monkeypatch):
    """Stopped after its first batch and started again, the job ends as an undisturbed one, doing only what was missing."""
    monkeypatch.setenv("LADING_WINDOW_TOKENS", "64")  # so that the first window is not the whole corpus
    stop = threading.Event()
    spec = job_spec(corpus, tiny_encoder, to)
    first = done(spec, stop=stop, batch_tokens=16, on_progress=lambda _: stop.set())
    assert (first.state, first.exit_code) == ("interrupted", 130)
    second = done(spec)
    assert second.state == "finished"
    assert 0 < second.rows_run < 100
    undisturbed = job_spec(corpus, tiny_encoder, to.replace("/out/", "/plain/"))
    done(undisturbed)
    ours, theirs = table_of(spec), table_of(undisturbed)
    assert ours.drop(["vector"]).equals(theirs.drop(["vector"]))
    assert np.allclose(ours["vector"].to_pylist(), theirs["vector"].to_pylist(), atol=1e-6)


def test_a_changed_source_is_another_job(corpus, tiny_encoder, to):
    """After the source changed the output is refused by default, and appended to on request."""
    done(job_spec(corpus, tiny_encoder, to))
    pq.write_table(pa.table({"key": ["n1", "n2"], "body": texts(2), "year": [1, 2]}), corpus)
    with pytest.raises(OutputError, match="on-existing"):
        draft(job_spec(corpus, tiny_encoder, to))
    spec = job_spec(corpus, tiny_encoder, to, on_existing="append")
    assert done(spec).rows_done == 2
    assert table_of(spec).num_rows == 102


def test_replace_takes_rows_by_their_id(corpus, tiny_encoder, tmp_path):
    """A replacing job leaves one row per id: the new text for those it has, the old for the others, none for new rejects."""
    to = f"lancedb://{tmp_path}/db/docs"
    done(job_spec(corpus, tiny_encoder, to))
    pq.write_table(
        pa.table({"key": ["k1", "k2", "new"], "body": ["a stone", "", "the river"], "year": [1, 2, 3]}), corpus
    )
    spec = job_spec(corpus, tiny_encoder, to, on_existing="replace")
    summary = done(spec)
    assert (summary.rows_done, summary.rejected) == (2, 1)
    bodies = dict(zip(*(table_of(spec)[name].to_pylist() for name in ("id", "body")), strict=True))
    assert len(bodies) == table_of(spec).num_rows == 100
    assert (bodies["k1"], bodies["new"], bodies.get("k2")) == ("a stone", "the river", None)


def test_bad_rows_are_rejects_and_harm_no_neighbour(tmp_path, tiny_encoder, to):
    """Empty, blank, null and mistyped texts, broken JSON, bad UTF-8 and a duplicate id: each a reject with its reason."""
    path = tmp_path / "in.jsonl"
    lines = [
        b'{"key": "a", "body": "a cat"}',
        b'{"key": "b", "body": ""}',
        b'{"key": "c", "body": " \\n\\t "}',
        b'{"key": "d", "body": null}',
        b'{"key": "e", "body": 7}',
        b'{"key": "f"}',
        b'{"key": "g", "body": "a dog"',
        b'{"key": "h", "body": "caf\xff"}',
        b'{"key": "a", "body": "again"}',
        b'{"body": "nameless"}',
        json.dumps({"key": "long", "body": "stone " * 1_700_000}).encode(),  # 10 MB
        b'{"key": "z", "body": "the end"}',
    ]
    path.write_bytes(b"\n".join(lines))
    spec = job_spec(path, tiny_encoder, to)
    summary = done(spec)
    assert table_of(spec)["id"].to_pylist() == ["a", "long", "z"]
    assert summary.truncated == 1
    found = {reject.position: reject.code for reject in rejects(to)}
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
    wanted = [
        "empty-text",
        "empty-text",
        "null-text",
        "invalid-row",
        "invalid-row",
        "invalid-json",
        "invalid-utf8",
        "duplicate-id",
    ]
    assert [found[int(start)] for start in starts[1:9]] == wanted
    assert found[int(starts[9])] in ("null-id", "invalid-row")
    assert summary.rejected == len(found) == 9


def test_a_row_whose_vector_is_not_finite_is_a_reject(corpus, tiny_encoder, tmp_path, to):
    """A model that gives NaN for one word loses the rows with that word and no others."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_encoder.rglob("*"):
        if file.is_file():
            (broken / file.relative_to(tiny_encoder)).parent.mkdir(exist_ok=True, parents=True)
            (broken / file.relative_to(tiny_encoder)).write_bytes(file.read_bytes())
    tokenizer = Tokenizer.from_file(str(broken / "tokenizer.json"))
    token = tokenizer.encode("stone", add_special_tokens=False).ids[0]
    weights = load_file(broken / "model.safetensors")
    name = next(key for key in weights if key.endswith("word_embeddings.weight"))
    weights[name][token] = np.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    spec = job_spec(corpus, broken, to)
    summary = done(spec)
    hit = sum(token in tokenizer.encode(body).ids[:64] for body in pq.read_table(corpus)["body"].to_pylist())
    assert summary.rejects == {"not-finite": hit}
    assert 0 < hit < 100


def test_a_job_of_which_no_row_came_through_is_not_finished(tmp_path, tiny_encoder, to):
    """When the model fails on all it is given, the job says so, gives no exit code of success, and stays open."""
    folder = shutil.copytree(tiny_encoder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (name,) = [one for one in weights if one.endswith("position_embeddings.weight")]
    weights[name][12:] = np.nan  # beyond what is looked at when the model is loaded
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    rows = ["a cat sat on the mat and looked at the dog on the other mat"] * 3 + [" "]
    pq.write_table(pa.table({"key": list("abcd"), "body": rows}), tmp_path / "in.parquet")
    spec = job_spec(tmp_path / "in.parquet", folder, to)
    for _ in range(2):
        summary = done(spec)
        assert (summary.state, summary.exit_code) == ("stopped", 3)
        assert summary.rejects == {"not-finite": 3, "empty-text": 1}
        assert "no usable result for any row that it was given" in summary.reason
        assert f"remove this one and {tmp_path}/" in summary.reason
    assert status(to)[0].state == "stopped"


def test_a_model_that_cannot_run_leaves_no_output(corpus, tiny_encoder, tmp_path, to):
    """What is wrong with a model shows only when it is loaded, and still before anything is written."""
    folder = shutil.copytree(tiny_encoder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match="lack"):
        done(job_spec(corpus, folder, to))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_fold_that_cannot_be_done_ends_the_run_with_a_summary(corpus, tiny_encoder, tmp_path):
    """What stops a run before its first batch is in the summary too, with its reason, not an error without one."""
    spec = job_spec(corpus, tiny_encoder, f"parquet://{tmp_path}/out")
    one = draft(spec)
    job = start(one)
    for work in job.manifest.work():  # all published, none folded
        receipt = Receipt(job.id, work.shard.number, 0, "a", rows_in=work.shard.rows, rows_done=work.shard.rows)
        job.manifest.publish(receipt)
    (Path(job.manifest.folder.url) / "folded").write_bytes(b"in the way")
    summary = run(draft(spec), device="cpu", threads=1)
    assert (summary.state, summary.exit_code) == ("stopped", 3)
    assert "folded/0.0.json: Not a directory" in summary.reason


def test_an_empty_corpus_is_a_finished_job_with_a_readable_output(tmp_path, tiny_encoder, to):
    """No rows in, no rows out; readers still find the schema."""
    pq.write_table(
        pa.table({"key": pa.array([], pa.string()), "body": pa.array([], pa.string())}), tmp_path / "in.parquet"
    )
    spec = job_spec(tmp_path / "in.parquet", tiny_encoder, to)
    assert done(spec).state == "finished"
    assert open_reading(to).schema.names == ["id", "body", "vector"]
    assert table_of(spec).num_rows == 0


def test_too_many_rejects_stop_the_job(tmp_path, tiny_encoder, to):
    """Above max_rejects the run stops with exit code 3 and the words to act on; a higher limit lets the job go on."""
    rows = ["", "a cat"] * 20
    pq.write_table(pa.table({"key": [str(n) for n in range(40)], "body": rows}), tmp_path / "in.parquet")

    def spec_of(limit):
        return job_spec(tmp_path / "in.parquet", tiny_encoder, to, max_rejects=limit)

    for _ in range(2):  # running it again does not get it past the limit
        summary = done(job_spec(tmp_path / "in.parquet", tiny_encoder, to, max_rejects=3))
        assert (summary.state, summary.exit_code) == ("stopped", 3)
        assert "max_rejects = 3" in summary.reason
        assert table_of(spec_of(3)).num_rows == summary.rows_done  # what is published is in the output
    summary = done(job_spec(tmp_path / "in.parquet", tiny_encoder, to, max_rejects=20))
    assert (summary.state, summary.rows_done, summary.rejected) == ("finished", 20, 20)


def test_a_source_that_changes_under_the_job_fails_its_shards(corpus, tiny_encoder, to):
    """Rows of a file that is no longer the planned one are failed, and the job says it is unfinished."""
    drafted = draft(job_spec(corpus, tiny_encoder, to))
    start(drafted)
    table = pq.read_table(corpus)
    pq.write_table(table.slice(0, 99), corpus)
    summary = run(drafted, device="cpu", threads=1)
    assert (summary.state, summary.exit_code, summary.rows_done) == ("unfinished", 3, 0)
    assert summary.rows_in == summary.failed == 100
    assert "in.parquet" in summary.reason
    assert status(to)[0].state == "unfinished"


def test_a_dropped_table_is_noticed(corpus, tiny_encoder, tmp_path):
    """A finished job whose table was dropped, or dropped and made anew, is not called done."""
    to = f"lancedb://{tmp_path}/db/docs"
    spec = job_spec(corpus, tiny_encoder, to)
    done(spec)
    database = lancedb.connect(tmp_path / "db")
    database.drop_table("docs")
    with pytest.raises((TableChanged, OutputError)):
        done(spec)
    database.create_table("docs", pa.table({"id": ["x"]}))
    with pytest.raises((TableChanged, OutputError)):
        done(spec)


def test_chunks_carry_their_document_and_their_place(tmp_path, tiny_encoder, to):
    """Long documents become chunks with stable ids, offsets that cut the text exactly, and overlap."""
    documents = {"long": " ".join(texts(12, seed=3)), "short": "a cat"}
    pq.write_table(pa.table({"key": list(documents), "body": list(documents.values())}), tmp_path / "in.parquet")
    spec = job_spec(tmp_path / "in.parquet", tiny_encoder, to, long_text="chunk", chunk_tokens=16, chunk_overlap=4)
    summary = done(spec)
    rows = table_of(spec).to_pylist()
    assert (summary.rows_done, summary.rows_out) == (2, len(rows))
    assert len(rows) > 5
    assert {row["id"] for row in rows} == {f"{row['doc_id']}#{row['chunk']}" for row in rows}
    for row in rows:
        assert row["body"] == documents[row["doc_id"]][row["start"] : row["end"]]
    long = sorted((row for row in rows if row["doc_id"] == "long"), key=lambda row: row["chunk"])
    assert all(after["start"] < before["end"] for before, after in itertools.pairwise(long))
    assert (long[0]["start"], long[-1]["end"]) == (0, len(documents["long"]))


def test_long_texts_are_rejected_on_request(tmp_path, tiny_encoder, to):
    """Under `reject` a text above the limit is a reject that names both numbers."""
    pq.write_table(pa.table({"key": ["a", "b"], "body": ["cat " * 500, "cat"]}), tmp_path / "in.parquet")
    summary = done(job_spec(tmp_path / "in.parquet", tiny_encoder, to, long_text="reject"))
    assert summary.rejects == {"too-long": 1}
    assert "64" in next(rejects(to)).detail


def test_pairs_are_scored(tmp_path, tiny_cross_encoder, to):
    """`score` takes two columns and gives one float column, through the same engine and sinks."""
    pq.write_table(
        pa.table({"key": ["a", "b", "c"], "q": ["cat", "dog", None], "d": ["a cat", "", "x"]}), tmp_path / "in.parquet"
    )
    spec = job_spec(tmp_path / "in.parquet", tiny_cross_encoder, to, verb="score", text=("q", "d"))
    summary = done(spec)
    table = table_of(spec)
    assert table.column_names == ["id", "q", "d", "score"]
    assert table["id"].to_pylist() == ["a"]
    assert 0 < table["score"][0].as_py() < 1
    assert sorted(summary.rejects) == ["empty-text", "null-text"]


def test_entities_are_extracted(tmp_path, tiny_token_classifier, to):
    """`extract` gives a list of entities per row whose offsets cut their text."""
    pq.write_table(pa.table({"key": ["a", "b"], "body": texts(2)}), tmp_path / "in.parquet")
    spec = job_spec(tmp_path / "in.parquet", tiny_token_classifier, to, verb="extract")
    done(spec)
    for row in table_of(spec).to_pylist():
        for entity in row["entities"]:
            assert entity["text"] == row["body"][entity["start"] : entity["end"]]
            assert entity["label"] in ("PER", "ORG")


@pytest.mark.parametrize(("vector_type", "bound"), [("float16", 1e-3), ("int8", 1e-4), ("binary", 0.5)])
def test_a_quantised_vector_can_be_undone(corpus, tiny_encoder, to, tmp_path, vector_type, bound):
    """What is stored beside a smaller vector gives the float32 one back, within the type's bound on cosine."""
    plain, small = (
        job_spec(corpus, tiny_encoder, f"parquet://{tmp_path}/plain"),
        job_spec(corpus, tiny_encoder, to, vector_type=vector_type),
    )
    done(plain)
    done(small)
    wanted = np.array(table_of(plain)["vector"].to_pylist(), np.float32)
    table = table_of(small)
    stored = np.array(table["vector"].to_pylist())
    if vector_type == "binary":
        stored = np.unpackbits(stored.astype(np.uint8), axis=1).astype(np.float32) * 2 - 1
    if vector_type != "float16":
        stored = stored * np.array(table["vector_scale"].to_pylist())[:, None]
    cosine = (stored * wanted).sum(1) / np.linalg.norm(stored, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() > 1 - bound
    assert query(to, pq.read_table(corpus)["body"][7].as_py(), device="cpu")


def test_plain_readers_read_the_output(corpus, tiny_encoder, tmp_path):
    """LanceDB searches the table; pyarrow, DuckDB and Polars read the Parquet folder; none of them needs Lading."""
    done(job_spec(corpus, tiny_encoder, f"lancedb://{tmp_path}/db/docs"))
    done(job_spec(corpus, tiny_encoder, f"parquet://{tmp_path}/files"))
    dataset = pads.dataset(tmp_path / "files")
    vector = dataset.to_table(filter=pads.field("id") == "k5")["vector"][0].as_py()
    table = lancedb.connect(tmp_path / "db").open_table("docs")
    assert table.search(vector).limit(1).to_list()[0]["id"] == "k5"
    assert dataset.count_rows() == table.count_rows() == 100
    assert duckdb.sql(f"select count(*), count(distinct id) from '{tmp_path}/files/*.parquet'").fetchall() == [
        (100, 100)
    ]
    assert pl.read_parquet(f"{tmp_path}/files").height == 100


def test_a_text_with_a_token_that_the_model_lacks_is_a_reject(tiny_encoder, tmp_path, to):
    """Its neighbours in the batch are in the output, and the reject names the token."""
    model = shutil.copytree(tiny_encoder, tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save(str(model / "tokenizer.json"))
    pq.write_table(
        pa.table({"key": ["a", "b", "c"], "body": ["a cat", "a <new> cat", "a dog"]}), tmp_path / "in.parquet"
    )
    spec = job_spec(tmp_path / "in.parquet", model, to)
    summary = done(spec)
    assert (summary.state, summary.rejects) == ("finished", {"unknown-token": 1})
    assert table_of(spec)["id"].to_pylist() == ["a", "c"]


@pytest.mark.parametrize("activation", ["identity", "sigmoid"])
def test_a_column_of_scores_says_what_was_done_with_the_logit(corpus, tiny_cross_encoder, to, activation):
    """The field's metadata has it, beside the rows, in both sinks."""
    spec = job_spec(
        corpus, tiny_cross_encoder, to, verb="score", text=("body", "body"), activation=activation, column="fit"
    )
    done(spec)
    field = open_reading(to).schema.field("fit")
    assert field.metadata[b"lading.activation"] == activation.encode()


def test_a_query_finds_the_text_it_repeats(corpus, tiny_encoder, to):
    """`query` embeds by the stored recipe and finds the nearest row."""
    done(job_spec(corpus, tiny_encoder, to, prompt="none"))
    body = pq.read_table(corpus)["body"][11].as_py()
    assert body in [hit.text for hit in query(to, body, top=3, device="cpu")]


def test_a_query_with_an_instruction_of_its_own(corpus, tmp_path, to):
    """The words go into the query prompt, and the end of a long query is kept where the table keeps its documents' ends."""
    prompts = {"query": "Instruct: Given a question\nQuery: ", "document": ""}
    model = models.tiny_encoder(tmp_path / "model", prompts=prompts)
    done(job_spec(corpus, model, to, truncation_side="left"))
    told = "find the cat"
    own, default = Searcher(to, device="cpu", instruction=told), Searcher(to, device="cpu")
    assert own.recipe.prompt == f"Instruct: {told}\nQuery: "
    assert own.recipe.truncation_side == "left"
    question = "where is it " * 90
    one, other = (np.array(searcher.embed([question]).to_pylist()) for searcher in (own, default))
    assert np.abs(one - other).max() > 1e-3
    hits = query(to, question, top=3, device="cpu", instruction=told)
    assert hits == own.search([question], top=3)[0]
    assert main(["query", to, question, "--top", "3", "--instruction", told, "--device", "cpu", "--json"]) == 0


def test_a_query_finds_rows_beside_a_strangers_parquet_file(corpus, tiny_encoder, tmp_path):
    """A Parquet file of somebody's own in the output, first by name and without recipes, does not keep `query` from it."""
    done(job_spec(corpus, tiny_encoder, f"parquet://{tmp_path}/first", prompt="none"))
    own = pads.dataset(tmp_path / "first").to_table().slice(0, 1).replace_schema_metadata()
    (tmp_path / "docs").mkdir()
    pq.write_table(own, tmp_path / "docs" / "a.parquet")
    to = f"parquet://{tmp_path}/docs"
    done(job_spec(corpus, tiny_encoder, to, prompt="none", on_existing="append"))
    body = pq.read_table(corpus)["body"][11].as_py()
    assert body in [hit.text for hit in query(to, body, top=3, device="cpu")]


def test_status_counts_input_rows(corpus, tiny_encoder, to):
    """`status` reads from the job's folder what was done."""
    done(job_spec(corpus, tiny_encoder, to))
    (job,) = status(to)
    assert (job.state, job.rows_total, job.rows_done, job.shards_done, job.shards_total) == ("finished", 100, 100, 7, 7)
