"""The long form: everything at once and at random, job after job, until enough has gone wrong. LADING_CHAOS_SEED gives others."""

from __future__ import annotations

import collections
import random
import time
from pathlib import Path

import pytest

from lading.pipelines.manifest import Manifest
from lading.pipelines.output import output_paths
from lading.pipelines.spec import JobSpec
from lading.pipelines.steering import retry
from tests.chaos.conftest import SEED, Rigs
from tests.chaos.fleet import Worker
from tests.chaos.rig import Rig, Tally
from tests.chaos.test_kills import POINTS
from tests.crash import jobs
from tests.redis_server import RedisServer

FAULTS = 450  # by sink
WEIGHTS = {"kill": 6, "freeze": 4, "thaw": 4, "stop": 2, "redis": 1, "flush": 1, "twice": 1}
MOST_FROZEN = 2


class Storm:
    """Five workers and a broker of their own, and what happens to them."""

    def __init__(self, rig: Rig, choose: random.Random) -> None:
        self.rig, self.choose = rig, choose
        self.did: collections.Counter[str] = collections.Counter()
        self.frozen: list[Worker] = []
        self.retried = 0

    @property
    def faults(self) -> int:
        return sum(self.did.values()) - self.did["kill"] - self.did["thaw"] + self.rig.fleet.deaths.total()

    def blow(self, spec: JobSpec) -> str:
        """One job to its end; its id."""
        job = self.rig.submit(spec)
        while not self._over(spec, job):
            armed = self.choose.random() < 0.5
            self.rig.fleet.points.clear()
            self.rig.fleet.arm([f"{self.choose.choice(POINTS)}=kill@{self.choose.randint(1, 9)}"] if armed else [])
            self.rig.fleet.tend()
            self.rig.sweep()
            time.sleep(self.choose.uniform(0, 0.15))
            (event,) = self.choose.choices(list(WEIGHTS), list(WEIGHTS.values()))
            getattr(self, f"_{event}")()
        while self.frozen:
            self._thaw()
        while not self._whole(spec, job):  # three deaths in one step may be anything: an operator tries again
            self.retried += 1
            retry(self.rig.queues, job)
            self.rig.until(lambda: self._over(spec, job))
        return job

    def _over(self, spec: JobSpec, job: str) -> bool:
        """Nobody works on it any more: it has ended, or waits for an operator."""
        if self.rig.ended(job):
            return True
        totals = Manifest.open(output_paths(spec.sink.to), job).totals()
        return totals.shards_failed > 0 and totals.shards_done + totals.shards_failed == totals.shards

    def _whole(self, spec: JobSpec, job: str) -> bool:
        totals = Manifest.open(output_paths(spec.sink.to), job).totals()
        return totals.shards_failed == 0 and totals.retryable == 0

    # -- what happens

    def _any(self) -> Worker | None:
        moving = [worker for worker in self.rig.fleet.alive() if worker not in self.frozen]
        return self.choose.choice(moving) if moving else None

    def _kill(self) -> None:
        if worker := self._any():
            self.rig.fleet.kill(worker)
            self.did["kill"] += 1

    def _freeze(self) -> None:
        if len(self.frozen) < MOST_FROZEN and (worker := self._any()):
            if worker.child.freeze():
                self.frozen.append(worker)
                self.did["freeze"] += 1
            else:
                self.rig.fleet.bury(worker)

    def _thaw(self) -> None:
        if self.frozen:
            self.frozen.pop(self.choose.randrange(len(self.frozen))).child.thaw()
            self.did["thaw"] += 1

    def _stop(self) -> None:
        worker = self._any()
        if worker and not worker.point and worker.ready():
            self.rig.fleet.retire(worker)
            self.did["stop"] += 1

    def _redis(self) -> None:
        self.rig.server.kill()
        self.rig.server.start()
        self.did["redis"] += 1

    def _flush(self) -> None:
        with self.rig.calm():
            self.rig.broker.client.flushall()
            self.did["flush"] += 1

    def _twice(self) -> None:
        with self.rig.calm():
            self.rig.twice()
            self.did["twice"] += 1


@pytest.mark.chaos
def test_a_storm_loses_and_doubles_nothing(
    kind: str,
    own_redis: RedisServer,
    rigs: Rigs,
    tiny_encoder: Path,
    undisturbed: jobs.Undisturbed,
    tmp_path: Path,
) -> None:
    """Kills at points and at random, freezes, stops, a broker that dies, forgets and repeats: every job as if undisturbed."""
    corpus = jobs.write_corpus(tmp_path / "long", shards=60, seed=SEED)
    # Here the workers sweep as well.
    rig = rigs(own_redis, workers=5, environment={"LADING_SWEEP_INTERVAL_S": "0.5"})
    whole = undisturbed(corpus)
    storm, tally, done = Storm(rig, random.Random(f"{SEED}{kind}")), Tally(), 0
    while storm.faults < FAULTS:
        spec = jobs.encode(corpus, tiny_encoder, f"{kind}://{rig.root}/out/{done}")
        job = storm.blow(spec)
        tally.add(rig.check_rows(spec, job, corpus, whole))
        done += 1
    rig.fleet.points.clear()
    tally.faults, tally.repeated = storm.faults, rig.repeats(done * whole.table.num_rows)
    at_points = rig.fleet.deaths.total() - rig.fleet.deaths[""]
    did = ", ".join(f"{count} {what}" for what, count in sorted(storm.did.items()))
    rig.tell(f"{kind}: storm", tally, f"{done} jobs, {at_points} deaths at points, {did}; {storm.retried} retries")
    rig.check_quiet()
