"""A worker against a real broker: the three paths to a row agree, requests and shards share it, and what is wrong is said to whom it concerns."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.config.errors import InputsFailed, RequestFailed
from lading.config.settings import load as load_settings
from lading.pipelines import Client
from lading.pipelines.job import draft, start
from lading.pipelines.registry import Registry
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
from lading.pipelines.submit import Queues
from lading.pipelines.submit import submit as submit_job
from lading.schedulers import pools
from lading.schedulers.connection import Broker
from lading.schedulers.messages import Request, ShardPointer, request_message, shard_message
from lading.workers import into
from lading.workers.residency import Tier
from lading.workers.run import run
from lading.workers.worker import Worker
from tests.models_lora import tiny_adapter
from tests.redis_server import RedisServer

LEASE_S = 3.0
TEXTS = [f"a text of {'many ' * (n % 30)}words, number {n}" for n in range(200)]


@pytest.fixture
def environment(redis_server: RedisServer, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "BROKER_URL": redis_server.url,
        "JOBS": str(tmp_path / "jobs"),
        "FOLD_INTERVAL_S": "0.1",
        "LEASE_S": str(LEASE_S),
        "THREADS": "1",
    }
    settings["ROOTS"] = f"{tmp_path},{tiny_encoder.parent.parent}"
    for name, value in settings.items():
        monkeypatch.setenv(f"LADING_{name}", value)


@pytest.fixture
def broker(environment: None) -> Broker:
    return Broker.connect(load_settings().broker_url)


@pytest.fixture
def worker(broker: Broker) -> Iterator[Worker]:
    settings = load_settings()
    one = Worker(pools.find(pools.load(), "cpu"), settings, broker, Registry(settings.jobs))
    one.start()
    yield one
    one.stop(30.0, threading.Event())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    texts = [None if n % 50 == 7 else "  " if n % 50 == 9 else text for n, text in enumerate(TEXTS)]
    pq.write_table(pa.table({"key": [f"k{n:03}" for n in range(len(texts))], "body": texts}), path)
    return path


def spec(corpus: Path, model: Path, to: str, **step: object) -> JobSpec:
    return JobSpec(
        source=SourceSpec(paths=(str(corpus),), id="key"),
        steps=(StepSpec(verb="encode", model=str(model), text=("body",), **step),),  # pyright: ignore
        sink=SinkSpec(to=to),
        policy=PolicySpec(shard_rows=20),
    )


def submit(spec: JobSpec) -> str:
    """The job's id; its shards are in the queue."""
    return submit_job(draft(spec), Queues.of(load_settings())).job


def send(broker: Broker, job: str, recipe: str, pairs: list[tuple[int, int]]) -> None:
    pointers = [ShardPointer(job, *pair, recipe) for pair in pairs]
    broker.queue("lading.cpu.shards").send([shard_message(one, now=time.time()) for one in pointers])


def until(claim: Callable[[], object]) -> None:
    """Wait for something that will be; the deadline is for a test that has failed."""
    deadline = time.monotonic() + 120
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(job: str) -> bool:
    return not Registry(load_settings().jobs).is_open(job)


def rows(folder: Path, table: str) -> dict[str, np.ndarray]:
    found = lancedb.connect(str(folder)).open_table(table).to_arrow()
    return dict(zip(found["id"].to_pylist(), found["vector"].to_numpy(zero_copy_only=False), strict=True))


def test_local_run_queue_and_client_give_the_same(
    worker: Worker, broker: Broker, corpus: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Keys exactly, vectors within 1e-5."""
    assert (
        run(draft(spec(corpus, tiny_encoder, f"lancedb://{tmp_path}/db/local")), device="cpu", threads=1).exit_code == 0
    )
    job = submit(spec(corpus, tiny_encoder, f"lancedb://{tmp_path}/db/queued"))
    until(lambda: ended(job))
    local, queued = rows(tmp_path / "db", "local"), rows(tmp_path / "db", "queued")
    assert local.keys() == queued.keys()
    keys = sorted(local)
    by_client = Client().encode(str(tiny_encoder), [TEXTS[int(key[1:])] for key in keys])
    for number, key in enumerate(keys):
        np.testing.assert_allclose(queued[key], local[key], atol=1e-5)
        np.testing.assert_allclose(by_client[number], local[key], atol=1e-5)


def test_requests_with_adapters_share_a_base(
    worker: Worker, broker: Broker, corpus: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Requests with two adapters and with none, and a job with one, in flight together: each gets what a local run of its own gives,
    from one loaded base; a table takes rows of one adapter only."""
    given = {
        name: tiny_adapter(tmp_path / name, tiny_encoder, seed=seed) for seed, name in enumerate(("first", "second"))
    }
    local: dict[str, dict[str, np.ndarray]] = {}
    for name in ("", *given):
        job = draft(
            spec(corpus, tiny_encoder, f"lancedb://{tmp_path}/db/local{name}", adapter=str(given.get(name, "")))
        )
        assert run(job, device="cpu", threads=1).exit_code == 0
        local[name] = rows(tmp_path / "db", f"local{name}")
    keys = sorted(local[""])
    assert not any(np.allclose(local[one][keys[0]], local[other][keys[0]], atol=1e-2) for one, other in _PAIRS)
    client, texts = Client(), [TEXTS[int(key[1:])] for key in keys]
    job = submit(spec(corpus, tiny_encoder, f"lancedb://{tmp_path}/db/queued", adapter=str(given["first"])))
    tickets = [
        (name, client.submit_encode(str(tiny_encoder), texts[number::3], adapter=str(given.get(name, ""))))
        for number in range(3)
        for name in local
    ]
    for place, (name, ticket) in enumerate(tickets):
        for key, vector in zip(keys[place // 3 :: 3], ticket.wait(), strict=True):
            np.testing.assert_allclose(vector, local[name][key], atol=1e-5)
    until(lambda: ended(job))
    for key, vector in rows(tmp_path / "db", "queued").items():
        np.testing.assert_allclose(vector, local["first"][key], atol=1e-5)
    assert [one["tier"] for one in worker.residents.report()["models"]] == ["device"] * 3
    assert worker.residents.policy.loads[Tier.DISK] == 3  # the base once, and what each adapter adds
    into = f"lancedb://{tmp_path}/db/live"
    client.submit_encode(str(tiny_encoder), ["a"], adapter=str(given["first"]), into=into, ids=["1"]).wait()
    with pytest.raises(RequestFailed, match="recipe"):
        client.submit_encode(str(tiny_encoder), ["a"], adapter=str(given["second"]), into=into, ids=["1"]).wait()


_PAIRS = (("", "first"), ("", "second"), ("first", "second"))


def test_an_adapter_outside_the_roots_is_not_read(worker: Worker, tiny_encoder: Path) -> None:
    """As with models, a request names no folder that the worker was not told to read."""
    with pytest.raises(RequestFailed, match="adapter's folder"):
        Client().encode(str(tiny_encoder), ["a"], adapter="/etc")


@pytest.mark.parametrize("vector_type", ["int8", "binary"])
def test_quantised_vectors_are_those_of_a_job(
    worker: Worker, broker: Broker, corpus: Path, tiny_encoder: Path, tmp_path: Path, vector_type: str
) -> None:
    """Quantised after the same float32 vectors: all but values at a step's edge are equal."""
    job = submit(spec(corpus, tiny_encoder, f"lancedb://{tmp_path}/db/queued", vector_type=vector_type))
    until(lambda: ended(job))
    queued = rows(tmp_path / "db", "queued")
    keys = sorted(queued)
    found = Client().encode(str(tiny_encoder), [TEXTS[int(key[1:])] for key in keys], vector_type=vector_type)
    equal = np.array([queued[key] for key in keys]) == found.data
    assert equal.mean() > 0.99


def test_requests_are_answered_beside_a_job(
    worker: Worker, broker: Broker, corpus: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Both end, each with its own rows."""
    job = submit(spec(corpus, tiny_encoder, f"parquet://{tmp_path}/queued"))
    client = Client()
    alone = client.encode(str(tiny_encoder), TEXTS[:5])
    for _ in range(20):
        np.testing.assert_allclose(client.encode(str(tiny_encoder), TEXTS[:5]), alone, atol=1e-5)
    until(lambda: ended(job))
    assert pq.read_table(tmp_path / "queued").num_rows == 192


def test_a_request_into_a_table_replaces_rows(worker: Worker, tiny_encoder: Path, tmp_path: Path) -> None:
    """The table is made; the newest vector of an id stands; inputs that fail are told and leave what was there."""
    client, url = Client(), f"lancedb://{tmp_path}/db/docs"
    assert client.submit_encode(str(tiny_encoder), ["one", "two"], into=url, ids=["a", "b"]).wait(60) == 2
    with pytest.raises(InputsFailed) as told:
        client.submit_encode(str(tiny_encoder), ["three", " "], into=url, ids=["b", "a"]).wait(60)
    assert [(index, code) for index, code, _ in told.value.errors] == [(1, "empty-text")]
    found = rows(tmp_path / "db", "docs")
    expected = client.encode(str(tiny_encoder), ["one", "three"])
    np.testing.assert_allclose(np.stack([found["a"], found["b"]]), expected, atol=1e-5)


def test_a_table_whose_store_fails_keeps_its_own_requests_waiting_alone(
    worker: Worker, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are stored when it works again, or told after a while; others are answered, and their leases stay with this worker."""
    client, url = Client(), f"lancedb://{tmp_path}/db/docs"
    assert client.submit_encode(str(tiny_encoder), ["one"], into=url, ids=["a"]).wait(60) == 1
    data, gone = tmp_path / "db/docs.lance/data", tmp_path / "db/docs.lance/gone"
    data.rename(gone)
    data.write_text("in the way")
    monkeypatch.setattr(into, "MOST_LEFT", 2)
    tickets = [client.submit_encode(str(tiny_encoder), ["two"], into=url, ids=[f"b{n}"]) for n in range(2)]
    until(lambda: len(worker.answers._tables._left) == 2)
    with pytest.raises(RequestFailed, match="nothing of this request was stored"):
        client.submit_encode(str(tiny_encoder), ["three"], into=url, ids=["c"]).wait(60)
    assert client.encode(str(tiny_encoder), ["four"]).shape == (1, 32)
    until(lambda: len(worker.leases.held(worker.requests)) == 2)
    held = set(worker.leases.held(worker.requests))
    time.sleep(1.5 * LEASE_S)
    assert set(worker.leases.held(worker.requests)) == held
    assert not worker.lane.alone
    data.unlink()
    gone.rename(data)
    assert [ticket.wait(60) for ticket in tickets] == [1, 1]
    assert sorted(rows(tmp_path / "db", "docs")) == ["a", "b0", "b1"]
    data.rename(gone)
    data.write_text("in the way")
    monkeypatch.setattr(into, "PATIENCE_S", 0.0)
    with pytest.raises(RequestFailed, match="nothing of this request was stored"):
        client.submit_encode(str(tiny_encoder), ["five"], into=url, ids=["d"]).wait(60)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "/nowhere/to/be/found"}, "ModelError"),
        ({"model": "/etc"}, "lies under none of the places"),
        ({"verb": "score", "inputs": [("a", "b")]}, "ModelError"),
        ({"into": "lancedb:///etc/docs", "ids": ["1"]}, "lies under none of the places"),
        ({"into": "parquet:///tmp/docs", "ids": ["1"]}, "use a job"),
    ],
)
def test_a_request_that_cannot_be_done_is_told_why(
    worker: Worker, broker: Broker, tiny_encoder: Path, change: dict[str, object], told: str
) -> None:
    """In the worker's words, and the worker goes on."""
    fields = {"verb": "encode", "model": str(tiny_encoder), "inputs": ["a text"], **change}
    id = uuid.uuid4().hex
    broker.queue("lading.cpu.requests").send([request_message(Request(**fields), id=id, now=time.time())])  # pyright: ignore
    until(lambda: broker.client.exists(f"celery-task-meta-{id}"))
    stored = json.loads(broker.client.get(f"celery-task-meta-{id}"))  # pyright: ignore
    assert stored["status"] == "FAILURE"
    assert told in stored["traceback"]
    until(lambda: broker.queue("lading.cpu.requests").counts().in_flight == 0)
    assert len(Client().encode(str(tiny_encoder), ["still there"])) == 1


def test_a_client_hears_of_a_request_that_fails(worker: Worker, tmp_path: Path) -> None:
    """As an exception of its own."""
    with pytest.raises(RequestFailed, match="config"):
        Client().encode(str(tmp_path), ["a"])


def test_messages_that_nobody_can_do_become_dead_letters(worker: Worker, broker: Broker, tiny_encoder: Path) -> None:
    """Junk in either queue, a job that was never registered, a shard among requests: kept with the reason, and the worker goes on."""
    shards, requests = broker.queue("lading.cpu.shards"), broker.queue("lading.cpu.requests")
    pointer = shard_message(ShardPointer("nosuchjob", 0, 0, "0" * 16), now=time.time())
    shards.send([b"\xff\x00junk", pointer])
    requests.send([b"{}", pointer])
    until(lambda: (shards.counts().dead, requests.counts().dead) == (2, 2))
    reasons = " ".join(letter.reason for queue in (shards, requests) for letter in queue.dead())
    assert all(
        word in reasons for word in ("not JSON", "no job nosuchjob", "protocol 2", "a shard, in the queue of requests")
    )
    assert len(Client().encode(str(tiny_encoder), ["still there"])) == 1


def test_messages_for_what_is_done_are_settled(
    worker: Worker, broker: Broker, corpus: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Every message delivered twice, and once more after the end: the rows are there once, and nothing is left in the queue."""
    wanted = spec(corpus, tiny_encoder, f"lancedb://{tmp_path}/db/docs")
    job = submit(wanted)
    recipe = start(draft(wanted)).recipe.hash
    send(broker, job, recipe, [(shard, 0) for shard in range(10)])
    until(lambda: ended(job))
    send(broker, job, recipe, [(3, 0), (4, 5)])
    queue = broker.queue("lading.cpu.shards")
    until(lambda: (counts := queue.counts()).waiting == counts.in_flight == 0)
    assert queue.counts().dead == 0
    assert lancedb.connect(str(tmp_path / "db")).open_table("docs").count_rows() == 192
    assert len(rows(tmp_path / "db", "docs")) == 192


def test_what_nobody_awaits_is_dropped(worker: Worker, broker: Broker, tiny_encoder: Path) -> None:
    """A request past its time is not run, and leaves no result."""
    request, id = Request("encode", str(tiny_encoder), ["late"]), uuid.uuid4().hex
    queue = broker.queue("lading.cpu.requests")
    queue.send([request_message(request, id=id, now=time.time(), expires=time.time() - 1)])
    until(lambda: (counts := queue.counts()).waiting == counts.in_flight == 0)
    Client().encode(str(tiny_encoder), ["in time"])
    assert not broker.client.exists(f"celery-task-meta-{id}")


def test_a_stopped_worker_gives_back_what_it_holds(
    broker: Broker, corpus: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Told to hurry in the middle of a job: no lease, no note and nothing under suspicion is left; another one finishes."""
    settings = load_settings()
    job = submit(spec(corpus, tiny_encoder, f"lancedb://{tmp_path}/db/docs"))
    pool, registry, hurry = pools.find(pools.load(), "cpu"), Registry(settings.jobs), threading.Event()
    hurry.set()
    first = Worker(pool, settings, broker, registry)
    first.start()
    until(lambda: first.shards.counts().in_flight)
    first.stop(30.0, hurry)
    assert broker.client.hlen("unacked:lading.cpu.shards") == 0
    assert not broker.client.exists("strikes:lading.cpu.shards")
    notes = list((tmp_path / "db" / f"docs.lading/jobs/{job}/strikes").glob("*/*"))
    assert notes == []
    second = Worker(pool, settings, broker, registry)
    second.start()
    until(lambda: ended(job))
    second.stop(30.0, threading.Event())
    assert len(rows(tmp_path / "db", "docs")) == 192
