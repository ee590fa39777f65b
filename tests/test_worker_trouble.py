"""A worker in trouble: what fails harms what it concerns, nothing is held for ever, and nothing is tried again without a pause."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.adapters.encode import Encoder
from lading.adapters.model import Model, Working
from lading.config.settings import load as load_settings
from lading.pipelines import Client
from lading.pipelines.job import draft
from lading.pipelines.registry import Registry
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
from lading.pipelines.submit import Queues, Submitted
from lading.pipelines.submit import submit as submit_job
from lading.pipelines.sweep import Sweeper
from lading.schedulers import pools
from lading.schedulers.bodies import RequestOptions
from lading.schedulers.connection import Broker
from lading.schedulers.messages import Request, request_message
from lading.schedulers.pools import Preload
from lading.workers.assignments import Assignment
from lading.workers.residents import REMEMBERED_S
from lading.workers.worker import Worker
from tests.redis_server import RedisServer

ROWS = 10  # of a shard
Make = Callable[..., Worker]


@pytest.fixture
def make(redis_server: RedisServer, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes workers; with `start=False` the test is their working thread."""
    for name, value in {
        "BROKER_URL": redis_server.url,
        "JOBS": f"{tmp_path}/jobs",
        "ROOTS": f"{tmp_path},{tiny_encoder.parent.parent}",
        "THREADS": "1",
        "FOLD_INTERVAL_S": "0.05",
        "SWEEP_INTERVAL_S": "0.1",
    }.items():
        monkeypatch.setenv(f"LADING_{name}", value)

    def worker(**settings: str) -> Worker:
        for name, value in settings.items():
            monkeypatch.setenv(f"LADING_{name.upper()}", value)
        found = load_settings()
        pool = pools.find(pools.load(), "cpu")
        return Worker(pool, found, Broker.connect(found.broker_url), Registry(found.jobs))

    return worker


@pytest.fixture
def started(make: Make) -> Iterator[Make]:
    """Makes workers that run until the test is over."""
    running: list[Worker] = []

    def start(**settings: str) -> Worker:
        running.append(make(**settings))
        running[-1].start()
        return running[-1]

    yield start
    for one in running:
        one.stop(30.0, threading.Event())


def until(claim: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def spec(folder: Path, model: Path, to: str, shards: int = 4, **policy: Any) -> JobSpec:
    path = folder / f"{to.rpartition('/')[2]}.parquet"
    if not path.exists():
        texts = [f"{path.name} {n}" if n % 2 or not policy else "" for n in range(shards * ROWS)]
        pq.write_table(pa.table({"text": texts}), path)
    return JobSpec(
        source=SourceSpec(paths=(str(path),)),
        steps=(StepSpec(verb="encode", model=str(model), text=("text",)),),
        sink=SinkSpec(to=to),
        policy=PolicySpec(shard_rows=ROWS, **policy),
    )


def submit(wanted: JobSpec) -> Submitted:
    return submit_job(draft(wanted), Queues.of(load_settings()))


def ended(job: Submitted) -> bool:
    return not Registry(load_settings().jobs).is_open(job.job)


def notes(job: Submitted) -> list[Path]:
    return list(Path(job.manifest, "strikes").glob("*/*"))


def leave_note(job: Submitted, shard: int, step: str = "begun") -> None:
    """As a process that died did."""
    place = Path(job.manifest, f"strikes/{shard}.0")
    place.mkdir(parents=True)
    (place / f"{step}.dead").write_text('{"version":1}')


def loads_that_wait(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Every load tells that it has begun (the first event), and goes on when it may (the second)."""
    load, loading, go_on = Model.load, threading.Event(), threading.Event()

    def slow(*given: Any, **named: Any) -> Any:
        loading.set()
        assert go_on.wait(60)
        return load(*given, **named)

    monkeypatch.setattr(Model, "load", slow)
    return loading, go_on


def test_a_worker_stopped_while_it_loads_leaves_no_note(
    make: Make, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or three stops would be taken for three deaths, and the job fail; also when the load goes on behind the stop's back."""
    loading, go_on = loads_that_wait(monkeypatch)
    worker, hurry = make(), threading.Event()
    job = submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/out"))
    worker.start()
    assert loading.wait(60)
    assert notes(job)
    hurry.set()
    worker.stop(30.0, hurry)
    assert notes(job) == []
    assert worker.shards.counts().in_flight == 0
    go_on.set()
    worker._work_thread.join()  # pyright: ignore[reportPrivateUsage]
    assert notes(job) == []


def test_a_raised_limit_is_noticed(started: Make, tmp_path: Path, tiny_encoder: Path) -> None:
    """A job over max_rejects is dropped; submitted again with more, the same worker goes on with it."""
    worker = started()
    low = spec(tmp_path, tiny_encoder, f"lancedb://{tmp_path}/db/docs", 40, max_rejects=12)
    job = submit(low)
    until(lambda: (counts := worker.shards.counts()).waiting == counts.in_flight == 0 and worker.desk.jobs() == [])
    markers = len(list(Path(job.manifest, "markers").glob("*")))
    assert 3 <= markers < 40
    assert not ended(job)
    submit(spec(tmp_path, tiny_encoder, f"lancedb://{tmp_path}/db/docs", 40, max_rejects=1000))
    until(lambda: ended(job))
    assert lancedb.connect(f"{tmp_path}/db").open_table("docs").count_rows() == 200


def test_a_limit_raised_under_an_open_job_is_noticed(make: Make, tmp_path: Path, tiny_encoder: Path) -> None:
    """Also by a worker that remembers the job, and what it holds of the limit is only what was submitted when it opened it."""
    worker = make()
    submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/out", max_rejects=1))
    lease, another = worker.shards.pull(2, 1 << 20)
    one = worker.desk.accept(lease)
    assert one is not None
    one.of.folding.rejected = 5
    submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/out", max_rejects=7))
    assert worker.desk.accept(another) is not None
    assert (one.of.job.spec.policy.max_rejects, one.of.folding.spec.policy.max_rejects) == (7, 7)


def test_a_table_that_is_gone_does_not_keep_a_worker_busy(
    started: Make, tmp_path: Path, tiny_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The job is left alone after the first shards that could not be written; the fold says so once; others are served."""
    worker = started()
    job = submit(spec(tmp_path, tiny_encoder, f"lancedb://{tmp_path}/db/docs", 200))
    until(lambda: list(Path(job.manifest, "markers").glob("*")))
    os.rename(tmp_path / "db/docs.lance", tmp_path / "dropped")
    until(lambda: "was dropped while" in caplog.text)
    other = submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/other"))
    until(lambda: ended(other))
    with Client() as client:
        assert len(client.encode(str(tiny_encoder), ["still there"])) == 1
    dropped = [
        one for one in caplog.records if "was dropped while" in one.getMessage() and one.levelno == logging.ERROR
    ]
    assert 0 < len(dropped) <= 20
    assert worker.shards.counts().dead == 0


def test_a_shard_is_done_when_the_disk_has_room_again(
    started: Make,
    tmp_path: Path,
    tiny_encoder: Path,
    disk: Callable[[str, str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is marked failed, nothing is blamed for it, and no row is there twice."""
    place = disk("small", "600k")
    worker = started(lease_s="1", sweep_interval_s="1000")
    clock = lambda: 60 * time.monotonic()  # noqa: E731  what the sweep puts off for a minute it does in a second
    sweeper = Sweeper(worker.broker, worker.registry, pools.load(), lease_s=1, clock=clock)
    job = submit(spec(tmp_path, tiny_encoder, f"parquet://{place}/out", 20))
    (place / "ballast").write_bytes(bytes(max(shutil.disk_usage(place).free - 8192, 0)))
    until(lambda: "o space left" in caplog.text)
    with Client() as client:
        assert len(client.encode(str(tiny_encoder), ["still there"])) == 1
    (place / "ballast").unlink()
    until(lambda: sweeper.sweep() and ended(job))
    assert pq.read_table(place / "out").num_rows == 20 * ROWS
    assert worker.shards.counts().dead == 0


def test_what_was_handed_out_runs_alone_once(make: Make, tmp_path: Path, tiny_encoder: Path) -> None:
    """Also a shard that was to run alone anyway when all others are isolated."""
    worker = make()
    leave_note(submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/out")), 2)
    handed_out = list(worker.feed)
    assert len(handed_out) == 2
    worker.feed.isolate()
    assert sorted(one.place for one in worker.feed.alone) == [(0, 0), (1, 0), (2, 0)]


def test_a_shard_keeps_its_model(make: Make, tmp_path: Path, tiny_encoder: Path) -> None:
    """Another model that pushes it out in the middle neither changes the shard's batches nor is it loaded again for a name."""
    worker = make()
    submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/out"))
    (lease,) = worker.shards.pull(1, 1 << 20)
    one = worker.desk.accept(lease)
    assert isinstance(one, Assignment)
    adapter = one.adapter
    worker.residents.let_go(one.of.job.recipe.weights)
    assert one.adapter is adapter


def test_a_damaged_job_harms_no_other(started: Make, tmp_path: Path, tiny_encoder: Path) -> None:
    """Its messages come back later; the process goes on with the next."""
    worker = started()
    plans = [json.dumps({"version": 1}), "[]", "no json"]
    for number, plan in enumerate(plans):
        damaged = submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/damaged{number}", 1))
        Path(damaged.manifest, "plan.json").write_text(plan)
    good = submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/good"))
    until(lambda: ended(good))
    assert worker.shards.counts().dead == 0


def test_rows_that_cannot_even_be_prepared_fail_their_shard(
    started: Make, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an adapter raises on a shard that runs alone is the shard's reason, and no endless dying."""
    from lading.adapters.encode import Encoder

    def preparing(self: Any, columns: Any) -> Any:
        raise RuntimeError("a tokenizer's defect")

    job = submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/out", 1))
    leave_note(job, 0)
    monkeypatch.setattr(Encoder, "prepare", preparing)
    worker = started()
    marker = Path(job.manifest, "markers/0.0.json")
    until(marker.exists)
    assert json.loads(marker.read_text())["reason"] == "RuntimeError: a tokenizer's defect"
    until(lambda: worker.shards.counts().in_flight == 0)


def test_a_model_that_cannot_be_loaded_is_told(
    started: Make, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the load raises, whoever asked hears of it, and the worker lives on."""
    load = Model.load

    def failing(*given: Any, **named: Any) -> Any:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(Model, "load", failing)
    started()
    with Client() as client:
        with pytest.raises(Exception, match="cannot be loaded: RuntimeError: no such thing"):
            client.encode(str(tiny_encoder), ["a"])
        monkeypatch.setattr(Model, "load", load)
        time.sleep(REMEMBERED_S)
        assert len(client.encode(str(tiny_encoder), ["a"])) == 1


def suspect(worker: Worker, model: Path) -> str:
    """A request whose worker died; its id."""
    id = uuid.uuid4().hex
    worker.requests.send([request_message(Request("encode", str(model), ["a"]), id=id, now=time.time())])
    assert worker.requests.pull(1, 1 << 20)
    worker.requests.restore(0)
    return id


def test_a_request_that_runs_alone_is_told_that_its_model_cannot_come(
    make: Make, started: Make, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the worker goes on with the next."""
    load = Model.load

    def failing(self: Model, **named: Any) -> Any:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(Model, "load", failing)
    id = suspect(make(), tiny_encoder)  # before anybody works, who might take it first
    worker = started()
    until(lambda: worker.broker.client.get(f"celery-task-meta-{id}"))
    stored = json.loads(worker.broker.client.get(f"celery-task-meta-{id}"))  # pyright: ignore
    assert "no such thing" in stored["traceback"]
    until(lambda: worker.requests.counts().in_flight == 0)
    monkeypatch.setattr(Model, "load", load)
    time.sleep(REMEMBERED_S)
    with Client() as client:
        assert len(client.encode(str(tiny_encoder), ["a"])) == 1


def test_a_shard_that_runs_alone_fails_with_a_model_that_cannot_come_back(
    make: Make, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not sent again and again to a worker that will never have the model, though it had it once."""
    worker = make()
    worker.models.preload(Preload("encode", str(tiny_encoder), RequestOptions()))
    (key,) = worker.residents.policy.models
    worker.residents.let_go(key)

    def failing(self: Model, **named: Any) -> Any:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(Model, "load", failing)
    job = submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/out", 1))
    leave_note(job, 0)
    worker.start()
    marker = Path(job.manifest, "markers/0.0.json")
    until(marker.exists)
    worker.stop(30.0, threading.Event())
    assert "no such thing" in json.loads(marker.read_text())["reason"]


def test_a_lone_shard_whose_worker_stops_while_its_model_loads_is_given_back(
    make: Make, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the worker stops is no failure of the shard."""
    loading, go_on = loads_that_wait(monkeypatch)
    worker, hurry = make(), threading.Event()
    job = submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/out", 1))
    leave_note(job, 0)
    worker.start()
    assert loading.wait(60)
    hurry.set()
    worker.stop(30.0, hurry)
    worker._work_thread.join()  # pyright: ignore[reportPrivateUsage]
    go_on.set()
    assert not list(Path(job.manifest, "markers").glob("*"))


@pytest.mark.parametrize("where", ["run", "load", "alone"])
def test_a_lost_device_ends_the_worker_and_blames_nothing(
    where: str, make: Make, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a batch, a load or a shard that runs alone meets it: no row, no shard, no request fails; all is given back."""
    ends: list[str] = []
    ended_once = threading.Event()
    worker = make()
    worker._on_end = lambda why: (ends.append(why), ended_once.set())  # pyright: ignore[reportPrivateUsage]

    def poisoned(*given: Any, **named: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(Encoder, "_load" if where == "load" else "_run", poisoned)
    monkeypatch.setattr(Model, "_measured", lambda self: Working())
    job = submit(spec(tmp_path, tiny_encoder, f"parquet://{tmp_path}/out"))
    if where == "alone":
        leave_note(job, 0)
    id = uuid.uuid4().hex
    worker.requests.send([request_message(Request("encode", str(tiny_encoder), ["a"]), id=id, now=time.time())])
    worker.start()
    assert ended_once.wait(60)
    worker.stop(0.0, threading.Event())
    assert "CUDA error: device-side assert triggered" in ends[0]
    assert not list(Path(job.manifest, "markers").glob("*"))
    assert not worker.broker.client.exists(f"celery-task-meta-{id}")
    assert (worker.shards.counts().in_flight, worker.requests.counts().in_flight) == (0, 0)
    assert not worker.broker.client.exists("strikes:lading.cpu.shards")
    left = [one.name for one in notes(job)]
    assert left == (["begun.dead"] if where == "alone" else [])
