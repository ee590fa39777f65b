"""`lading scheduler` as a process of its own: it fills windows, outlives its broker, and stops in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lading.pipelines.submit import Queues
from lading.schedulers.connection import Broker
from tests.queued import job_spec, queues, submitted, work
from tests.redis_server import RedisServer


@pytest.fixture
def at(own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queues:
    monkeypatch.setenv("LADING_BROKER_URL", own_redis.url)
    monkeypatch.setenv("LADING_JOBS", str(tmp_path / "registry"))
    return queues(own_redis.url, tmp_path)


def environment() -> dict[str, str]:
    return {**os.environ, "LADING_SWEEP_INTERVAL_S": "0.05", "PYTHONUNBUFFERED": "1"}


def scheduler() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lading.cli", "-v", "scheduler", "--json"]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def until(process: subprocess.Popen[str], wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if wanted(swept := json.loads(line)):
            return swept
    raise AssertionError(process.communicate()[1])


def test_the_scheduler_keeps_jobs_going_and_stops_in_order(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """It fills the window pass after pass, and ends with 0 when asked to."""
    job = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 20)).job
    process = scheduler()
    until(process, lambda swept: swept["left"]["cpu"] == 20)
    done = 0
    while done < 20:
        done += len(work(at))
        until(process, lambda swept: True)
    assert not at.registry.is_open(job)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "ending the pass" in err


def test_the_scheduler_outlives_its_broker(at: Queues, own_redis: RedisServer, tmp_path: Path, tiny_encoder: Path):
    """Redis is killed and comes back without its memory: the scheduler waits, says so once, and sends again."""
    submitted(at, job_spec(tmp_path, tiny_encoder, "a", 4))
    process = scheduler()
    until(process, lambda swept: swept["left"]["cpu"] == 4)
    own_redis.kill()
    assert process.stderr is not None
    for line in process.stderr:
        if "broker away" in line:
            break
    for file in own_redis.folder.glob("appendonlydir/*"):
        file.unlink()
    own_redis.start()
    assert until(process, lambda swept: swept["sent"])["sent"] == 4
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.count("broker back") == 1
    assert Broker.connect(own_redis.url).queue("lading.cpu.shards").counts().waiting == 4
