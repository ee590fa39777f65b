"""A worker frozen past its lease and thawed: it has no power over its successor's lease, and what it publishes counts once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from lading.schedulers.connection import workers_key
from lading.schedulers.queues import Lease
from tests.chaos.conftest import Rigs
from tests.chaos.fleet import Worker, until
from tests.chaos.rig import POOL, Rig
from tests.crash import jobs

HELD = ("shards.leased", "strike.noted", "publish.before", "publish.linked", "shard.published", "requests.leased")
LATE = ("strike.noted", "publish.before", "fold.before-commit", "answer.stored")
SHORT_HELD = ["publish.before", "requests.leased"]
SHORT_LATE = [("lancedb", "publish.before")]
NEVER = 1e12
TOO_LATE = "leases ran out"


def long(cases: Iterable[Any]) -> list[Any]:
    short = [*SHORT_HELD, *SHORT_LATE]
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.chaos)
        for case in cases
        if case not in short
    ]


def frozen(rig: Rig, point: str, spec: jobs.JobSpec, model: Path) -> tuple[str, list[str]]:
    """A job and requests, of which one worker holds some, frozen at the point; then its leases run out."""
    job, asked = rig.submit(spec), [rig.ask(model, f"request {n}") for n in range(5)]
    worker = rig.fleet.start(f"{point}=stop")
    assert worker.child.wait_stopped(), worker.child.log()
    for queue in (rig.shards, rig.requests):
        queue.restore(0.0)
        assert queue.counts().in_flight == 0
    return job, asked


@pytest.mark.parametrize("point", SHORT_HELD + long(HELD))
def test_a_thawed_worker_leaves_its_successors_leases_alone(
    point: str, rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Neither acknowledged, nor given back, nor renewed: the successor's keys are what they were when the thawed one has ended."""
    rig = rigs()
    spec = jobs.encode(corpus, tiny_encoder, f"lancedb://{rig.root}/out/docs")
    job, asked = frozen(rig, point, spec, tiny_encoder)
    (thawed,) = rig.fleet.workers
    held = [(queue, queue.pull(1000, 1 << 20)) for queue in (rig.shards, rig.requests)]
    pin(rig, held)
    before = keys(rig)
    assert any(before)
    go_on(rig, thawed)
    until(lambda: TOO_LATE in thawed.child.log(), thawed.child.log)
    rig.fleet.retire(thawed)
    assert keys(rig) == before
    for queue, leases in held:
        assert queue.release(leases) == len(leases)
    rig.until(lambda: rig.ended(job) and all(map(rig.answer, asked)))
    tally = rig.check_rows(spec, job, corpus, undisturbed(corpus), faults=1)
    tally.repeated = rig.repeats(undisturbed(corpus).table.num_rows + len(asked))
    rig.tell(f"frozen at {point}, its lease another's", tally)
    rig.check_quiet()


@pytest.mark.parametrize(("kind", "point"), SHORT_LATE + long(product(jobs.SINKS, LATE)))
def test_what_a_thawed_worker_publishes_late_counts_once(
    point: str, kind: str, rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Thawed when its successors have ended the job: nothing of it is doubled, and it ends in good order."""
    rig = rigs()
    spec = jobs.encode(corpus, tiny_encoder, f"{kind}://{rig.root}/out/docs")
    job, asked = frozen(rig, point, spec, tiny_encoder)
    (late,) = rig.fleet.workers
    rig.fleet.workers.clear()
    rig.until(lambda: rig.ended(job) and all(map(rig.answer, asked)))
    rig.fleet.workers.append(late)
    go_on(rig, late)
    rig.check_quiet()
    tally = rig.check_rows(spec, job, corpus, undisturbed(corpus), faults=1)
    tally.repeated = rig.repeats(undisturbed(corpus).table.num_rows + len(asked))
    rig.tell(f"{kind}: frozen at {point}, late", tally)


def go_on(rig: Rig, worker: Worker) -> None:
    """Thaw, and wait until it has looked after what it thinks are its leases, twice."""
    for _ in range(2):
        before = sign(rig, worker)
        worker.child.thaw()
        until(lambda before=before: sign(rig, worker) != before, worker.child.log)


def pin(rig: Rig, held: list[tuple[object, list[Lease]]]) -> None:
    """Leases that never run out, so that only a renewal by somebody else changes when they began."""
    for queue, leases in held:
        for lease in leases:
            rig.broker.client.zadd(f"unacked_index:{queue.name}", {lease.field: NEVER})


def keys(rig: Rig) -> list[dict[bytes, object]]:
    client = rig.broker.client
    names = (rig.shards.name, rig.requests.name)
    leases = [client.hgetall(f"unacked:{name}") for name in names]
    return leases + [dict(client.zrange(f"unacked_index:{name}", 0, -1, withscores=True)) for name in names]


def sign(rig: Rig, worker: Worker) -> list[float]:
    """When it last said that it lives."""
    known = rig.broker.client.zrange(workers_key(POOL), 0, -1, withscores=True)
    return [when for name, when in known if f"-{worker.child.pid}-".encode() in name]
