"""`lading worker`, `lading up` and `celery -A lading.workers.app worker` as real processes: what they serve, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from celery import Celery
from celery.result import AsyncResult

from lading.cli import main
from lading.config.settings import load as load_settings
from lading.pipelines import AsyncClient, Client
from lading.pipelines.job import draft
from lading.pipelines.registry import Registry
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
from lading.pipelines.submit import Queues, Submitted
from lading.pipelines.submit import submit as submit_job
from lading.schedulers.connection import Broker
from tests.processes import CELERY, LADING, Process, alive
from tests.redis_server import RedisServer

STOPPING = "finishing what was begun"
REQUESTS, SHARDS = "lading.cpu.requests", "lading.cpu.shards"
COMMANDS = {
    "lading": (*LADING, "worker", "--pool", "cpu"),
    "celery": CELERY,
    "up": (*LADING, "up", "--pool", "cpu"),
}

Start = Callable[..., Process]


def settings(url: str, folder: Path, model: Path) -> dict[str, str]:
    """The environment of a small installation."""
    return {
        "LADING_BROKER_URL": url,
        "LADING_JOBS": f"{folder}/jobs",
        "LADING_ROOTS": f"{folder},{model.parent.parent}",
        "LADING_FOLD_INTERVAL_S": "0.1",
        "LADING_SWEEP_INTERVAL_S": "0.2",
        "LADING_THREADS": "1",
    }


@pytest.fixture
def environment(redis_server: RedisServer, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings(redis_server.url, tmp_path, tiny_encoder).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def broker(environment: None) -> Broker:
    return Broker.connect(load_settings().broker_url)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts one of COMMANDS in this process's environment."""
    with contextlib.ExitStack() as stack:

        def begin(command: str, *options: str, **more: str) -> Process:
            process = Process([*COMMANDS[command], *options], more, tmp_path / f"{command}.log")
            stack.callback(process.close)
            return process

        yield begin


def spec(folder: Path, model: Path, name: str, *, rows: int, shard_rows: int, words: int = 5) -> JobSpec:
    path = folder / f"{name}.parquet"
    texts = [f"row {n} of {name} " + "word " * words for n in range(rows)]
    pq.write_table(pa.table({"key": [f"k{n}" for n in range(rows)], "body": texts}), path)
    return JobSpec(
        source=SourceSpec(paths=(str(path),), id="key"),
        steps=(StepSpec(verb="encode", model=str(model), text=("body",)),),
        sink=SinkSpec(to=f"parquet://{folder}/out/{name}"),
        policy=PolicySpec(shard_rows=shard_rows),
    )


def submit(wanted: JobSpec) -> Submitted:
    return submit_job(draft(wanted), Queues.of(load_settings()))


def ended(job: str) -> bool:
    return not Registry(load_settings().jobs).is_open(job)


def markers(job: Submitted) -> list[Path]:
    return list(Path(job.manifest, "markers").glob("*"))


def check_quiet(broker: Broker, *jobs: Submitted) -> None:
    """Nothing is leased, nobody is under suspicion, and no worker is counted that has gone."""
    for name in (REQUESTS, SHARDS):
        assert broker.queue(name).counts().in_flight == 0
        assert not broker.client.exists(f"strikes:{name}")
    assert broker.workers("cpu") == 0
    for job in jobs:
        assert [path for path in Path(job.manifest, "strikes").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("command", ["lading", "celery"])
def test_a_worker_serves_and_ends_well(
    command: str, start: Start, broker: Broker, tmp_path: Path, tiny_encoder: Path
) -> None:
    """Requests of our clients and of plain Celery, and shards; on SIGTERM with both in flight it ends with 0 and leaves no lease behind."""
    url = load_settings().broker_url
    worker = start(command)
    job = submit(spec(tmp_path, tiny_encoder, "first", rows=60, shard_rows=20))
    with Client() as client:
        expected = client.encode(str(tiny_encoder), ["one", "two"], timeout_s=120)
    plain = Celery("application", broker=url, backend=url, set_as_current=False)
    kwargs = {"version": 1, "verb": "encode", "model": str(tiny_encoder), "inputs": ["one", "two"]}
    sent = plain.send_task("lading.request", kwargs=kwargs, queue=REQUESTS)
    other = Celery("another", backend=url, set_as_current=False)
    found: Any = AsyncResult(sent.id, app=other).get(timeout=60)
    assert (found["version"], found["vectors"]["shape"]) == (1, [2, 32])

    async def ask() -> list[np.ndarray]:
        async with AsyncClient() as client:
            calls = [client.encode(str(tiny_encoder), ["one", "two"]) for _ in range(4)]
            ticket = await client.submit_encode(str(tiny_encoder), ["one", "two"])
            return [*await asyncio.gather(*calls), await ticket.wait(60)]

    for vectors in asyncio.run(ask()):
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    worker.until(lambda: ended(job.job))
    assert pq.read_table(tmp_path / "out/first").num_rows == 60

    second = submit(spec(tmp_path, tiny_encoder, "second", rows=4000, shard_rows=100, words=40))
    worker.until(lambda: markers(second))
    with Client() as client:
        tickets = [client.submit_encode(str(tiny_encoder), [f"late {n}"] * 8) for n in range(50)]
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0, worker.said()
        check_quiet(broker, second)
        waiting = broker.queue(REQUESTS).counts().waiting
        assert sum(ticket.done() for ticket in tickets) + waiting == 50
    assert "Traceback" not in worker.said()
    assert len(markers(second)) < 40 or ended(second.job)


@pytest.mark.parametrize("command", ["lading", "celery"])
def test_two_interrupts_end_a_worker_at_once(
    command: str, start: Start, broker: Broker, tmp_path: Path, tiny_encoder: Path
) -> None:
    """Ctrl-C twice gives back what is in flight, however long the grace is, and ends with 0; nothing is held against the shard."""
    worker = start(command, LADING_GRACE_S="3600")
    worker.until(lambda: broker.workers("cpu"))
    job = submit(spec(tmp_path, tiny_encoder, "long", rows=20_000, shard_rows=20_000, words=40))
    notes = Path(job.manifest, "strikes")
    worker.until(lambda: list(notes.glob("*/begun.*")))
    worker.send(signal.SIGINT)
    worker.until(lambda: STOPPING in worker.said())  # two pending signals of a kind would be one
    worker.send(signal.SIGINT)
    assert worker.wait() == 0, worker.said()
    assert markers(job) == []
    assert broker.queue(SHARDS).counts().waiting == 1
    check_quiet(broker, job)
    assert "Traceback" not in worker.said()


def test_a_killed_worker_is_started_again(start: Start, broker: Broker) -> None:
    """By the command that started it; a stop that meets the new one before it has begun is an orderly end too."""
    lading = start("lading")
    lading.until(lambda: broker.workers("cpu"))
    (first,) = lading.children()
    broker.client.delete("lading.workers.cpu")  # the dead one would be counted for a minute
    os.kill(first, signal.SIGKILL)
    lading.until(lambda: broker.workers("cpu"))
    (second,) = lading.children()
    assert second != first
    assert "was killed by SIGKILL" in lading.said()
    os.kill(second, signal.SIGKILL)
    lading.until(lambda: (children := lading.children()) and second not in children)
    lading.send(signal.SIGTERM)
    assert lading.wait() == 0, lading.said()


@pytest.mark.parametrize(
    ("options", "variable", "told"),
    [
        (("--pool", "cpus"), {}, "there is no pool 'cpus'"),
        ((), {"BROKER_URL": "http://:s3cret@here/0"}, "http://***@here/0: must begin with redis://"),
        ((), {"BROKER_URL": "redis://:s3cret/x@here/0"}, "expected HOST:PORT/DB"),
        (("--devices", "cuda:0"), {}, "device cuda:0 is none for pool cpu"),
        (("--devices", "tpu"), {}, "device tpu is none for pool cpu"),
    ],
)
@pytest.mark.parametrize("verb", ["worker", "up", "autoscale"])
def test_what_cannot_run_is_refused(
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    options: Sequence[str],
    variable: dict[str, str],
    told: str,
) -> None:
    """Exit code 2, one line that says why, no password in it, and no process is started."""
    for name, value in variable.items():
        monkeypatch.setenv(f"LADING_{name}", value)
    assert main([verb, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert "s3cret" not in line


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ({"LADING_POOL": "cpus"}, "there is no pool 'cpus'"),
        ({"LADING_DEVICE": "cuda"}, "device cuda is none for pool cpu"),
        ({"LADING_BROKER_URL": "redis://:s3cret/x@here/0"}, "expected HOST:PORT/DB"),
    ],
)
def test_celery_refuses_the_same(start: Start, environment: None, variable: dict[str, str], told: str) -> None:
    """Also without our command: exit code 2, which tells a supervisor not to try again, and a line without a traceback."""
    worker = start("celery", **variable)
    assert worker.wait() == 2, worker.said()
    assert [line for line in worker.said().splitlines() if line.startswith("lading: ") and told in line]
    assert "Traceback" not in worker.said()
    assert "s3cret" not in worker.said()


def test_a_broker_that_is_not_there_is_waited_for(
    start: Start, tmp_path: Path, tiny_encoder: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start, and when it is restarted in the middle: the worker says so, waits, and goes on. The password is in none of its words."""
    own_redis.kill()
    own_redis.extra = ("--requirepass", "s3cret")
    url = own_redis.url.replace("redis://", "redis://:s3cret@")
    for name, value in settings(url, tmp_path, tiny_encoder).items():
        monkeypatch.setenv(name, value)
    broker = Broker.connect(url)
    lading = Process([*LADING, "-v", "worker"], {"LADING_LEASE_S": "2"}, tmp_path / "lading.log")
    try:
        lading.until(lambda: "cannot reach the broker" in lading.said())
        own_redis.start()
        with Client() as client:
            assert len(client.encode(str(tiny_encoder), ["a"], timeout_s=120)) == 1
        job = submit(spec(tmp_path, tiny_encoder, "job", rows=2000, shard_rows=100, words=20))
        lading.until(lambda: markers(job))
        own_redis.kill()
        own_redis.start()
        lading.until(lambda: ended(job.job))
        with Client() as client:
            assert len(client.encode(str(tiny_encoder), ["b"], timeout_s=120)) == 1
        # An acknowledgement that the broker lost comes back when its lease has run out, and is found done.
        lading.until(lambda: broker.queue(SHARDS).counts().in_flight == broker.queue(SHARDS).counts().waiting == 0)
        (child,) = lading.children()
        lading.send(signal.SIGTERM)
        assert lading.wait() == 0, lading.said()
    finally:
        lading.close()
    assert "process restarts" not in lading.said()
    assert not alive(child)
    check_quiet(broker, job)
    assert pq.read_table(tmp_path / "out/job").num_rows == 2000
    assert "s3cret" not in lading.said()
    assert "Traceback" not in lading.said()


def test_a_worker_stops_while_the_broker_is_away(
    start: Start, tmp_path: Path, tiny_encoder: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for what may never come back."""
    for name, value in settings(own_redis.url, tmp_path, tiny_encoder).items():
        monkeypatch.setenv(name, value)
    broker = Broker.connect(own_redis.url)
    celery = start("celery", "-l", "INFO")
    celery.until(lambda: broker.workers("cpu"))
    own_redis.kill()
    celery.until(lambda: "cannot reach the broker" in celery.said())
    celery.send(signal.SIGTERM)
    assert celery.wait() == 0, celery.said()
    assert "mingle" not in celery.said()  # it would die of an outage in that moment


def test_up_runs_all_that_a_machine_needs(start: Start, broker: Broker, tmp_path: Path, tiny_encoder: Path) -> None:
    """A worker and the scheduler, which keeps a job's window filled; both end with the command."""
    up = start("up")
    up.until(lambda: len(up.children()) == 2 and broker.workers("cpu"))
    children = up.children()
    job = submit(spec(tmp_path, tiny_encoder, "job", rows=400, shard_rows=10))
    assert job.sent < job.shards
    up.until(lambda: ended(job.job))
    assert pq.read_table(tmp_path / "out/job").num_rows == 400
    up.send(signal.SIGTERM)
    assert up.wait() == 0, up.said()
    assert not any(map(alive, children))
    check_quiet(broker, job)
    assert "Traceback" not in up.said()
