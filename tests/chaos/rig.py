"""A whole installation in a test: Redis, a registry, a fleet of workers and the scheduler's sweep; and what must hold at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import redis

from lading.config.errors import BrokerError
from lading.pipelines.job import draft
from lading.pipelines.manifest import Manifest
from lading.pipelines.output import output_paths
from lading.pipelines.registry import Registry
from lading.pipelines.spec import JobSpec
from lading.pipelines.submit import Queues, submit
from lading.pipelines.sweep import Sweeper
from lading.schedulers import pools
from lading.schedulers.connection import Broker, workers_key
from lading.schedulers.messages import Request, request_message
from tests.chaos.fleet import Fleet, until
from tests.crash import jobs
from tests.redis_server import RedisServer
from tests.zygote import Zygote

POOL = "cpu"
LEASE_S = 1.0
SWEEP_S = 0.3
HASTE = 20
TOLD: list[tuple[str, Tally, str]] = []


@dataclasses.dataclass
class Tally:
    """What a scenario did, and what it cost."""

    rows: int = 0
    lost: int = 0
    doubled: int = 0
    repeated: int = 0  # rows that went to the device more often than once
    faults: int = 0

    def add(self, other: Tally) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        return f"{self.faults} faults, {self.rows} rows: {self.lost} lost, {self.doubled} doubled, {self.repeated} repeated"


class Rig:
    """See the module. `root` is a folder or a bucket: it has the registry and the outputs."""

    def __init__(
        self,
        zygote: Zygote,
        server: RedisServer,
        root: str,
        folder: Path,
        *,
        workers: int = 3,
        lease_s: float = LEASE_S,
        environment: dict[str, str] | None = None,
        **hooks: Any,
    ) -> None:
        """`hooks`: see tests/worker_hooks.py."""
        self.server, self.root = server, root
        self.broker = Broker.connect(server.url)
        self.shards = self.broker.queue(f"lading.{POOL}.shards")
        self.requests = self.broker.queue(f"lading.{POOL}.requests")
        self.registry = Registry(f"{root}/jobs")
        self.queues = Queues(self.broker, self.registry, pools.load(), lease_s)
        self.ran = folder / "ran"
        self.ran.touch()
        settings = {
            "LADING_BROKER_URL": server.url,
            "LADING_JOBS": f"{root}/jobs",
            "LADING_POOL": POOL,
            "LADING_ROOTS": "/",
            "LADING_LEASE_S": str(lease_s),
            "LADING_FOLD_INTERVAL_S": "0.1",
            # The rig sweeps. A worker that is killed in its sweep keeps the turn for a minute, in which nothing is sent.
            "LADING_SWEEP_INTERVAL_S": "3600",
            "LADING_BATCH_TOKENS_CPU": str(jobs.BATCH_TOKENS),
        }
        self.fleet = Fleet(zygote, {**settings, **(environment or {})}, workers, {"ran": str(self.ran), **hooks})
        self._swept = 0.0
        self.sent = 0  # shards, by the scheduler
        # Its clock runs fast: what it puts off for a minute it does within seconds.
        self._sweeper = Sweeper(
            self.broker, self.registry, self.queues.pools, lease_s=lease_s, clock=lambda: HASTE * time.monotonic()
        )

    # -- what users and the scheduler do

    def submit(self, spec: JobSpec) -> str:
        """As `lading submit`; its id."""
        return submit(draft(spec), self.queues).job

    def twice(self, times: int = 2) -> int:
        """Have every message that is there delivered so many times; how many were added."""
        added = 0
        for queue in (self.shards, self.requests):
            raws = queue.snapshot() * (times - 1)
            queue.send(raws)
            added += len(raws)
        return added

    def ask(self, model: Path, *texts: str) -> str:
        """Send one request; its id."""
        id = uuid.uuid4().hex
        self.requests.send([request_message(Request("encode", str(model), list(texts)), id=id, now=time.time())])
        return id

    def answer(self, id: str) -> dict[str, Any] | None:
        """What Celery's result backend has for a request, None if nothing yet."""
        stored: Any = self.broker.client.get(f"celery-task-meta-{id}")
        return None if stored is None else json.loads(stored)

    @contextlib.contextmanager
    def calm(self) -> Iterator[None]:
        """The broker may just have come back, and the connection not know it: then the block is left out."""
        with contextlib.suppress(BrokerError, redis.RedisError):
            yield

    def sweep(self) -> None:
        """One pass of the scheduler, at most every SWEEP_S. An outage of the broker ends it."""
        if time.monotonic() - self._swept < SWEEP_S:
            return
        with contextlib.suppress(BrokerError):
            if swept := self._sweeper.sweep():
                assert swept.faults == {}
                self.sent += swept.sent
        self._swept = time.monotonic()

    # -- waiting

    def until(self, condition: Callable[[], Any], *, tend: bool = True) -> None:
        """Let the supervisor and the scheduler do their part until `condition` holds."""

        def each() -> None:
            if tend:
                self.fleet.tend()
            self.sweep()

        until(condition, lambda: f"{self.state()}\n{self.fleet.said()}", each)

    def published(self, spec: JobSpec, job: str) -> int:
        """How many shards have a marker."""
        return len(output_paths(spec.sink.to).job(job).names("markers"))

    def ended(self, job: str) -> bool:
        return not self.registry.is_open(job)

    def finish(self, *ids: str) -> None:
        """Wait for the end of these jobs, with nobody disturbed any more."""
        self.fleet.points.clear()
        self.until(lambda: all(self.ended(job) for job in ids))

    def state(self) -> str:
        with contextlib.suppress(BrokerError):
            names = [entry.job for entry in self.registry.list_open()]
            return f"{self.shards.counts()} {self.requests.counts()} open: {names} deaths: {self.fleet.deaths}"
        return "no broker"

    def tell(self, what: str, tally: Tally, more: str = "") -> None:
        """Put it into the table that is shown when all is done (conftest)."""
        TOLD.append((what, tally, more))

    # -- what must hold

    def check_rows(self, spec: JobSpec, job: str, corpus: Path, whole: jobs.Outcome, *, faults: int = 0) -> Tally:
        """The job's rows, vectors and rejects are those of an undisturbed run; it has balanced, closed and left the ledger."""
        output = output_paths(spec.sink.to)
        totals = Manifest.open(output, job).totals()
        jobs.assert_ended(spec, {"job": job, "rows_in": totals.rows_in, "rows_done": totals.done, "rejected": totals.rejected}, corpus)  # fmt: skip
        ours = jobs.outcome(spec.sink.to, job)
        ids, wanted = ours.table["id"].to_pylist(), whole.table["id"].to_pylist()
        jobs.assert_same(ours, whole)
        return Tally(totals.rows_in, len(set(wanted) - set(ids)), len(ids) - len(set(ids)), faults=faults)

    def repeats(self, needed: int) -> int:
        """Items that were run beyond those that were needed since the rig began."""
        return self.ran.stat().st_size - needed

    def check_quiet(self) -> None:
        """All workers stopped in good order: no lease, no message, no suspicion, no note is left of anything."""
        self.until(lambda: self.settled(), tend=False)
        self.fleet.stop()
        left = {key.decode() for key in self._keys() if not key.startswith((b"celery-task-meta-", b"_kombu.binding"))}
        assert not {key for key in left if key.startswith(("unacked:", "unacked_index:", "strikes:", "dead:"))}, left
        assert self.broker.client.zcard(workers_key(POOL)) <= self.fleet.deaths.total()  # the dead are forgotten later
        counts = self.shards.counts(), self.requests.counts()
        assert all(one.waiting == one.in_flight == one.dead == 0 for one in counts), counts
        assert self.registry.list_open() == []
        for entry in self.registry.list_closed():
            files, folder = fsspec.url_to_fs(entry.place.job(entry.job).url)
            assert files.find(f"{folder}/strikes") == []

    def settled(self) -> bool:
        counts = self.shards.counts(), self.requests.counts()
        return all(one.waiting == one.in_flight == 0 for one in counts)

    def _keys(self) -> Iterator[bytes]:
        with redis.Redis(port=self.server.port) as client:
            yield from client.scan_iter(count=1000)  # pyright: ignore
