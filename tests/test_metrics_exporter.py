"""`lading exporter` beside a real Redis: what it shows is there now, and nothing is shown that cannot be read."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import redis

from lading.schedulers.connection import Broker
from lading.schedulers.exporter import Exporter
from lading.schedulers.messages import Request, request_message
from lading.schedulers.pools import Pool
from lading.schedulers.sweeping import publish_totals
from tests.processes import LADING, Process, until
from tests.redis_server import RedisServer
from tests.scraping import Scraped, free_port, get, lint, scrape

POOLS = {
    "cpu": Pool(name="cpu", device="cpu", memory_bytes=1 << 32, max_workers=3),
    "gpu": Pool(name="gpu", device="cuda", memory_bytes=1 << 32, max_workers=2),
}


def fill(broker: Broker) -> None:
    """Two shards that wait for half a minute, one in flight, one given up; a request of now; a worker; ten shards left."""
    shards = broker.queue("lading.cpu.shards")
    messages = [request_message(Request("encode", "m", [f"{n}"]), id=f"{n}", now=time.time() - 30) for n in range(4)]
    shards.send(messages)
    taken, lost = shards.pull(2, 1 << 20)
    assert shards.bury(lost, "why")
    assert taken.raw == messages[0]
    broker.queue("lading.gpu.requests").send([b"it says nothing"])
    broker.alive("cpu", "w")
    publish_totals(broker, {"cpu": 10})


def check_filled(found: Scraped) -> None:
    cpu = {"pool": "cpu", "queue": "shards"}
    assert found.value("redis_up") == 1
    assert (found.value("queue_depth", **cpu), found.value("queue_inflight", **cpu)) == (2, 1)
    assert 28 < found.value("queue_oldest_age_seconds", **cpu) < 300
    assert (found.value("dead_letters", **cpu), found.total("dead_letters")) == (1, 1)
    assert (found.value("queue_depth", pool="gpu", queue="requests"), found.total("queue_depth")) == (1, 3)
    assert found.value("queue_oldest_age_seconds", pool="gpu", queue="requests") == 0
    assert (found.value("shards_left", pool="cpu"), len(found.values("shards_left"))) == (10, 1)
    assert (found.value("pool_max_workers", pool="cpu"), found.value("pool_max_workers", pool="gpu")) == (3, 2)
    assert found.value("pool_workers", pool="gpu") == 0
    assert found.value("redis_memory_used_bytes") > 100_000
    assert found.value("redis_evicted_keys_total") == 0


@pytest.fixture
def at(own_redis: RedisServer) -> Exporter:
    return Exporter(Broker.connect(own_redis.url, timeout_s=1.0), POOLS)


def test_it_shows_what_is_there(own_redis: RedisServer, at: Exporter) -> None:
    """Depths, flight, age, dead letters, workers and totals of each pool; how Redis is set up."""
    fill(Broker.connect(own_redis.url))
    found = Scraped.of(at.book.registry)
    check_filled(found)
    assert found.value("pool_workers", pool="cpu") == 1
    assert lint(found.text) == ""
    with redis.Redis(port=own_redis.port) as admin:
        for policy, expected in (("allkeys-lru", 0), ("noeviction", 1)):
            admin.config_set("maxmemory-policy", policy)
            assert Scraped.of(at.book.registry).value("redis_noeviction") == expected
        admin.config_set("maxmemory", 1 << 30)
        admin.config_set("appendonly", "no")
        found = Scraped.of(at.book.registry)
    assert found.value("redis_memory_max_bytes") == 1 << 30
    assert found.value("redis_aof_enabled") == 0


def test_a_broker_that_is_away_leaves_nothing_stale(own_redis: RedisServer, at: Exporter) -> None:
    """Killed, or there and silent: redis_up is 0 and nothing else is said; back again, all is."""
    fill(Broker.connect(own_redis.url))
    check_filled(Scraped.of(at.book.registry))
    own_redis.kill()
    check_away(Scraped.of(at.book.registry))
    assert at.unready() == "broker: not reached"
    own_redis.start()
    check_filled(Scraped.of(at.book.registry))
    assert at.unready() == ""
    assert own_redis.process is not None
    os.kill(own_redis.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    check_away(Scraped.of(at.book.registry))
    assert time.monotonic() - began < 60, "Prometheus would have given up long ago"
    os.kill(own_redis.process.pid, signal.SIGCONT)
    check_filled(Scraped.of(at.book.registry))


def check_away(found: Scraped) -> None:
    ours = {one.name for one in found.samples if one.name.startswith("lading_")}
    assert ours == {"lading_redis_up", "lading_build_info"}
    assert found.value("redis_up") == 0


def test_the_command_serves_it(own_redis: RedisServer, tmp_path: Path) -> None:
    """On its own port whatever the setting of workers says; a port in use is refused; it ends in order."""
    port = free_port()
    environment = {"LADING_BROKER_URL": own_redis.url, "LADING_METRICS_PORT": "1", "LADING_METRICS_BIND": "127.0.0.1"}
    words = (*LADING, "exporter", "--metrics-port", str(port))
    process = Process(words, environment, tmp_path / "log")
    try:
        process.until(lambda: reachable(port))
        assert get(port, "/readyz") == (200, "ok\n")
        assert scrape(port).value("pool_max_workers", pool="cpu") >= 1
        second = Process(words, environment, tmp_path / "second")
        assert second.wait() == 2
        assert f"metrics cannot be served on 127.0.0.1:{port}" in second.said()
        assert len(second.said().splitlines()) == 1
        own_redis.kill()
        status, why = get(port, "/readyz")
        assert (status, get(port, "/healthz")[0], scrape(port).value("redis_up")) == (503, 200, 0)
        assert why.startswith("broker: ")
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    finally:
        process.close()


def reachable(port: int) -> bool:
    try:
        return get(port, "/healthz")[0] == 200
    except OSError:
        return False


def test_a_password_is_not_told(own_redis: RedisServer, tmp_path: Path) -> None:
    """Neither by the pages nor in the log, though the broker refuses it."""
    port = free_port()
    url = own_redis.url.replace("redis://", "redis://someone:canary-5up3r@")
    words = (*LADING, "exporter", "--metrics-port", str(port))
    process = Process(words, {"LADING_BROKER_URL": url}, tmp_path / "log")
    try:
        process.until(lambda: reachable(port))
        pages = [get(port, path)[1] for path in ("/metrics", "/healthz", "/readyz")]
        assert pages[2] == "broker: not reached\n"
        until(lambda: "refuses this user" in process.said())
        for text in (*pages, process.said()):
            assert "canary" not in text
    finally:
        process.close()
