"""Admission and the sweep over real jobs in a real Redis: everything is done once, whatever is lost on the way."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pytest
import redis

from lading.config.errors import UsageError
from lading.pipelines.job import draft
from lading.pipelines.markers import Markers
from lading.pipelines.submit import Queues, submit
from lading.pipelines.sweep import Sweeper
from lading.pipelines.watching import RESEND_S
from lading.schedulers import sweeping
from lading.schedulers.pools import Pool
from tests.queued import ROWS, job_spec, publish, pull, queues, submitted, work
from tests.redis_server import RedisServer


@pytest.fixture
def at(redis_server: RedisServer, tmp_path: Path) -> Queues:
    return queues(redis_server.url, tmp_path)


class Clock:
    """A time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sweeper(at: Queues, clock: Clock | None = None) -> Sweeper:
    return Sweeper(at.broker, at.registry, at.pools, lease_s=at.lease_s, clock=clock or Clock())


def held(at: Queues) -> int:
    counts = at.broker.queue("lading.cpu.shards").counts()
    return counts.waiting + counts.in_flight


@pytest.mark.parametrize("loaded", [0, 1])
def test_what_workers_hold_goes_first(at: Queues, tmp_path: Path, tiny_encoder: Path, loaded: int):
    """Of two jobs, the one whose model a living worker has on its device is sent first; both get their half. A dead one's word is none."""
    specs = [job_spec(tmp_path, tiny_encoder, name, 20) for name in ("a", "b")]
    (step,) = specs[1].steps
    specs[1] = dataclasses.replace(specs[1], steps=(dataclasses.replace(step, precision="bfloat16"),))
    jobs = [submitted(at, spec).job for spec in specs]
    held = {"version": 1, "models": [{"weights": at.registry.find(jobs[loaded]).weights, "tier": "device"}]}
    other = {"version": 1, "models": [{"weights": at.registry.find(jobs[1 - loaded]).weights, "tier": "device"}]}
    at.broker.alive("cpu", "living")
    at.broker.publish_report("cpu", "living", held)
    at.broker.client.hset("lading.residents.cpu", "dead", json.dumps(other))
    at.broker.client.delete("lading.cpu.shards")
    assert sweeper(at).sweep().sent == 8
    first, second = jobs[loaded], jobs[1 - loaded]
    assert [pointer.job for _, pointer in pull(at)] == [first, first, second, second] * 2


def test_a_broker_that_does_not_tell_stops_no_sweep(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """Where the reports cannot be read, jobs are sent in the order in which they came."""
    specs = [job_spec(tmp_path, tiny_encoder, name, 20) for name in ("a", "b")]
    (step,) = specs[1].steps
    specs[1] = dataclasses.replace(specs[1], steps=(dataclasses.replace(step, precision="bfloat16"),))
    first, second = [submitted(at, spec).job for spec in specs]
    at.broker.alive("cpu", "living")
    at.broker.client.set("lading.residents.cpu", "in the way")
    at.broker.client.delete("lading.cpu.shards")
    assert sweeper(at).sweep().sent == 8
    assert [pointer.job for _, pointer in pull(at)] == [first, first, second, second] * 2


def test_submitting_sends_the_first_window(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """Work begins without a scheduler: what fits into the window is sent, and the job is registered with its plan beside the output."""
    done = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 20))
    assert (done.state, done.pool, done.shards, done.sent) == ("submitted", "cpu", 20, 8)
    assert Path(done.manifest, "plan.json").exists()
    entry = at.registry.find(done.job)
    assert (entry.shards, entry.output) == (20, f"parquet://{tmp_path}/out/a")
    assert [(pointer.job, pointer.shard, pointer.recipe) for _, pointer in pull(at)] == [
        (done.job, shard, entry.recipe) for shard in range(8)
    ]


def test_the_window_is_filled_again_until_the_job_is_done(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """Pass after pass sends what there is room for, each shard once, and the end closes the job and its entry."""
    job = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 20)).job
    sweeps, seen = sweeper(at), []
    while at.registry.is_open(job):
        assert held(at) <= 8
        seen += [pointer.shard for pointer in work(at, 3)]
        sweeps.sweep()
    assert seen == list(range(20))
    assert at.registry.find(job).open().manifest.closed() is not None
    assert held(at) == 0


def test_a_full_window_gets_nothing(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """Neither waiting nor leased shards are sent again, however often one sweeps."""
    submitted(at, job_spec(tmp_path, tiny_encoder, "a", 20))
    pull(at, 5)
    for one in (sweeper(at), sweeper(at)):
        swept = one.sweep()
        assert swept is not None
        assert (swept.sent, swept.left) == (0, {"cpu": 20})
    assert held(at) == 8


def test_a_flushed_redis_forgets_nothing(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """What was in the queue is sent again, what was done is not, whoever sweeps."""
    job = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 12)).job
    sweeps = sweeper(at)
    sweeps.sweep()
    work(at, 3, fold=False)
    at.broker.client.flushall()
    for one in (sweeps, sweeper(at)):
        at.broker.client.flushall()
        swept = one.sweep()
        assert swept is not None
        assert swept.sent == 8
        assert sorted(pointer.shard for _, pointer in pull(at)) == list(range(3, 11))
    assert at.registry.is_open(job)


def test_a_lost_message_is_sent_once_more_then_ever_more_rarely(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """A shard that vanishes without a marker comes back at once, and when that goes on, after growing pauses."""
    submitted(at, job_spec(tmp_path, tiny_encoder, "a", 1))
    clock = Clock()
    sweeps = sweeper(at, clock)

    def lose_and_sweep() -> int:
        at.broker.queue("lading.cpu.shards").ack([lease for lease, _ in pull(at)])
        swept = sweeps.sweep()
        assert swept is not None
        return swept.sent

    sweeps.sweep()
    assert [lose_and_sweep() for _ in range(3)] == [1, 0, 0]
    clock.now += RESEND_S
    assert lose_and_sweep() == 1
    clock.now += RESEND_S
    assert lose_and_sweep() == 0
    clock.now += 2 * RESEND_S
    assert lose_and_sweep() == 1


def test_expired_leases_come_back_without_a_worker(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """The sweep of a pool at zero restores what its dead workers held, and counts it as there."""
    submitted(at, job_spec(tmp_path, tiny_encoder, "a", 20))
    pull(at)
    swept = Sweeper(at.broker, at.registry, at.pools, lease_s=0.0).sweep()
    assert swept is not None
    assert (swept.restored, swept.sent) == (8, 0)
    assert at.broker.queue("lading.cpu.shards").counts().waiting == 8


def test_a_small_job_is_served_beside_a_huge_one(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """The room that comes free goes to the job that holds less, until both hold the same."""
    huge = submitted(at, job_spec(tmp_path, tiny_encoder, "huge", 60)).job
    small = submitted(at, job_spec(tmp_path, tiny_encoder, "small", 6)).job
    sweeps = sweeper(at)
    sweeps.sweep()
    order: list[str] = []
    while at.registry.is_open(small):
        order += [pointer.job for pointer in work(at, 4)]
        sweeps.sweep()
    assert order.count(small) == 6
    assert order.count(huge) <= 8 + 6


def test_priorities_go_first(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """As long as a job of higher priority has shards, nothing else is sent."""
    low = submitted(at, job_spec(tmp_path, tiny_encoder, "low", 20)).job
    high = submitted(at, job_spec(tmp_path, tiny_encoder, "high", 20, priority=1)).job
    sweeps, order = sweeper(at), []
    while held(at):
        order += [pointer.job for pointer in work(at, 4)]
        sweeps.sweep()
    assert order == [low] * 8 + [high] * 20 + [low] * 12


def test_any_number_of_sweepers(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """Sweepers that take turns do every shard once; even without turns nothing is lost and the rows are there once."""
    job = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 40)).job
    sweeps = [sweeper(at) for _ in range(3)]
    done: list[int] = []
    for number in itertools.count():
        done += [pointer.shard for pointer in work(at, 3)]
        if not at.registry.is_open(job):
            break
        assert sweeps[number % 3].sweep() is not None
    assert sorted(done) == list(range(40))


def test_only_one_has_its_turn(at: Queues):
    """While one sweeps, another goes without; a turn that was not given back runs out by itself."""
    turns = sweeping.Turns(at.broker)
    assert turns.begin()
    assert sweeper(at).sweep() is None
    assert 0 < at.broker.client.ttl(sweeping.TURN) <= sweeping.TURN_S  # pyright: ignore
    turns.end()
    assert sweeper(at).sweep() is not None


def test_markers_that_nobody_folded_are_folded(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """The last worker of a pool died between its markers and the fold: rows come into view, the job is ended."""
    spec = job_spec(tmp_path, tiny_encoder, "a", 4, kind="lancedb")
    job = submitted(at, spec).job
    work(at, 3, fold=False)
    sweeps = sweeper(at)
    swept = sweeps.sweep(thorough=True)
    assert swept is not None
    assert (swept.folded, swept.ended) == (3, 0)
    work(at, fold=False)
    swept = sweeps.sweep(thorough=True)
    assert swept is not None
    assert (swept.ended, at.registry.is_open(job)) == (1, False)
    import lancedb

    assert lancedb.connect(f"{tmp_path}/out").open_table("a").count_rows() == 4 * ROWS


def test_workers_have_time_to_fold(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """A sweeper that goes on and on leaves fresh markers to their workers, and takes over later."""
    job = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 4)).job
    clock = Clock()
    sweeps = sweeper(at, clock)
    sweeps.sweep()
    work(at, fold=False)
    sweeps.sweep()
    assert at.registry.is_open(job)
    clock.now += 10
    sweeps.sweep()
    assert not at.registry.is_open(job)


def test_staged_rows_that_are_gone_are_done_again(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """A marker whose rows were cleaned away gets a further generation, and the sweep sends it."""
    done = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 2))
    work(at, fold=False)
    shutil.rmtree(f"{done.manifest}/staging")
    sweeps = sweeper(at)
    sweeps.sweep(thorough=True)
    sweeps.sweep()
    assert sorted((pointer.shard, pointer.generation) for pointer in work(at)) == [(0, 1), (1, 1)]
    assert not at.registry.is_open(done.job)


def test_failed_shards_are_not_swept(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """A failed shard has its marker: it is not sent again, and its job stays open as it is."""
    job = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 2)).job
    opened = at.registry.find(job).open()
    for lease, pointer in pull(at):
        publish(opened, pointer.shard, failed="no such file" if pointer.shard else "")
        at.broker.queue("lading.cpu.shards").ack([lease])
    sweeps = sweeper(at)
    for _ in range(2):
        swept = sweeps.sweep(thorough=True)
        assert swept is not None
        assert (swept.sent, swept.ended, swept.left) == (0, 0, {"cpu": 0})
    assert opened.standing().state == "unfinished"


def test_a_job_with_too_many_rejects_gets_nothing(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """Workers drop the shards of a job that its limit stopped, and the sweep sends no more; a higher limit lets it go on."""
    spec = job_spec(tmp_path, tiny_encoder, "a", 20, max_rejects=1)
    job = submitted(at, spec).job
    opened = at.registry.find(job).open()
    leases = pull(at)
    for _, pointer in leases[:2]:
        publish(opened, pointer.shard, rejects=[0])
    sweeps = sweeper(at)
    sweeps.sweep()
    at.broker.queue("lading.cpu.shards").ack([lease for lease, _ in leases])
    sweeps.sweep()
    pull(at)
    at.broker.client.flushall()
    swept = sweeps.sweep()
    assert swept is not None
    assert (swept.sent, swept.left) == (0, {"cpu": 0})
    again = submitted(at, dataclasses.replace(spec, policy=dataclasses.replace(spec.policy, max_rejects=9)))
    assert again.job == job
    assert again.sent == 8
    assert at.registry.find(job).open().standing().state == "running"


def test_one_job_s_trouble_is_its_own(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """A job whose folder is damaged, whose pool is gone or whose output cannot be is named, and the others go on."""
    good = submitted(at, job_spec(tmp_path, tiny_encoder, "good", 20)).job
    bad = submitted(at, job_spec(tmp_path, tiny_encoder, "bad", 20))
    at.registry.add(dataclasses.replace(at.registry.find(good), job="nopool", pool="gpu"))
    at.registry.add(dataclasses.replace(at.registry.find(good), job="nosink", output="parqet://x"))
    Path(bad.manifest, "markers").mkdir(exist_ok=True)
    Path(bad.manifest, "markers/x.json").touch()
    at.broker.client.flushall()
    swept = sweeper(at).sweep()
    assert swept is not None
    assert swept.sent == 8
    assert swept.faults.keys() == {bad.job, "nopool", "nosink"}
    assert "there is no pool 'gpu'" in swept.faults["nopool"]
    assert {pointer.job for _, pointer in pull(at)} == {good}


def test_what_no_pool_can_take_is_refused_before_anything_is_written(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """A job whose model fits nowhere leaves neither output nor entry."""
    small = dataclasses.replace(at, pools={"cpu": Pool(name="cpu", device="cpu", memory_bytes=1)})
    with pytest.raises(UsageError, match="no pool can take a model of"):
        submit(draft(job_spec(tmp_path, tiny_encoder, "a", 1)), small)
    assert at.registry.list_open() == []
    assert not (tmp_path / "out").exists()


def test_submitting_twice_is_one_job(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """The same job again takes the new priority; a finished one is nothing to do."""
    spec = job_spec(tmp_path, tiny_encoder, "a", 4)
    first = submitted(at, spec)
    again = submitted(at, dataclasses.replace(spec, queue=dataclasses.replace(spec.queue, priority=5)))
    assert (again.job, again.sent, at.registry.find(first.job).priority) == (first.job, 0, 5)
    work(at)
    assert submitted(at, spec).state == "nothing to do"
    assert not at.registry.is_open(first.job)


def test_the_total_is_published(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """An autoscaler can read how much is left in all, which the queue alone does not tell."""
    assert sweeping.total(at.broker, "cpu") is None
    submitted(at, job_spec(tmp_path, tiny_encoder, "a", 20))
    work(at, 3, fold=False)
    sweeper(at).sweep()
    assert sweeping.total(at.broker, "cpu") == 17
    with redis.Redis.from_url(f"redis://{at.broker.url.partition('://')[2]}") as plain:
        assert plain.get("lading.cpu.left") == b"17"


def test_markers_know_by_names_what_the_manifest_knows(at: Queues, tmp_path: Path, tiny_encoder: Path):
    """After any mixture of done, failed and reopened shards the names alone tell what is left to do."""
    job = at.registry.find(submitted(at, job_spec(tmp_path, tiny_encoder, "a", 6)).job).open()
    markers = Markers(job.manifest.folder, 6)

    def agree() -> None:
        markers.look()
        left = {(work.shard.number, work.generation) for work in job.manifest.work()}
        assert {*markers.reopened(), *((shard, 0) for shard in markers.from_shard(0))} == left
        assert markers.pending == len(left)
        assert {(one.shard, one.generation) for one in job.manifest.receipts()} == set(markers.published())

    agree()
    publish(job, 0)
    publish(job, 1, failed="gone")
    publish(job, 2, rejects=[1])
    agree()
    job.manifest.reopen_failed()
    job.manifest.reopen_rejects()
    agree()
    assert markers.settle([(1, 1), (2, 1), (3, 0)]) == [(1, 1), (2, 1), (3, 0)]
    publish(job, 1, 1)
    publish(job, 2, 1)
    publish(job, 3)
    assert markers.settle([(1, 1), (2, 1), (3, 0), (4, 0)]) == [(4, 0)]
    agree()
