"""/healthz and /readyz of a worker: progress, not an answer to a ping."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lading.schedulers.bodies import RequestOptions
from lading.schedulers.pools import Preload
from lading.workers import health
from lading.workers.health import HUNG_LEASES, UNHEARD_LEASES, Pulse
from lading.workers.leases import RENEWALS
from tests.processes import LADING, Process
from tests.redis_server import RedisServer
from tests.scraping import free_port, get, scrape
from tests.swapping import Kind, Workers, until
from tests.test_metrics import told_by
from tests.test_metrics_exporter import reachable


def test_a_batch_that_does_not_end_is_stuck() -> None:
    """After as many renewals without movement as the hang counter allows, told once; movement, or no batch, mends it."""
    pulse = Pulse(10.0, now=0.0)
    told = [pulse.renewed(float(n), running=True, moved=False) for n in range(HUNG_LEASES * RENEWALS)]
    assert told == [False] * (HUNG_LEASES * RENEWALS - 1) + [True]
    assert pulse.unhealthy(float(HUNG_LEASES * RENEWALS)) == "stuck: a batch has not ended for 30 s"
    assert not pulse.renewed(60.0, running=True, moved=False)
    pulse.renewed(61.0, running=True, moved=True)
    assert pulse.unhealthy(61.0) == ""


def test_nothing_to_do_is_no_hang() -> None:
    pulse = Pulse(10.0, now=0.0)
    assert not any(pulse.renewed(float(n), running=False, moved=False) for n in range(100))
    assert pulse.unhealthy(100.0) == ""


def test_a_broker_out_of_reach_is_said_in_time() -> None:
    """Unready within a lease, unhealthy after many: an outage alone is no reason to load all models again."""
    pulse = Pulse(10.0, now=0.0)
    assert pulse.unready(0.0, preloading=False).startswith("broker")
    pulse.renewed(1.0, running=False, moved=False)
    assert pulse.unready(11.0, preloading=False) == ""
    assert pulse.unready(11.0, preloading=True).startswith("preload")
    assert pulse.unready(12.0, preloading=False) == "broker: not reached for 11 s"
    assert pulse.unhealthy(1.0 + UNHEARD_LEASES * 10) == ""
    assert pulse.unhealthy(2.0 + UNHEARD_LEASES * 10) == "unheard: the broker has not been reached for 101 s"


@pytest.fixture
def brief(own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """Workers with leases of a second, and a Redis that may be killed."""
    monkeypatch.setenv("LADING_LEASE_S", "1")
    made = Workers(own_redis.url, tmp_path, monkeypatch)
    yield made
    made.close()


def test_a_worker_is_ready_when_its_models_are(
    brief: Workers, kinds: list[Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before the preload, nor once it is told to stop."""
    one = brief.make(preload=(Preload("encode", str(kinds[0].folder), RequestOptions()),))
    gate = threading.Event()
    ready = one.residents.ready

    def waiting(recipe: Any) -> None:
        gate.wait()
        ready(recipe)

    monkeypatch.setattr(one.residents, "ready", waiting)
    assert one.worker.unready().startswith("preload")
    one.worker.start()
    until(lambda: one.worker.broker.workers("cpu"))
    assert one.worker.unready().startswith("preload")
    gate.set()
    until(lambda: one.worker.unready() == "")
    one.worker.stopping.set()
    assert one.worker.unready() == "stopping"


def test_a_worker_without_its_broker(brief: Workers, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unready, then unhealthy; both pass when the broker is there again."""
    monkeypatch.setattr(health, "UNHEARD_LEASES", 2)
    one = brief.make()
    one.worker.start()
    until(lambda: one.worker.unready() == "")
    own_redis.kill()
    until(lambda: one.worker.unready().startswith("broker"))
    until(lambda: one.worker.unhealthy().startswith("unheard"))
    own_redis.start()
    until(lambda: one.worker.unready() == one.worker.unhealthy() == "")


def test_a_worker_whose_device_hangs(brief: Workers, kinds: list[Kind], monkeypatch: pytest.MonkeyPatch) -> None:
    """Unhealthy while the batch does not end, however well the broker is reached."""
    one = brief.make(metered=True)
    _, adapter, _ = one.worker.models("encode", str(kinds[0].folder), RequestOptions())
    gate, run = threading.Event(), type(adapter).run

    def hanging(model: Any, parts: Any) -> Any:
        gate.wait()
        return run(model, parts)

    one.worker.models.preload(Preload("encode", str(kinds[0].folder), RequestOptions()))
    monkeypatch.setattr(type(adapter), "run", hanging)
    one.worker.start()
    asked = one.ask([(kinds[0], "a text")])
    try:
        until(lambda: one.worker.unhealthy() == "stuck: a batch has not ended for 3 s")
        assert one.worker.unready() == ""
        assert not told_by(one).values("worker_ready_seconds")
    finally:
        gate.set()
    one.until_told(asked)
    until(lambda: one.worker.unhealthy() == "")
    assert told_by(one).value("worker_ready_seconds") > 0


def test_processes_take_one_port_each(redis_server: RedisServer, tmp_path: Path, tiny_encoder: Path) -> None:
    """`lading up`: workers on the port and those after it, the scheduler on the next; one that is taken ends the command with 2."""
    first = consecutive(3)
    environment = {
        "LADING_BROKER_URL": redis_server.url, "LADING_JOBS": f"{tmp_path}/jobs", "LADING_THREADS": "1",
        "LADING_PRICE_PER_HOUR": "1.5", "LADING_SWEEP_INTERVAL_S": "0.2", "LADING_LEASE_S": "2",
    }  # fmt: skip
    words = (*LADING, "up", "--pool", "cpu", "--workers", "2", "--metrics-port", str(first))
    process = Process(words, environment, tmp_path / "log")
    try:
        for port in range(first, first + 3):
            process.until(lambda port=port: reachable(port) and get(port, "/readyz") == (200, "ok\n"))
            assert get(port, "/healthz") == (200, "ok\n")
        found = [scrape(port) for port in range(first, first + 3)]
        assert [len(one.values("worker_start_timestamp_seconds")) for one in found] == [1, 1, 0]
        assert found[0].value("worker_price_dollars_per_hour", pool="cpu", capacity="on-demand") == 1.5
        process.until(lambda: sum(len(scrape(port).values("jobs_open")) for port in range(first, first + 3)) == 1)
        assert all(one.value("build_info") == 1 for one in found)
        second = Process((*LADING, "worker", "--metrics-port", str(first)), environment, tmp_path / "second")
        try:
            assert second.wait() == 2
        finally:
            second.close()
        assert f"lading: metrics cannot be served on 127.0.0.1:{first} (Address already in use)" in second.said()
        assert "Traceback" not in second.said()
    finally:
        process.close()


def consecutive(count: int) -> int:
    """The first of some ports that nobody has."""
    while True:
        first = free_port()
        if first + count < 65536 and not any(reachable(port) for port in range(first, first + count)):
            return first
