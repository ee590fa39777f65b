"""How a worker's life ends: by itself when it has nothing to do, and within its notice when it is told to, real processes all."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lading.config.settings import load as load_settings
from lading.pipelines.manifest import Work
from lading.pipelines.records import Shard
from lading.schedulers.connection import Broker
from lading.workers.ending import Idleness, too_long
from lading.workers.leases import Leases
from lading.workers.parts import ShardInFlight
from tests.processes import LADING, Process
from tests.redis_server import RedisServer
from tests.test_worker_process import SHARDS, check_quiet, ended, markers, settings, spec, submit


@pytest.fixture
def broker(redis_server: RedisServer, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Broker:
    for name, value in settings(redis_server.url, tmp_path, tiny_encoder).items():
        monkeypatch.setenv(name, value)
    return Broker.connect(load_settings().broker_url)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_a_worker_ends_when_it_is_idle(
    broker: Broker, stack: contextlib.ExitStack, tmp_path: Path, tiny_encoder: Path
) -> None:
    """With exit code 0, and after all of the work: what comes within the time is still done."""
    first = submit(spec(tmp_path, tiny_encoder, "first", rows=60, shard_rows=20))
    worker = Process([*LADING, "worker", "--exit-when-idle", "3"], {}, tmp_path / "worker.log")
    stack.callback(worker.close)
    worker.until(lambda: ended(first.job))
    second = submit(spec(tmp_path, tiny_encoder, "second", rows=60, shard_rows=20))
    assert worker.wait() == 0, worker.said()
    assert ended(second.job)
    check_quiet(broker, first, second)
    assert "worker idle" in worker.said()
    assert "process restarts" not in worker.said()
    assert "Traceback" not in worker.said()


def test_what_comes_and_goes_between_two_looks_is_no_idleness(redis_server: RedisServer) -> None:
    """Also where each is done long before the next look, so that no look ever finds anything."""
    queue, leases, ended_at = Broker.connect(redis_server.url).queue(SHARDS), Leases(60.0), list[float]()
    stopping = threading.Event()
    Idleness([queue], leases, 1.0, lambda: ended_at.append(time.monotonic()), stopping).start()
    last = 0.0
    for _ in range(12):
        queue.send([b"{}"])
        leases.done(queue, leases.pull(queue, 1))
        last = time.monotonic()
        time.sleep(0.2)
        assert not ended_at
    while not ended_at and time.monotonic() < last + 30:
        time.sleep(0.05)
    stopping.set()
    assert ended_at[0] - last >= 1.0


def test_a_worker_is_not_idle_while_it_holds_something(
    broker: Broker, stack: contextlib.ExitStack, tmp_path: Path, tiny_encoder: Path
) -> None:
    """Though nothing waits any more."""
    job = submit(spec(tmp_path, tiny_encoder, "job", rows=20_000, shard_rows=20_000, words=40))
    environment = {"LADING_GRACE_S": "0"}  # to end in the middle of it would show
    worker = Process([*LADING, "worker", "--exit-when-idle", "0.05"], environment, tmp_path / "worker.log")
    stack.callback(worker.close)
    assert worker.wait() == 0, worker.said()
    assert len(markers(job)) == 1
    assert broker.queue(SHARDS).counts().waiting == 0


def test_a_shard_that_does_not_fit_into_the_grace_is_given_back_at_once(
    broker: Broker, stack: contextlib.ExitStack, tmp_path: Path, tiny_encoder: Path
) -> None:
    """Within a notice of seconds no time is spent on what will not be finished: the shard goes back, nothing held against it."""
    job = submit(spec(tmp_path, tiny_encoder, "long", rows=200_000, shard_rows=200_000, words=40))
    worker = Process([*LADING, "worker"], {"LADING_GRACE_S": "5"}, tmp_path / "worker.log")
    stack.callback(worker.close)
    worker.until(lambda: list(Path(job.manifest, "strikes").glob("*/begun.*")))
    worker.send(signal.SIGTERM)
    told = time.monotonic()
    worker.until(lambda: broker.queue(SHARDS).counts().waiting)
    back_s = time.monotonic() - told
    assert worker.wait() == 0, worker.said()
    print(f"given back after {back_s:.1f} s, ended after {time.monotonic() - told:.1f} s")
    assert "shards do not fit" in worker.said()
    assert markers(job) == []
    assert broker.queue(SHARDS).counts().waiting == 1
    check_quiet(broker, job)
    assert "Traceback" not in worker.said()


# -- what fits, purely


def shard(rows: int | None, *, done: int, seconds: float, started: bool = True) -> ShardInFlight:
    """Of which so many rows took so long."""
    task: Any = SimpleNamespace(work=Work(Shard(0, 0, 0, 0, rows), 0, None))
    part: Any = SimpleNamespace(prepared=SimpleNamespace(costs=np.ones(1000)), rows=SimpleNamespace(count=1000))
    part.missing = 1000 - done
    return ShardInFlight(task, [part], started=started, seconds={"device": seconds})


@pytest.mark.parametrize(
    ("one", "needs_s"),
    [
        (shard(2000, done=500, seconds=1.0), 3.0),
        (shard(1000, done=500, seconds=1.0), 1.0),
        (shard(1000, done=1000, seconds=1.0), 0.0),
        (shard(1000, done=0, seconds=0.0), 0.0),
        (shard(None, done=500, seconds=1.0), 0.0),
    ],
)
def test_what_a_shard_still_needs(one: ShardInFlight, needs_s: float) -> None:
    """By its own rows so far; where that says nothing, nothing is said."""
    assert one.needs_s() == needs_s


def test_what_is_too_long() -> None:
    """The shard that is next to be finished decides, and none while another is being written."""
    next_one, other = shard(2000, done=500, seconds=1.0), shard(1000, done=900, seconds=9.0)
    waiting = shard(10_000, done=1, seconds=9.0, started=False)
    given = [next_one.task, other.task]
    assert too_long(given, [next_one, other], left_s=2.9) == 3.0
    assert too_long(given, [next_one, other], left_s=3.1) == 0.0
    assert too_long(given, [other], left_s=0.5) == 0.0  # the first one is done, and being written
    assert too_long([], [waiting], left_s=0.5) == 0.0
    assert too_long([waiting.task, other.task], [waiting, other], left_s=0.5) == 1.0
