"""The series of who sweeps: each job that ends is counted once, with how it ended, by the process that leads."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lading.config.errors import BrokerError
from lading.pipelines import endings, sweep_meter
from lading.pipelines.steering import cancel, retry
from lading.pipelines.submit import Queues
from lading.pipelines.sweep import Sweeper
from lading.pipelines.sweep_meter import SweepMeter
from tests.processes import LADING, Process
from tests.queued import job_spec, publish, queues, submitted, work
from tests.redis_server import RedisServer
from tests.scraping import Scraped, free_port, get, lint, scrape
from tests.test_metrics_exporter import reachable
from tests.test_sweep import Clock

LEAD_S = 60.0


@pytest.fixture
def at(redis_server: RedisServer, tmp_path: Path) -> Queues:
    return queues(redis_server.url, tmp_path)


class Swept:
    """A process that sweeps, and counts."""

    def __init__(self, at: Queues) -> None:
        self.clock, self.meter = Clock(), SweepMeter()
        self.sweeper = Sweeper(at.broker, at.registry, at.pools, lease_s=at.lease_s, clock=self.clock)

    def once(self, after_s: float = 2.0) -> Scraped:
        self.clock.now += after_s
        self.meter.swept(self.sweeper.sweep(lead_s=LEAD_S), 0.5)
        return Scraped.of(self.meter.book.registry)


def jobs(found: Scraped) -> dict[str, float]:
    return {one.labels["outcome"]: one.value for one in found.samples if one.name == "lading_jobs_total" and one.value}


def test_jobs_are_counted_as_they_end(at: Queues, tmp_path: Path, tiny_encoder: Path) -> None:
    """Done, failed and cancelled; open ones are told meanwhile."""
    process = Swept(at)
    assert jobs(process.once()) == {}
    done, failed, cancelled = (submitted(at, job_spec(tmp_path, tiny_encoder, name, 2)).job for name in "abc")
    assert process.once().value("jobs_open") == 3
    bad = at.registry.find(failed).open()
    for shard in range(2):
        publish(bad, shard, failed="no such file")
    cancel(at.registry, cancelled)
    work(at)
    found = process.once()
    assert not at.registry.is_open(done)
    assert jobs(found) == {"done": 1, "cancelled": 1}
    assert found.value("job_duration_seconds_count", op="encode") == 1
    assert 0 <= found.value("job_duration_seconds_sum", op="encode") < 600
    found = process.once(after_s=6.0)
    found = process.once(after_s=600.0)
    assert jobs(found) == {"done": 1, "cancelled": 1, "failed": 1}
    assert found.value("jobs_open") == 1
    for _ in range(3):
        found = process.once(after_s=600.0)
    assert jobs(found) == {"done": 1, "cancelled": 1, "failed": 1}
    assert found.value("sweep_seconds_count") == 8
    assert found.value("sweep_seconds_sum") == 4.0
    assert lint(found.text) == ""


def test_a_job_that_nobody_saw_running_is_counted(at: Queues, tmp_path: Path, tiny_encoder: Path) -> None:
    """One that ended between two passes is found among the closed ones, within a minute."""
    process = Swept(at)
    process.once()
    job = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 2)).job
    work(at)
    assert not at.registry.is_open(job)
    found = process.once(after_s=endings.LOOK_S + 1)
    assert jobs(found) == {"done": 1}
    entry = at.registry.find(job)
    ended = (entry.open().manifest.closed() or {})["ended"]
    assert found.value("job_duration_seconds_sum", op="encode") == pytest.approx(ended - entry.created)
    assert jobs(process.once(after_s=endings.LOOK_S + 1)) == {"done": 1}


def test_a_job_that_is_tried_again_ends_again(at: Queues, tmp_path: Path, tiny_encoder: Path) -> None:
    """Failed first, done at last."""
    process = Swept(at)
    process.once()
    job = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 1)).job
    publish(at.registry.find(job).open(), 0, failed="no such file")
    process.once()
    assert jobs(process.once(after_s=6.0)) == {"failed": 1}
    retry(at, job)
    process.once()
    work(at)
    assert jobs(process.once(after_s=endings.LOOK_S + 1)) == {"failed": 1, "done": 1}


def test_a_new_process_counts_nothing_twice(at: Queues, tmp_path: Path, tiny_encoder: Path) -> None:
    """What had ended before it began, well or not, is no news to it; nor to one that leads again after another did."""
    first = Swept(at)
    first.once()
    for name in "ab":
        submitted(at, job_spec(tmp_path, tiny_encoder, name, 1))
    [bad] = [entry for entry in at.registry.list_open() if entry.output.endswith("/b")]
    publish(bad.open(), 0, failed="no such file")
    first.once()
    work(at)
    first.once(after_s=6.0)
    assert jobs(first.once(after_s=600.0)) == {"done": 1, "failed": 1}
    at.broker.client.delete("lading.sweeper")
    second = Swept(at)
    for _ in range(3):
        found = second.once(after_s=600.0)
    assert jobs(found) == {}
    assert found.value("jobs_open") == 1
    for _ in range(sweep_meter.LEAD):
        found = first.once()
    assert not found.values("jobs_open")
    submitted(at, job_spec(tmp_path, tiny_encoder, "c", 1))
    second.once()
    work(at)
    assert jobs(second.once(after_s=endings.LOOK_S + 1)) == {"done": 1}
    at.broker.client.delete("lading.sweeper")
    for _ in range(3):
        found = first.once(after_s=600.0)
    assert jobs(found) == {"done": 1, "failed": 1}


def test_a_damaged_job_stops_no_count(at: Queues, tmp_path: Path, tiny_encoder: Path) -> None:
    """How it ended is not known, and is said; the pass and the other jobs go on."""
    process = Swept(at)
    process.once()
    for name in "ab":
        submitted(at, job_spec(tmp_path, tiny_encoder, name, 1))
    process.once()
    work(at)
    closed = sorted(tmp_path.glob("registry/closed/*.json"))
    closed[0].write_text("{")
    assert jobs(process.once()) == {"done": 1}


def test_a_pass_that_breaks_off_loses_no_end(at: Queues, tmp_path: Path, tiny_encoder: Path) -> None:
    """What it had seen to end, well or not, is told by the next pass that comes to its own end, once."""
    process = Swept(at)
    process.once()
    for name in "ab":
        submitted(at, job_spec(tmp_path, tiny_encoder, name, 1))
    [bad] = [entry for entry in at.registry.list_open() if entry.output.endswith("/b")]
    publish(bad.open(), 0, failed="no such file")
    process.once()
    work(at)
    redis = at.broker.client
    redis.execute_command("ACL", "SETUSER", "default", "resetkeys", "~lading.sw*", "~*.requests*", "~*.shards*")
    try:
        for after_s in (6.0, 600.0):
            with pytest.raises(BrokerError) as denied:
                process.once(after_s)
            assert "publish_totals" in {step.name for step in denied.traceback}
    finally:
        redis.execute_command("ACL", "SETUSER", "default", "allkeys")
    for _ in range(2):
        assert jobs(process.once()) == {"done": 1, "failed": 1}


def test_health_is_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ready before the first, unhealthy when none has ended for long; another's lead is as good."""
    meter = SweepMeter()
    assert (meter.unready(), meter.unhealthy()) == ("no pass yet", "")
    meter.swept(None, 0.0)
    assert (meter.unready(), meter.unhealthy()) == ("", "")
    later = time.monotonic() + sweep_meter.UNSWEPT_S + 1
    monkeypatch.setattr(sweep_meter.time, "monotonic", lambda: later)
    assert meter.unhealthy().startswith("unswept: no pass has ended for 60")
    assert meter.unready() == meter.unhealthy()


def test_the_command_serves_it(redis_server: RedisServer, tmp_path: Path, tiny_encoder: Path) -> None:
    """`lading scheduler --metrics-port`; a port in use is refused with 2, and without one nothing listens."""
    at = queues(redis_server.url, tmp_path)
    port = free_port()
    environment = {"LADING_BROKER_URL": redis_server.url, "LADING_JOBS": str(tmp_path / "registry")}
    environment["LADING_SWEEP_INTERVAL_S"] = "0.1"
    process = Process((*LADING, "scheduler", "--metrics-port", str(port)), environment, tmp_path / "log")
    try:
        process.until(lambda: reachable(port) and get(port, "/readyz")[0] == 200)
        assert get(port, "/healthz") == (200, "ok\n")
        process.until(lambda: scrape(port).value("sweep_seconds_count") >= 1)
        submitted(at, job_spec(tmp_path, tiny_encoder, "a", 2))
        process.until(lambda: scrape(port).value("jobs_open") == 1)
        work(at)
        process.until(lambda: scrape(port).value("jobs_total", op="encode", outcome="done") == 1)
        second = Process((*LADING, "scheduler", "--metrics-port", str(port)), environment, tmp_path / "second")
        assert second.wait() == 2
        assert second.said().startswith(f"lading: metrics cannot be served on 127.0.0.1:{port} ")
    finally:
        process.close()


def test_a_scheduler_whose_passes_fail_is_not_ready(redis_server: RedisServer, tmp_path: Path) -> None:
    """A pass that could not read LADING_JOBS is none that has ended; with the store back, it is ready."""
    port, registry = free_port(), tmp_path / "registry"
    environment = {
        "LADING_BROKER_URL": redis_server.url,
        "LADING_JOBS": str(registry),
        "LADING_SWEEP_INTERVAL_S": "0.1",
    }
    registry.mkdir()
    (registry / "open").write_text("in the way")
    process = Process((*LADING, "scheduler", "--metrics-port", str(port)), environment, tmp_path / "log")
    try:
        process.until(lambda: process.said().count("sweep failed") >= 3)
        assert get(port, "/readyz") == (503, "no pass yet\n")
        assert scrape(port).total("sweep_seconds_count") == 0
        (registry / "open").unlink()
        process.until(lambda: get(port, "/readyz")[0] == 200)
    finally:
        process.close()
