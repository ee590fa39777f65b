"""Scaling on a real Redis with real worker processes: from none to some and back, no work interrupted, nothing lost, each row once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lading.cli import main
from lading.config.settings import load as load_settings
from lading.pipelines import Client
from lading.schedulers import pools
from lading.schedulers.autoscale import Behaviour, Scaler, Trigger, triggers
from lading.schedulers.connection import Broker
from lading.schedulers.pools import Pool
from lading.workers import programs
from lading.workers.scaling import Staff
from lading.workers.supervise import Crew, Program
from tests.processes import LADING, Process, alive, until
from tests.redis_server import RedisServer
from tests.test_redis_acl import KEDA
from tests.test_worker_process import SHARDS, check_quiet, ended, markers, settings, spec, submit

COOLDOWN_S, LEASE_S = 1.0, 60.0
HASTY = ("--poll", "0.2", "--cooldown", str(COOLDOWN_S), "--settle", "1")
POOL = "cpu: {device: cpu, memory_bytes: 1_000_000_000, max_workers: 3, pull_shards: 1}"

Start = Callable[..., Process]


@pytest.fixture
def broker(redis_server: RedisServer, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Broker:
    """Of an installation whose workers take one shard at a time."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/pools.yaml").write_text(POOL)
    more = {"LADING_CONFIG_DIR": f"{tmp_path}/config", "LADING_LEASE_S": str(LEASE_S)}
    for name, value in {**settings(redis_server.url, tmp_path, tiny_encoder), **more}.items():
        monkeypatch.setenv(name, value)
    return Broker.connect(load_settings().broker_url)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`lading autoscale`."""
    with contextlib.ExitStack() as stack:

        def begin(*options: str, **environment: str) -> Process:
            process = Process([*LADING, "autoscale", *options], environment, tmp_path / "autoscale.log")
            stack.callback(close, process)
            return process

        yield begin


def close(process: Process) -> None:
    """A worker that is frozen ends by SIGKILL alone, which `Process.close` sends."""
    if process.running():
        process.close()


def frozen(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:
        return False


def rows(folder: Path, name: str) -> list[str]:
    return sorted(pq.read_table(folder / "out" / name)["id"].to_pylist())


def whole(count: int) -> list[str]:
    return sorted(f"k{n}" for n in range(count))


class Watch:
    """What the workers of a pool did, seen from outside: how many there were, for how long, and for how long without work."""

    def __init__(self, scaling: Process, broker: Broker, beside: int) -> None:
        """`beside`: processes of `scaling` that are no workers."""
        self._scaling, self._queue, self._beside = scaling, broker.queue(SHARDS), beside
        self._last = time.monotonic()
        self.most, self.up_s, self.idle_s = 0, 0.0, 0.0

    def look(self) -> int:
        """How many there are now. Each is taken to have no work for which nothing is in flight."""
        workers = len(self._scaling.children()) - self._beside
        now = time.monotonic()
        after_s, self._last = now - self._last, now
        self.most = max(self.most, workers)
        self.up_s += after_s * workers
        self.idle_s += after_s * max(workers - self._queue.counts().in_flight, 0)
        return workers

    def until(self, claim: Callable[[int], object]) -> None:
        """Of the number of workers."""
        self._scaling.until(lambda: claim(self.look()))

    def tell(self, what: str, cold_s: float) -> None:
        """Since it was told last. Starting is without work."""
        print(
            f"{what}: first shard {cold_s:.1f} s after it was submitted, up to {self.most} workers, {self.up_s:.1f} worker seconds, "
            f"{self.idle_s:.1f} of them without work"
        )
        self.up_s = self.idle_s = 0.0


def test_from_none_to_some_to_none(start: Start, broker: Broker, tmp_path: Path, tiny_encoder: Path) -> None:
    """A job wakes the pool, which grows to its bound; every row is there once; nothing is left when it sleeps."""
    scaling = start(*HASTY, "--max", "3")
    watch = Watch(scaling, broker, beside=1)
    scaling.until(lambda: len(scaling.children()) == 1)  # the scheduler
    began = time.monotonic()
    job = submit(spec(tmp_path, tiny_encoder, "docs", rows=240, shard_rows=20))
    watch.until(lambda workers: markers(job))
    cold_s = time.monotonic() - began
    watch.until(lambda workers: ended(job.job))
    watch.until(lambda workers: workers == 0)
    watch.tell("240 rows", cold_s)
    assert rows(tmp_path, "docs") == whole(240)
    check_quiet(broker, job)
    assert watch.most == 3
    said = [line for line in scaling.said().splitlines() if line.startswith("pool cpu: ")]
    assert said[0].startswith("pool cpu: 0 -> 1 worker: there is work (")
    assert said[1].startswith("pool cpu: 1 -> 3 workers: more work (")
    assert said[-1] == f"pool cpu: {said[-1][10]} -> 0 workers: nothing to do for 1 s (nothing waiting, 0 in flight)"
    scaling.send(signal.SIGTERM)
    assert scaling.wait() == 0, scaling.said()
    for trouble in ("Traceback", "process restarts", "process killed"):
        assert trouble not in scaling.said()


def test_a_long_shard_keeps_its_worker(start: Start, broker: Broker, tmp_path: Path, tiny_encoder: Path) -> None:
    """However long it takes, and with nothing waiting: it is stopped when it is done."""
    scaling = start(*HASTY, "--without-scheduler", LADING_FAILPOINT="publish.before=stop")
    job = submit(spec(tmp_path, tiny_encoder, "long", rows=20, shard_rows=20))
    scaling.until(lambda: any(map(frozen, scaling.children())))  # for as long as we like
    (worker,) = scaling.children()
    assert (broker.queue(SHARDS).counts().waiting, broker.queue(SHARDS).counts().in_flight) == (0, 1)
    over = time.monotonic() + 4 * COOLDOWN_S
    scaling.until(lambda: time.monotonic() > over)
    assert scaling.children() == [worker]
    assert "-> 0 workers" not in scaling.said()
    os.kill(worker, signal.SIGCONT)
    scaling.until(lambda: not scaling.children())
    assert ended(job.job)
    assert rows(tmp_path, "long") == whole(20)
    check_quiet(broker, job)


def test_without_what_is_in_flight_a_long_shard_is_interrupted(
    broker: Broker, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contrast: by the lengths of the lists alone the pool goes to sleep in the middle of the work, which stays where nobody sees
    it; with the hashes of leases it wakes again."""
    monkeypatch.setenv("LADING_FAILPOINT", "publish.before=stop")
    pool = pools.find(pools.load(), "cpu")
    lists_only = Pod(broker, pool, triggers(pool)[:2])
    job = submit(spec(tmp_path, tiny_encoder, "long", rows=20, shard_rows=20))
    try:
        lists_only.until(lambda: lists_only.changes == [(0, 1), (1, 0)] and lists_only.pid is None)
        assert (broker.queue(SHARDS).counts().waiting, broker.queue(SHARDS).counts().in_flight) == (0, 1)
        assert markers(job) == []
        assert lists_only.look() == [0, 0]  # that is all that it would ever see
    finally:
        lists_only.close()
    all_four = Pod(broker, pool, triggers(pool))
    assert all_four.look() == [0, 0, 1, 0]
    all_four.close()
    assert all_four.changes == [(0, 1)]


class Pod:
    """A pool of one worker, scaled by KEDA's arithmetic on what KEDA's script reads, and killed as a kubelet kills: after its grace."""

    def __init__(self, broker: Broker, pool: Pool, watched: tuple[Trigger, ...]) -> None:
        how = Behaviour(most=1, polling_s=0.2, sync_s=0.2, cooldown_s=COOLDOWN_S)
        self._broker, self._watched, self._scaler = broker, watched, Scaler(watched, how)
        self._program: Program = programs.slots(pool.name, "", 1)[0]
        self._crew = Crew(1.0)
        self.changes: list[tuple[int, int]] = []

    @property
    def pid(self) -> int | None:
        return self._crew.pid(self._program)

    def look(self) -> list[int]:
        seen = [self._broker.run(KEDA, [trigger.key]) for trigger in self._watched]
        if self._scaler.due(time.monotonic()) and (change := self._scaler.step(time.monotonic(), seen)):
            self.changes.append((change.before, change.after))
        self._crew.want([self._program] if self._scaler.workers else [])
        self._crew.look()
        return seen

    def until(self, claim: Callable[[], object]) -> None:
        until(lambda: (self.look(), claim())[1])

    def close(self) -> None:
        self._crew.end(threading.Event())


def test_a_broker_that_is_away_changes_nothing(
    start: Start, broker: Broker, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers stay, which is said once; it goes on when the broker answers again; and Ctrl-C ends it all the same."""
    monkeypatch.setenv("LADING_BROKER_URL", own_redis.url)
    scaling = start(*HASTY, "--min", "1", "--without-scheduler")
    scaling.until(scaling.children)
    (worker,) = scaling.children()
    own_redis.kill()
    scaling.until(lambda: "the workers stay as they are" in scaling.said())
    own_redis.start()
    scaling.until(lambda: "the broker answers again" in scaling.said())
    assert scaling.children() == [worker]
    own_redis.kill()
    scaling.send(signal.SIGINT)
    assert scaling.wait() == 0, scaling.said()
    assert not alive(worker)
    assert scaling.said().count("0 -> 1 worker: 1 are always there") == 1


def test_who_is_wanted_no_more() -> None:
    """Those with least in their hands, of equals the newest; a place whose process still ends is taken last."""
    slots = [Program(str(number), []) for number in range(4)]
    staff = Staff(Pool(name="cpu", device="cpu", memory_bytes=1), slots)

    def pid(program: Program) -> int | None:
        return None if program.name == "3" else 10 + int(program.name)

    staff.resize(3, {}, pid)
    assert [one.name for one in staff.up] == ["3", "0", "1"]
    staff.resize(4, {}, pid)
    staff.resize(3, {}, pid)
    assert [one.name for one in staff.up] == ["3", "0", "1"]  # nobody said anything: the newest went
    staff.resize(1, {10: 0.0, 11: 2.0}, pid)
    assert [one.name for one in staff.up] == ["3"]
    staff.resize(3, {}, pid)
    staff.resize(2, {10: 3.0, 11: 0.0}, pid)
    assert [one.name for one in staff.up] == ["3", "0"]
    staff.resize(0, {}, pid)
    assert staff.up == []


def test_workers_are_spread_over_devices(broker: Broker) -> None:
    """One each unless more are asked for, no more than the pool has; numbered through, and not to end by themselves."""

    def names(*given: str | int) -> list[str]:
        return [one.name for one in programs.slots("cpu", *given)]

    assert names("", 0) == ["worker cpu-0 on cpu"]
    assert len(names("cpu,cpu", 0)) == 2
    assert len(names("cpu,cpu,cpu,cpu", 0)) == 3  # max_workers
    assert len(names("cpu,cpu", 5)) == 5
    second = programs.slots("cpu", "cpu,cpu", 2, first=5)
    assert [one.name for one in second] == ["worker cpu-5 on cpu", "worker cpu-6 on cpu"]
    assert all(one.stays and one.environment["LADING_EXIT_WHEN_IDLE_S"] == "0" for one in second)


def test_more_at_least_than_at_most_is_refused(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    assert main(["autoscale", "--min", "3", "--max", "2"]) == 2
    assert "pool cpu: --min 3 is more than the 2 workers that there may be (--max)" in capsys.readouterr().err


@pytest.mark.chaos
def test_waves_of_work(start: Start, broker: Broker, tmp_path: Path, tiny_encoder: Path) -> None:
    """Jobs and requests come and go, workers are killed: every row is there once, every request is answered, and the pool sleeps
    after each wave."""
    draw = random.Random(int(os.environ.get("LADING_CHAOS_SEED", "0")))
    scaling = start(*HASTY, "--max", "3", LADING_LEASE_S="2")
    watch, killed = Watch(scaling, broker, beside=1), 0
    scaling.until(lambda: len(scaling.children()) == 1)
    (scheduler,) = scaling.children()
    for wave in range(6):
        began, names = time.monotonic(), [f"job-{wave}-{n}" for n in range(draw.randint(1, 3))]
        sizes = [draw.randint(1, 40) * 20 for _ in names]
        jobs = [
            submit(spec(tmp_path, tiny_encoder, name, rows=size, shard_rows=20, words=draw.choice([5, 40])))
            for name, size in zip(names, sizes, strict=True)
        ]
        with Client() as client:
            asked = [client.submit_encode(str(tiny_encoder), [f"{wave} {n}"]) for n in range(draw.randint(0, 40))]
            watch.until(lambda workers, first=jobs[0]: markers(first))
            cold_s = time.monotonic() - began
            if wave % 2 and (workers := [pid for pid in scaling.children() if pid != scheduler]):
                os.kill(draw.choice(workers), signal.SIGKILL)
                killed += 1
            watch.until(lambda workers, these=jobs: all(ended(job.job) for job in these))
            watch.until(lambda workers, these=asked: all(ticket.done() for ticket in these))
            assert all(len(ticket.wait(60)) == 1 for ticket in asked)
        for name, size in zip(names, sizes, strict=True):
            assert rows(tmp_path, name) == whole(size)
        watch.until(lambda workers: workers == 0)
        watch.tell(f"wave {wave}, {sum(sizes)} rows, {len(asked)} requests", cold_s)
    assert watch.most == 3
    scaling.send(signal.SIGTERM)
    assert scaling.wait() == 0, scaling.said()
    assert 0 < scaling.said().count("was killed by SIGKILL") <= killed  # one that was leaving is not missed
    assert "process killed" not in scaling.said()
    counts = [broker.queue(name).counts() for name in (SHARDS, "lading.cpu.requests")]
    assert [(one.waiting, one.in_flight, one.dead) for one in counts] == [(0, 0, 0), (0, 0, 0)]
