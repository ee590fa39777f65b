"""Whole jobs from bucket to bucket through the command line, on an S3 server: done, repeated, killed, raced, refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import lancedb
import numpy as np
import polars
import pyarrow.dataset
import pytest

from tests.crash import jobs
from tests.s3_server import Server
from tests.zygote import Child, Zygote

HIDDEN = "Traceback", "internal error"


@pytest.fixture(scope="module")
def zygote(s3_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    folder = tmp_path_factory.mktemp("zygote")
    settings = {"LADING_WINDOW_TOKENS": str(jobs.BATCH_TOKENS), "LADING_FOLD_INTERVAL_S": "0"}
    zygote = Zygote(folder, **s3_server.environment, **settings, LADING_CACHE_DIR=str(folder / "cache"))
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.write_corpus(tmp_path_factory.mktemp("corpus") / "docs", shards=4)


@pytest.fixture(scope="module")
def undisturbed(
    corpus: Path, tiny_encoder: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> jobs.Outcome:
    """What the same job makes of the same files on a disk."""
    spec = jobs.encode(corpus, tiny_encoder, f"parquet://{tmp_path_factory.mktemp('local')}/docs")
    zygote.finish(spec)
    return jobs.outcome(spec.sink.to)


@pytest.fixture
def source(corpus: Path, s3: str) -> str:
    """The corpus in the bucket."""
    fsspec.filesystem("s3").put(f"{corpus}/", f"{s3}/in/", recursive=True)
    return f"{s3}/in"


@pytest.fixture(params=jobs.SINKS)
def to(request: pytest.FixtureRequest, s3: str) -> str:
    return f"{request.param}://{s3}/db/docs"


@pytest.fixture
def encode(source: str, tiny_encoder: Path, to: str) -> list[str]:
    """The command line of a job of four shards."""
    carried = ["--id", "key", "--text", "body", "--keep", "year", "--keep", "body"]
    running = ["--shard-rows", str(jobs.SHARD_ROWS), "--batch-tokens", str(jobs.BATCH_TOKENS), "--device", "cpu"]
    return ["encode", f"{source}/*.parquet", "--to", to, "--model", str(tiny_encoder), *carried, *running]


def said(child: Child, code: int = 0) -> str:
    """What a command printed, which must have ended so."""
    assert child.wait() == code, child.log()
    assert not any(word in child.log() for word in HIDDEN), child.log()
    return child.log()


def assert_undisturbed(to: str, undisturbed: jobs.Outcome) -> None:
    """Rows and vectors as from a disk; the rejects too, but for where their file lies."""
    ours = jobs.outcome(to)
    assert ours.table.equals(undisturbed.table)
    np.testing.assert_allclose(ours.vectors, undisturbed.vectors, rtol=0, atol=1e-6)
    ours_listed, listed = (
        sorted((Path(path).name, *rest) for path, *rest in one.rejects) for one in (ours, undisturbed)
    )
    assert ours_listed == listed


def test_a_killed_job_is_finished_by_the_same_command_and_its_output_is_anyones(
    zygote: Zygote, encode: list[str], to: str, undisturbed: jobs.Outcome
) -> None:
    """Bucket to bucket: killed in a fold, resumed, repeated for nothing; then every verb and every plain reader."""
    assert zygote.command(*encode, failpoint="fold.committed=kill@2").wait() == jobs.KILLED
    (status,) = json.loads(said(zygote.command("status", to, "--json")))
    assert (status["state"], status["shards_done"]) == ("unfinished", 2)
    assert "finished" in said(zygote.command(*encode))
    assert_undisturbed(to, undisturbed)
    bare = to.partition("://")[2]
    (status,) = json.loads(said(zygote.command("status", bare, "--json")))
    assert (status["state"], status["shards_done"]) == ("finished", 4)
    assert said(zygote.command("rejects", bare)).count("s3://") == jobs.REJECTED
    said(zygote.command("optimize", bare))
    found = json.loads(said(zygote.command("query", bare, "cat dog", "--top", "3", "--device", "cpu", "--json")))
    assert len(found) == 3
    assert "nothing to do" in said(zygote.command(*encode))
    rows = undisturbed.table.num_rows
    if to.startswith("lancedb"):
        folder, _, name = bare.rpartition("/")
        table = lancedb.connect(folder).open_table(name)
        assert table.count_rows() == rows
        assert (
            table.search(undisturbed.vectors[0].tolist()).limit(1).to_list()[0]["id"]
            in undisturbed.table["id"].to_pylist()
        )
    else:
        assert pyarrow.dataset.dataset(bare).count_rows() == rows
        assert polars.read_parquet(f"{bare}/*.parquet").height == rows


@pytest.mark.parametrize("to", ["lancedb"], indirect=True)
def test_two_processes_share_a_job(zygote: Zygote, encode: list[str], to: str, undisturbed: jobs.Outcome) -> None:
    """Two at once give every row once, whoever was first at which shard."""
    racers = [zygote.command(*encode) for _ in range(2)]
    for racer in racers:
        said(racer)
    assert "nothing to do" in said(zygote.command(*encode))
    assert_undisturbed(to, undisturbed)


@pytest.mark.parametrize("to", ["parquet"], indirect=True)
def test_an_object_replaced_under_a_job_fails_its_shards(
    zygote: Zygote, encode: list[str], source: str, to: str
) -> None:
    """What is no longer the planned object is not read: the job says so and stays unfinished."""
    running = zygote.command(*encode, failpoint="plan.written=stop")
    assert running.wait_stopped()
    store = fsspec.filesystem("s3")
    store.copy(f"{source}/a.parquet", f"{source}/b.parquet")
    running.thaw()
    assert "b.parquet changed since the job was planned" in said(running, 3)
    assert "2 of 4 shards" in said(zygote.command("status", to))


WRONG = {"AWS_SECRET_ACCESS_KEY": "a-secret-of-somebody", "AWS_MAX_ATTEMPTS": "1"}
DOWN = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
OUTPUTS = {
    "no such bucket": ("nowhere", {}, (2, 3), "bucket does not exist"),
    "wrong key": ("docs", WRONG, (2, 3), "credentials allow"),
    "nobody there": ("docs", DOWN, (2, 3), "Could not connect to the endpoint"),
    "no conditional puts": ("forgetful", {}, (2,), "lets a second write replace the first"),
}


@pytest.mark.parametrize("to", ["lancedb"], indirect=True)
@pytest.mark.parametrize("case", OUTPUTS)
def test_a_store_that_cannot_be_written_is_refused_in_words(
    case: str, zygote: Zygote, encode: list[str], to: str, corpus: Path
) -> None:
    """A missing bucket, wrong credentials, no server, no conditional puts: exit code 2 or 3, a reason, no secret."""
    bucket, environment, codes, words = OUTPUTS[case]
    encode[1] = f"{corpus}/*.parquet"
    encode[3] = f"lancedb://s3://{bucket}/{uuid.uuid4().hex}"
    child = zygote.command(*encode, **environment)
    code = child.wait()
    assert code in codes, child.log()
    assert words in child.log()
    assert not any(word in child.log() for word in (*HIDDEN, WRONG["AWS_SECRET_ACCESS_KEY"])), child.log()
    assert child.log().count("\n") <= 2  # the model's line and the reason's


@pytest.mark.parametrize("verb", ["status", "rejects", "query", "optimize"])
def test_verbs_say_in_words_what_a_store_refuses(verb: str, zygote: Zygote) -> None:
    """No verb takes a store's refusal for a defect of its own."""
    text = ["cat"] if verb == "query" else []
    for place, environment in (("s3://docs/out", DOWN), ("lancedb://s3://docs/out", WRONG)):
        child = zygote.command(verb, place, *text, **environment)
        assert child.wait() in (2, 3), child.log()
        assert not any(word in child.log() for word in (*HIDDEN, WRONG["AWS_SECRET_ACCESS_KEY"])), child.log()


@pytest.mark.parametrize("to", ["parquet"], indirect=True)
@pytest.mark.parametrize(("environment", "words"), [(WRONG, "credentials allow"), (DOWN, "can be reached")])
def test_a_source_that_cannot_be_read_is_refused_in_words(
    environment: dict[str, str], words: str, zygote: Zygote, encode: list[str], tmp_path: Path
) -> None:
    """Exit code 2, before anything is written."""
    encode[3] = f"parquet://{tmp_path}/docs"
    log = said(zygote.command(*encode, **environment), 2)
    assert words in log
    assert WRONG["AWS_SECRET_ACCESS_KEY"] not in log
    assert not (tmp_path / "docs.lading").exists()
