"""What workers say of the models they hold: who can read it, whose word counts, and `lading worker status`."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lading.cli import main
from lading.config.settings import load as load_settings
from lading.pipelines.registry import Registry
from lading.schedulers import pools
from lading.schedulers.bodies import RequestOptions
from lading.schedulers.connection import FORGOTTEN_S, Broker
from lading.schedulers.pools import Preload
from lading.schedulers.reports import held, on_device, process_of, worker_name
from lading.workers.models import called
from lading.workers.worker import Worker
from tests.redis_server import RedisServer

KEY = "lading.residents.cpu"
REPORT = {"version": 1, "models": [{"weights": "w", "tier": "device"}, {"weights": "h", "tier": "host"}]}


@pytest.fixture
def broker(redis_server: RedisServer, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Broker:
    settings = {"BROKER_URL": redis_server.url, "JOBS": f"{tmp_path}/jobs", "LEASE_S": "1", "THREADS": "1"}
    settings["ROOTS"] = f"{tmp_path},{tiny_encoder.parent.parent}"
    for name, value in settings.items():
        monkeypatch.setenv(f"LADING_{name}", value)
    return Broker.connect(redis_server.url)


@pytest.fixture
def make(broker: Broker) -> Iterator[Callable[..., Worker]]:
    """Workers of a pool with these models in advance; a test that starts one stops it."""
    made: list[Worker] = []

    def worker(*preload: Preload) -> Worker:
        settings = load_settings()
        pool = dataclasses.replace(pools.find(pools.load(), "cpu"), preload=preload)
        made.append(Worker(pool, settings, broker, Registry(settings.jobs)))
        return made[-1]

    yield worker
    for one in made:
        one.residents.close()


def until(claim: Callable[[], object]) -> None:
    """Wait for something that will be; the deadline is for a test that has failed."""
    deadline = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"model": "BAAI/bge-m3", "folder": "/cache/snapshots/56", "origin": "hub cache"}, "BAAI/bge-m3"),
        ({"model": "org/a", "folder": "/cache/56", "origin": "hub", "adapter": "org/lora"}, "org/a + org/lora"),
        ({"model": "models/a", "folder": "/srv/models/a", "origin": "folder"}, "/srv/models/a"),
    ],
)
def test_a_model_has_one_name(said: dict[str, str], name: str) -> None:
    """Whoever asked for it first, a job or a request: its name on the hub, else its folder's whole path."""
    assert called(said) == name


def test_whose_word_counts(broker: Broker) -> None:
    """Only living workers are heard; what the others said goes with the next word of a living one, all of it when nobody speaks for long."""
    broker.publish_report("cpu", "dead", REPORT)  # it never said that it lives
    broker.alive("cpu", "living")
    assert broker.reports("cpu") == {}
    broker.publish_report("cpu", "living", REPORT)
    assert broker.reports("cpu") == {"living": REPORT}
    assert broker.client.hkeys(KEY) == [b"living"]
    assert 0 < broker.client.ttl(KEY) <= FORGOTTEN_S
    assert broker.reports("gpu") == {}
    broker.client.hset(KEY, "living", "no JSON")
    assert broker.reports("cpu") == {}
    broker.publish_report("cpu", "living", REPORT)
    broker.gone("cpu", "living")
    assert not broker.client.exists(KEY)


def test_what_is_on_a_device() -> None:
    """Weights on the device of any worker; a report that this release cannot read holds nothing, and hides no other."""
    other = {"version": 1, "models": [{"weights": "x", "tier": "device"}]}
    newer, broken = {**other, "version": 2}, {"version": 1, "models": None}
    assert on_device({"a": REPORT, "b": newer, "c": broken}) == {"w"}
    assert on_device({"a": REPORT, "b": other}) == {"w", "x"}
    assert on_device({}) == frozenset()


def test_who_holds_least(broker: Broker, make: Callable[..., Worker]) -> None:
    """A worker says how many messages it has; the process of one of this host is known by its name; who says nothing may hold anything."""
    worker = make()
    worker.shards.send([b"1", b"2", b"3"])
    worker.requests.send([b"4"])
    assert held(worker.report()) == 0
    leases = worker.leases.pull(worker.shards, 2)
    worker.leases.pull(worker.requests, 1)
    assert held(worker.report()) == 3
    worker.leases.release(worker.shards, leases)
    assert worker.report()["held"] == {"shards": 0, "requests": 1}
    assert (
        held({"version": 1}) == held({**worker.report(), "version": 2}) == held({"version": 1, "held": 3}) == math.inf
    )
    assert process_of(worker.name, socket.gethostname()) == os.getpid()
    assert process_of(worker_name("a.b-c", 12, "d0e"), "a.b-c") == 12
    assert process_of(worker_name("a.b-c", 12, "d0e"), "a.b") is None
    assert process_of("nobody", "a.b") is None


def test_a_report_that_is_refused_holds_up_nothing(
    broker: Broker, make: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    """Where Redis does not take it, leases are renewed all the same, and the reason is told once."""
    worker = make()
    broker.client.set(KEY, "in the way")
    worker.shards.send([b"1"])
    (lease,) = worker.leases.pull(worker.shards, 1)
    with caplog.at_level(logging.WARNING):
        worker._keep_once()
        worker._keep_once()
    assert broker.workers("cpu") == 1
    assert worker.leases.held(worker.shards) == [lease]
    told = [one.message for one in caplog.records if "report refused" in one.message]
    assert len(told) == 1
    assert "WRONGTYPE" in told[0]
    broker.client.delete(KEY)
    worker._keep_once()
    assert list(broker.reports("cpu")) == [worker.name]


def test_status_of_a_worker(
    broker: Broker, make: Callable[..., Worker], tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Budget, models with their tiers, loads, and what it had no memory for, in words and in JSON; nothing once it has stopped."""
    model, options = str(tiny_encoder), RequestOptions()
    worker = make(Preload("encode", model, options, pin=True))
    worker.start()

    def said() -> dict[str, Any]:
        return broker.reports("cpu").get(worker.name, {"models": []})

    until(lambda: said()["models"] and said()["models"][0]["tier"] == "device")
    _, adapter, _ = worker.models("encode", model, options)
    with worker.residents.holding(adapter):
        pass
    worker.engine.gauges.out_of_memory = 2
    worker.engine.limits.exhausted(adapter.weights, 3000)
    until(lambda: said().get("limits"))
    assert main(["worker", "status", "--pool", "cpu", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    (one,) = found["models"]
    assert (found["pool"], found["worker"], found["device"]) == ("cpu", worker.name, "cpu")
    assert (one["model"], one["tier"], one["pinned"], one["in_use"]) == (model, "device", True, 0)
    assert found["budget_bytes"] == worker.pool.memory_bytes
    assert found["resident_bytes"] == one["bytes"] + one["working_bytes"] > 0
    assert (found["loads"], found["evictions"], found["out_of_memory"]) == ({"disk": 1}, {}, 2)
    assert found["load_s"]["disk"] > 0
    assert (found["batches"], found["misses"], found["hit_rate"]) == (1, 1, 0.5)
    assert found["limits"] == {model: 1500}
    assert main(["worker", "status"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"pool cpu: 1 worker\n  {worker.name} on cpu: ")
    assert f"    {model}: device, " in text
    assert ", pinned, batches of at most 1,500 tokens\n" in text
    assert (
        "    ran 1 batch, 50% of the time the model was there, 2 batches without memory\n    came: 1 from disk in "
        in text
    )
    assert text.endswith("pool gpu: 0 workers\n")
    worker.stop(30.0, threading.Event())
    assert main(["worker", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert not broker.client.exists(KEY)


def test_status_of_workers_that_say_nothing_readable(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    """One that has said nothing yet and one of another release are named, and are not in the JSON."""
    broker.alive("cpu", "a")
    broker.alive("cpu", "b")
    broker.publish_report("cpu", "b", {"version": 7})
    assert main(["worker", "status", "--pool", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pool cpu: 2 workers",
        "  a: has not said yet what it holds",
        "  b: its report has version 7, this release reads 1: ask with its own",
    ]
    assert main(["worker", "status", "--pool", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["status", "--pool", "cpuu"], "there is no pool 'cpuu'; did you mean 'cpu'?"),
        (["--pool", "cpu", "status"], "go without `status`, its own behind it"),
    ],
)
def test_what_status_refuses(broker: Broker, command: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown pool, and options of a worker to be started: 2, and no worker starts."""
    assert main(["worker", *command]) == 2
    assert told in capsys.readouterr().err
    assert broker.workers("cpu") == 0
