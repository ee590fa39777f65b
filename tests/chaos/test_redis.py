"""The broker dies, forgets everything, or delivers twice: the manifest is the truth, and every row is there once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.conftest import SEED, Rigs
from tests.crash import jobs
from tests.redis_server import RedisServer


def test_kills_of_redis_cost_nothing(
    own_redis: RedisServer, rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Killed and started again at five moments of a job, with what its log had: workers wait, reconnect and go on."""
    whole, rig, choose = undisturbed(corpus), rigs(own_redis), random.Random(SEED)
    spec = jobs.encode(corpus, tiny_encoder, f"lancedb://{rig.root}/out/docs")
    job = rig.submit(spec)
    for shards in sorted(choose.sample(range(20), 5)):
        rig.until(lambda shards=shards: rig.published(spec, job) >= shards)
        own_redis.kill()
        own_redis.start()
    rig.finish(job)
    tally = rig.check_rows(spec, job, corpus, whole, faults=5)
    tally.repeated = rig.repeats(whole.table.num_rows)
    rig.tell("kill -9 of Redis", tally, f"{rig.sent} shards sent by the sweep")
    rig.check_quiet()


def test_a_flushed_redis_forgets_no_row_and_no_strike(
    rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """FLUSHALL in mid-job, just after a worker died of a shard: the sweep sends again what is missing, and that shard runs alone."""
    whole, rig = undisturbed(corpus), rigs()
    spec = jobs.encode(corpus, tiny_encoder, f"lancedb://{rig.root}/out/docs")
    job = rig.submit(spec)
    rig.fleet.start("strike.noted=kill@2")
    rig.until(lambda: rig.fleet.deaths["strike.noted"])
    rig.broker.client.flushall()
    rig.finish(job)
    assert "runs alone" in rig.fleet.said()
    tally = rig.check_rows(spec, job, corpus, whole, faults=2)
    tally.repeated = rig.repeats(whole.table.num_rows)
    rig.tell("FLUSHALL in mid-job", tally, f"{rig.sent} shards sent by the sweep")
    rig.check_quiet()


@pytest.mark.parametrize("kind", ["lancedb", pytest.param("parquet", marks=pytest.mark.chaos)])
def test_every_message_delivered_twice_counts_once(
    kind: str, rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed
) -> None:
    """Shards and requests twice in the queue: each row once, each request answered, nothing is held against anybody."""
    whole, rig = undisturbed(corpus), rigs()
    spec = jobs.encode(corpus, tiny_encoder, f"{kind}://{rig.root}/out/docs")
    job = rig.submit(spec)
    asked = [rig.ask(tiny_encoder, f"request {n}") for n in range(20)]
    doubled = rig.twice()
    rig.until(lambda: rig.ended(job) and all(map(rig.answer, asked)))
    assert {rig.answer(id)["status"] for id in asked} == {"SUCCESS"}
    tally = rig.check_rows(spec, job, corpus, whole, faults=doubled)
    tally.repeated = rig.repeats(whole.table.num_rows + len(asked))
    rig.tell(f"{kind}: every message twice", tally)
    rig.check_quiet()
