"""The columns `tokens` and `truncated`: what the model saw of each row, by job and by request, and none where a name is taken."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers

from lading.config.errors import InputsFailed, OutputError, SpecError
from lading.config.settings import load as load_settings
from lading.pipelines import Client
from lading.pipelines.job import draft
from lading.pipelines.registry import Registry
from lading.pipelines.spec import from_dict
from lading.schedulers import pools
from lading.schedulers.connection import Broker
from lading.workers.run import run
from lading.workers.worker import Worker
from tests.redis_server import RedisServer

LONG = "the cat looked at the dog on the mat " * 125  # 1,125 words
TEXTS = ["a cat", LONG, " ", "the dog on the mat " * 5, None, LONG + "and away", "a house"]


def job(tmp_path: Path, model: Path, to: str = "parquet", verb: str = "encode", **more: Any) -> Any:
    """A job over TEXTS (pairs of them for `score`) with token columns, and its output by id."""
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"key": list("abcdefg"), "body": TEXTS, "other": ["x " * n for n in range(1, 8)]}), source)
    step = {"model": str(model), "text": ["body", "other"] if verb == "score" else "body", **more.pop("step", {})}
    spec = from_dict(
        {
            "source": {"path": str(source), "id": "key", **more.pop("source", {})},
            "steps": [{verb: step}],
            "sink": {"to": f"{to}://{tmp_path}/out/docs"},
            "policy": {"token_columns": True, "shard_rows": 3, **more.pop("policy", {})},
        }
    )
    drafted = draft(spec)
    summary = run(drafted, device="cpu", threads=1, **more)
    assert summary.state == "finished"
    out = tmp_path / "out" / "docs"
    table = pq.read_table(out) if to == "parquet" else lancedb.connect(out.parent).open_table("docs").to_arrow()
    assert sum(table["truncated"].to_pylist() if "truncated" in table.schema.names else [summary.truncated]) == (
        summary.truncated
    )
    return drafted, table.sort_by("id")


def reference(model: Path, *texts: list[str], limit: int) -> tuple[list[int], list[bool]]:
    """Token counts by transformers' own tokenizer, and which of them were more."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    whole = [len(ids) for ids in tokenizer(*texts, verbose=False)["input_ids"]]
    return [min(count, limit) for count in whole], [count > limit for count in whole]


@pytest.mark.parametrize("to", ["parquet", "lancedb"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("verb", ["encode", "score", "extract"])
def test_a_row_tells_its_tokens(
    tmp_path: Path,
    tiny_encoder: Path,
    tiny_cross_encoder: Path,
    tiny_token_classifier: Path,
    to: str,
    side: str,
    verb: str,
) -> None:
    """The numbers are the reference tokenizer's, whatever was rejected in between; the recipe does not know of the columns."""
    model = {"encode": tiny_encoder, "score": tiny_cross_encoder, "extract": tiny_token_classifier}[verb]
    drafted, table = job(tmp_path, model, to, verb, policy={"truncation_side": side})
    good = [n for n, text in enumerate(TEXTS) if text and text.strip()]
    assert table["id"].to_pylist() == ["abcdefg"[n] for n in good]
    columns = [[TEXTS[n] for n in good]] + ([["x " * (n + 1) for n in good]] if verb == "score" else [])
    tokens, truncated = reference(model, *columns, limit=drafted.recipe.max_tokens)
    assert (table["tokens"].to_pylist(), table["truncated"].to_pylist()) == (tokens, truncated)
    assert (table.schema.field("tokens").type, table.schema.field("truncated").type) == (pa.int32(), pa.bool_())
    assert 0 < sum(truncated) < len(good)
    assert "token_columns" not in drafted.recipe.to_dict()


def test_chunks_tell_theirs(tmp_path: Path, tiny_encoder: Path) -> None:
    """One number a chunk, and none of them was truncated; the prompt counts."""
    step = {"prompt": "query", "column": "title_vector"}
    drafted, table = job(tmp_path, tiny_encoder, step=step, policy={"long_text": "chunk", "chunk_tokens": 24})
    assert table.num_rows > 20
    chunks = [drafted.recipe.prompt + text for text in table["body"].to_pylist()]
    assert table["title_vector_tokens"].to_pylist() == reference(tiny_encoder, chunks, limit=64)[0]
    assert not any(table["title_vector_truncated"].to_pylist())
    assert table.column_names[-3:] == ["title_vector", "title_vector_tokens", "title_vector_truncated"]


def test_a_name_that_is_taken_is_refused() -> None:
    """A carried column of that name, or a result column, is not written over; the message says what to do."""
    source: dict[str, Any] = {"path": "x.parquet", "keep": ["tokens"]}
    given = {
        "source": source,
        "steps": [{"encode": {"text": "body", "model": "m"}}],
        "sink": {"to": "parquet://out"},
        "policy": {"token_columns": True},
    }
    with pytest.raises(SpecError, match=r"policy.token_columns: its column 'tokens' is also a column .*source.keep"):
        from_dict(given)
    named = {**given, "steps": [{"encode": {"text": "body", "model": "m", "column": "v"}}]}
    assert from_dict(named).source.keep == ("tokens",)
    source["keep"] = ["v_truncated"]
    with pytest.raises(SpecError, match="'v_truncated'"):
        from_dict(named)


@pytest.mark.parametrize("long_text", ["truncate", "reject"])
def test_a_text_above_the_batchs_budget_runs_alone(tmp_path: Path, tiny_encoder: Path, long_text: str) -> None:
    """With 16 tokens a batch, texts of 64 run each by themselves, with the same vectors; rejected ones name the limit."""
    policy = {"long_text": long_text}
    (tmp_path / "narrow").mkdir()
    (tmp_path / "wide").mkdir()
    _, narrow = job(tmp_path / "narrow", tiny_encoder, policy=policy, batch_tokens=16)
    _, wide = job(tmp_path / "wide", tiny_encoder, policy=policy)
    assert narrow["tokens"].to_pylist() == wide["tokens"].to_pylist()
    assert (max(narrow["tokens"].to_pylist()) == 64) == (long_text == "truncate")
    vectors = [np.stack(table["vector"].to_numpy()) for table in (narrow, wide)]
    np.testing.assert_allclose(*vectors, atol=1e-5)
    if long_text == "reject":
        from lading.pipelines.report import rejects

        told = [one.detail for one in rejects(f"parquet://{tmp_path}/narrow/out/docs") if one.code == "too-long"]
        assert len(told) == 2
        assert all("the limit is 64" in one for one in told)


@pytest.fixture
def worker(
    redis_server: RedisServer, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Worker]:
    """A worker whose batches take 16 tokens."""
    monkeypatch.setenv("LADING_BROKER_URL", redis_server.url)
    monkeypatch.setenv("LADING_JOBS", str(tmp_path / "jobs"))
    monkeypatch.setenv("LADING_THREADS", "1")
    monkeypatch.setenv("LADING_BATCH_TOKENS_CPU", "16")
    monkeypatch.setenv("LADING_ROOTS", f"{tmp_path},{tiny_encoder.parent.parent}")
    settings = load_settings()
    broker = Broker.connect(settings.broker_url)
    one = Worker(pools.find(pools.load(), "cpu"), settings, broker, Registry(settings.jobs))
    one.start()
    yield one
    one.stop(30.0, threading.Event())
    broker.close()


def test_requests_tell_theirs(worker: Worker, tiny_encoder: Path, tmp_path: Path) -> None:
    """By client and into a table; texts above the budget of a batch among them, each answered; a table without the columns refuses."""
    client, model = Client(), str(tiny_encoder)
    texts = ["a cat", LONG, "a dog on the mat", LONG]
    tokens, truncated = reference(tiny_encoder, texts, limit=64)
    found = client.encode(model, texts, token_columns=True)
    assert (found.tokens.tolist(), found.truncated.tolist()) == (tokens, truncated)
    assert (found.tokens.dtype, found.truncated.dtype) == (np.int32, bool)
    np.testing.assert_allclose(found.result, client.encode(model, texts), atol=1e-5)
    result, errors = client.encode(model, [" ", "a cat"], token_columns=True, on_error="return")
    assert (result.tokens.tolist(), [place for place, _, _ in errors]) == ([0, tokens[0]], [0])
    empty = client.encode(model, [], token_columns=True, dims=4)
    assert (empty.result.shape, empty.tokens.shape, empty.truncated.shape) == ((0, 4), (0,), (0,))
    with pytest.raises(InputsFailed, match=r"too-long: .* tokens, the limit is 64"):
        client.encode(model, texts, long_text="reject")

    url = f"lancedb://{tmp_path}/db/docs"
    assert client.submit_encode(model, texts, into=url, ids=list("abcd"), token_columns=True).wait() == 4
    table = lancedb.connect(tmp_path / "db").open_table("docs").to_arrow().sort_by("id")
    assert (table["tokens"].to_pylist(), table["truncated"].to_pylist()) == (tokens, truncated)
    assert client.submit_encode(model, ["a"], into=f"{url}2", ids=["a"]).wait() == 1
    with pytest.raises(Exception, match="has no column 'tokens', which these results need") as told:
        client.submit_encode(model, ["a"], into=f"{url}2", ids=["a"], token_columns=True).wait()
    assert OutputError.__name__ in str(told.value.__dict__)
