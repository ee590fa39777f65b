"""The users in deploy/redis: each can do what its part of Lading does, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult

from lading.config.errors import BrokerError, QueueFull
from lading.config.metrics import EVERYWHERE, EXPORTER, PREFIX
from lading.pipelines.steering import pool_lines
from lading.schedulers import folds
from lading.schedulers.connection import Broker
from lading.schedulers.exporter import Exporter
from lading.schedulers.folds import FoldCosts
from lading.schedulers.pools import find, load
from lading.schedulers.queues import Queue
from tests.queued import job_spec, queues, submitted
from tests.redis_server import RedisServer, executable
from tests.scraping import Scraped

FILES = sorted((Path(__file__).parents[1] / "deploy" / "redis").glob("*.acl"))
USERS = ["autoscaler", "exporter", "producer", "scheduler", "worker"]
REQUESTS, SHARDS = "lading.cpu.requests", "lading.cpu.shards"
CONTROL_LIST = "lading.cpu.control"
LARGE = 1 << 20
# What KEDA's scaler runs (pkg/scalers/redis_scaler.go): it asks for the type of the key first.
KEDA = """
local type = redis.call('type', KEYS[1]).ok
local count = {zset = 'zcard', set = 'scard', list = 'llen', hash = 'hlen', none = 'llen'}
return redis.call(count[type], KEYS[1])
"""
# Celery's own half of a worker, set up as ours is; it says which tasks it ran.
CONTROL = """
import os
from celery import Celery
url = os.environ["URL"]
app = Celery("control", broker=url, backend=url)
control = "lading.cpu.control"
app.conf.update(
    task_default_queue=control, task_create_missing_queues=False, task_acks_late=True, worker_enable_remote_control=False,
    worker_send_task_events=False, worker_prefetch_multiplier=1, broker_transport_options={
        "priority_steps": [0], "unacked_key": f"unacked:{control}", "unacked_index_key": f"unacked_index:{control}",
        "unacked_mutex_key": f"unacked_mutex:{control}", "unacked_restore_interval": 1, "unacked_restore_throttle": 1})

@app.task(name="control.add")
def add(x, y):
    return x + y
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis with the users of deploy/redis, whose passwords are their names."""
    if executable() is None:
        pytest.fail("no redis-server") if os.environ.get("CI") else pytest.skip("no redis-server")
    folder = tmp_path_factory.mktemp("guarded")
    lines = [file.read_text().rstrip("\n") + f" >{file.stem}\n" for file in FILES]
    (folder / "users.acl").write_text("".join(lines))
    server = RedisServer(folder, "--aclfile", str(folder / "users.acl"))
    yield server
    server.close()


@pytest.fixture
def admin(guarded: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=guarded.port) as client:
        client.flushall()
        client.acl_log_reset()
        yield client


def url_of(server: RedisServer, user: str) -> str:
    return f"redis://{user}:{user}@127.0.0.1:{server.port}/0"


def refusals(admin: redis.Redis) -> list[tuple[str, str]]:
    """What Redis refused to whom since the test began.

    But for CLIENT SETINFO, with which plain redis-py names itself: it does not mind, and 6.2 and 7.0 know no right for it.
    """
    refused = [(entry["username"], entry["object"]) for entry in admin.acl_log()]
    return [(user, what) for user, what in refused if not what.startswith("client")]


def celery_at(url: str, backend: str | None) -> Celery:
    """A plain Celery producer."""
    app = Celery("producer", broker=url, backend=backend, set_as_current=False)
    app.conf.update(broker_transport_options={"priority_steps": [0]})
    return app


def test_each_file_is_one_user_without_a_password() -> None:
    """A file that is loaded as it is lets nobody in; it names one user, of the file's name."""
    assert [file.stem for file in FILES] == USERS
    for file in FILES:
        [line] = file.read_text().splitlines()
        assert line.startswith(f"user {file.stem} on resetkeys resetchannels -@all ")
        assert not {">", "#", "nopass"} & {word[:1] if word[0] in "#>" else word for word in line.split()}


def test_a_user_without_a_password_is_refused(redis_server: RedisServer) -> None:
    """ACL SETUSER with the rules of a file makes a user who cannot log in before a password is given."""
    with redis.Redis(port=redis_server.port) as client:
        _, name, *rules = FILES[0].read_text().split()
        client.execute_command("ACL", "SETUSER", name, *rules)
        with pytest.raises(BrokerError, match="refuses this user"):
            Broker.connect(url_of(redis_server, name)).check()
        client.acl_deluser(name)


def do_everything(queue: Queue) -> None:
    """Every operation on a queue."""
    queue.send([b"1", b"2", b"3"])
    queue.send([b"4", b"5"], limit=9)
    assert queue.wait(1)
    first, *others = queue.pull(4, LARGE)
    assert queue.renew([first, *others]) == 4
    assert queue.restore(0) == 4
    first, second, third, *_ = queue.pull(9, LARGE)
    assert queue.begin_alone(first) == 1
    assert queue.release([first]) == 1
    assert queue.ack([second]) == 1
    assert queue.bury(third, "why")
    assert len(queue.snapshot()) == 3
    assert queue.counts().dead == 1
    letters = queue.dead()
    assert queue.replay(letters) == 1
    [lease] = [one for one in queue.pull(9, LARGE) if one.raw == b"3"]
    queue.bury(lease, "why")
    assert queue.drop(queue.dead()) == 1


@pytest.mark.parametrize("name", [REQUESTS, SHARDS])
def test_a_worker_can_do_everything_on_queues(guarded: RedisServer, admin: redis.Redis, name: str) -> None:
    """All steps of Queue and Broker, and a result beside an acknowledgement, under the rights of `worker`."""
    broker = Broker.connect(url_of(guarded, "worker"))
    broker.check()
    do_everything(broker.queue(name))
    broker.publish_report("cpu", "lost", {"version": 1})
    broker.alive("cpu", "w")
    assert broker.workers("cpu") == 1
    broker.publish_report("cpu", "w", {"version": 1})  # and removes the other
    assert broker.reports("cpu") == {"w": {"version": 1}}
    broker.gone("cpu", "w")
    broker.client.set("lading.folding:somewhere", 1, nx=True, px=1000)
    folds.add(broker, "job", FoldCosts(1, 0, 0.5))
    with broker.client.pipeline() as pipe:
        pipe.execute_command("SETEX", "celery-task-meta-1", 60, "{}").publish("celery-task-meta-1", "{}")
        broker.queue(name).ack_in(pipe, broker.queue(name).pull(1, LARGE))
        pipe.execute()
    assert refusals(admin) == []


def test_a_scheduler_keeps_queues_filled_and_whole(guarded: RedisServer, admin: redis.Redis) -> None:
    """It sends, restores, counts and looks after dead letters, but takes no message."""
    worker = Broker.connect(url_of(guarded, "worker"))
    broker = Broker.connect(url_of(guarded, "scheduler"))
    for name in (REQUESTS, SHARDS):
        queue = broker.queue(name)
        queue.send([b"1", b"2"])
        queue.send([b"3"], limit=9)
        leases = worker.queue(name).pull(2, LARGE)
        worker.queue(name).bury(leases[0], "why")
        assert len(queue.snapshot()) == 2
        assert queue.restore(0) == 1
        assert queue.replay(queue.dead()) == 1
        worker.queue(name).bury(worker.queue(name).pull(1, LARGE)[0], "why")
        assert queue.drop(queue.dead()) == 1
        assert queue.counts().waiting == 2
    assert broker.workers("cpu") == 0
    worker.alive("cpu", "w")
    worker.publish_report("cpu", "w", {"version": 1})
    assert broker.reports("cpu") == {"w": {"version": 1}}
    broker.client.set("lading.folding:somewhere", 1, nx=True, px=1000)
    folds.add(broker, "job", FoldCosts(1, 0, 0.5))
    assert folds.read(broker, "job").seconds == 0.5
    url = url_of(guarded, "scheduler")
    result = celery_at(url, url).send_task("control.add", (2, 3), queue="lading.cpu.control")
    answer = {"status": "SUCCESS", "result": 5, "traceback": None, "children": [], "task_id": result.id}
    admin.set(f"celery-task-meta-{result.id}", json.dumps(answer))
    assert result.get(timeout=10) == 5
    assert refusals(admin) == []
    with pytest.raises(BrokerError, match=r"does not let this user do that: .*deploy/redis"):
        broker.queue(SHARDS).pull(1, LARGE)
    assert broker.queue(SHARDS).counts().waiting == 2


@pytest.mark.parametrize("user", ["scheduler", "worker"])
def test_jobs_are_submitted_swept_and_shown(
    guarded: RedisServer, admin: redis.Redis, tmp_path: Path, tiny_encoder: Path, user: str
) -> None:
    """By operators and schedulers, and by workers where there is no scheduler."""
    at = queues(url_of(guarded, user), tmp_path)
    spec = job_spec(tmp_path, tiny_encoder, "a", 2)
    assert submitted(at, spec).sent == 2
    admin.delete(SHARDS)
    swept = at.sweeper().sweep(lead_s=60.0)
    assert swept is not None
    assert (swept.sent, swept.left) == (2, {"cpu": 2})
    submitted(at, spec)  # once more: whoever sweeps is told to look anew
    assert [(pool.waiting, pool.left) for pool in pool_lines(at)] == [(2, 2)]
    assert refusals(admin) == []


def test_a_producer_sends_and_awaits(guarded: RedisServer, admin: redis.Redis) -> None:
    """As our client does it, with a limit and without, and as plain Celery does it."""
    broker = Broker.connect(url_of(guarded, "producer"))
    broker.check()
    with broker.client.pubsub() as ear:
        ear.subscribe("celery-task-meta-1")
        assert ear.get_message(timeout=10)["type"] == "subscribe"
        broker.queue(REQUESTS).send([b"1"])
        broker.queue(REQUESTS).send([b"2"], limit=2)
        with pytest.raises(QueueFull):
            broker.queue(REQUESTS).send([b"3"], limit=2)
        admin.set("celery-task-meta-1", "answer")
        admin.publish("celery-task-meta-1", "answer")
        assert ear.get_message(timeout=10)["data"] == b"answer"
        ear.unsubscribe("celery-task-meta-1")
    assert broker.client.get("celery-task-meta-1") == b"answer"
    assert broker.client.mget("celery-task-meta-1") == [b"answer"]
    assert broker.client.delete("celery-task-meta-1") == 1
    url = url_of(guarded, "producer")
    result = celery_at(url, url).send_task("lading.request", kwargs={"version": 1}, queue=REQUESTS)
    answer = {"status": "SUCCESS", "result": 5, "traceback": None, "children": [], "task_id": result.id}
    admin.set(f"celery-task-meta-{result.id}", json.dumps(answer))
    assert result.get(timeout=10) == 5
    result.forget()
    assert admin.llen(REQUESTS) == 3
    assert refusals(admin) == []


def test_an_autoscaler_counts(guarded: RedisServer, admin: redis.Redis) -> None:
    """It reads how many messages wait and are in flight, by itself or with KEDA's script."""
    worker = Broker.connect(url_of(guarded, "worker"))
    client = Broker.connect(url_of(guarded, "autoscaler")).client
    worker.queue(SHARDS).send([b"1", b"2", b"3"])
    worker.queue(SHARDS).pull(1, LARGE)
    assert (client.llen(SHARDS), client.hlen(f"unacked:{SHARDS}")) == (2, 1)
    assert [client.eval(KEDA, 1, key) for key in (SHARDS, f"unacked:{SHARDS}", REQUESTS)] == [2, 1, 0]
    assert refusals(admin) == []


def test_an_exporter_reads_what_it_shows(guarded: RedisServer, admin: redis.Redis) -> None:
    """All of its series, under its own rights, with something in each of them."""
    worker = Broker.connect(url_of(guarded, "worker"))
    for name in (REQUESTS, SHARDS):
        queue = worker.queue(name)
        queue.send([b"1", b"2", b"3"])
        queue.bury(queue.pull(2, LARGE)[0], "why")
    worker.alive("cpu", "w")
    admin.set("lading.cpu.left", 7)
    one = Exporter(Broker.connect(url_of(guarded, "exporter")), {"cpu": find(load({}), "cpu")})
    found = Scraped.of(one.book.registry)
    assert {sample.name for sample in found.samples if sample.name.startswith(PREFIX)} == {
        series.full_name for series in (*EVERYWHERE, *EXPORTER)
    }
    assert (found.value("shards_left"), found.value("pool_workers"), found.total("queue_inflight")) == (7, 1, 2)
    assert one.unready() == ""
    assert refusals(admin) == []


@pytest.mark.parametrize(
    "command", [("LPUSH", SHARDS, "x"), ("DEL", SHARDS), ("SET", "lading.cpu.left", 1), ("CONFIG", "GET", "*")]
)
def test_an_exporter_changes_nothing(guarded: RedisServer, admin: redis.Redis, command: tuple[str, ...]) -> None:
    """Nor learns more of the server than INFO tells."""
    client = Broker.connect(url_of(guarded, "exporter")).client
    with pytest.raises(redis.ResponseError, match=r"(?i)no permissions"):
        client.execute_command(*command)


DENIED = {
    "read the messages": ("LRANGE", REQUESTS, 0, -1),
    "look at one": ("LINDEX", REQUESTS, 0),
    "pop": ("RPOP", REQUESTS),
    "pop in a script": ("EVAL", "return redis.call('RPOP', KEYS[1])", 1, REQUESTS),
    "move": ("BLMOVE", REQUESTS, REQUESTS, "RIGHT", "RIGHT", 1),
    "read leases": ("HGETALL", f"unacked:{REQUESTS}"),
    "send a shard": ("LPUSH", SHARDS, "x"),
    "send a control task": ("LPUSH", "lading.cpu.control", "x"),
    "hear everybody's results": ("PSUBSCRIBE", "celery-task-meta-*"),
    "hear others": ("SUBSCRIBE", "secrets"),
    "read others' keys": ("GET", "secrets"),
    "find keys": ("KEYS", "*"),
    "go through keys": ("SCAN", 0),
    "flush": ("FLUSHALL",),
    "flush one database": ("FLUSHDB",),
    "configure": ("CONFIG", "GET", "*"),
    "give rights": ("ACL", "SETUSER", "me", "on"),
    "see others": ("CLIENT", "LIST"),
    "stop the server": ("SHUTDOWN",),
    "watch the traffic": ("MONITOR",),
    "read what workers hold": ("HVALS", "lading.residents.cpu"),
    "read letters": ("LRANGE", f"dead:{REQUESTS}", 0, -1),
}


@pytest.mark.parametrize(
    ("user", "what"),
    [
        (user, what)
        for user in ("producer", "autoscaler", "exporter")
        for what in DENIED
        if (user, what) != ("exporter", "look at one")  # which says how old it is
    ],
)
def test_what_is_denied(guarded: RedisServer, admin: redis.Redis, user: str, what: str) -> None:
    """Neither who sends nor who counts can read or take others' messages, or touch the server."""
    admin.lpush(REQUESTS, "theirs")
    before = admin.dump(REQUESTS)
    with (
        redis.Redis(port=guarded.port, username=user, password=user, protocol=2) as client,
        pytest.raises(redis.ResponseError, match=r"(?i)no permissions|can't (access|run)"),
    ):
        client.execute_command(*DENIED[what])
    assert admin.dump(REQUESTS) == before


@pytest.mark.parametrize("user", USERS)
def test_any_database_will_do(guarded: RedisServer, user: str) -> None:
    """Every user may choose the database that the URL names."""
    Broker.connect(url_of(guarded, user).replace("/0", "/1")).check()


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("what", ["find keys", "flush", "configure", "give rights", "see others", "stop the server"])
def test_nobody_touches_the_server(guarded: RedisServer, admin: redis.Redis, user: str, what: str) -> None:
    """Keys are found, flushed and the server set up by its administrator alone."""
    with (
        redis.Redis(port=guarded.port, username=user, password=user, protocol=2) as client,
        pytest.raises(redis.ResponseError, match=r"(?i)no permissions"),
    ):
        client.execute_command(*DENIED[what])


def test_an_autoscaler_sends_nothing(guarded: RedisServer, admin: redis.Redis) -> None:
    """Nor reads results."""
    client = Broker.connect(url_of(guarded, "autoscaler")).client
    for command in (("LPUSH", REQUESTS, "x"), ("GET", "celery-task-meta-1"), ("DEL", REQUESTS)):
        with pytest.raises(redis.ResponseError, match=r"(?i)no permissions"):
            client.execute_command(*command)


def test_celerys_half_of_a_worker(guarded: RedisServer, admin: redis.Redis, tmp_path: Path) -> None:
    """A solo Celery worker on the control queue runs tasks, one of a worker that died too, under the rights of `worker`."""
    (tmp_path / "control.py").write_text(CONTROL)
    url = url_of(guarded, "worker")

    def send() -> AsyncResult:
        return celery_at(url, url).send_task("control.add", (2, 3), queue=CONTROL_LIST)

    left = send()
    value = json.dumps([json.loads(admin.lpop(CONTROL_LIST)), "", CONTROL_LIST])
    admin.hset(f"unacked:{CONTROL_LIST}", "tag", value)
    admin.zadd(f"unacked_index:{CONTROL_LIST}", {"tag": time.time() - 4000})  # Celery's leases last an hour
    environ = {**os.environ, "URL": url, "PYTHONPATH": str(tmp_path)}
    words = ["-A", "control", "worker", "-P", "solo", "-Q", CONTROL_LIST]
    words += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with open(tmp_path / "log", "wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", *words], env=environ, cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        result = send()
        assert [one.get(timeout=60) for one in (left, result)] == [5, 5], (tmp_path / "log").read_text()
    finally:
        worker.terminate()
        assert worker.wait() == 0, (tmp_path / "log").read_text()
    assert refusals(admin) == [], (tmp_path / "log").read_text()
