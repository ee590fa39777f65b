"""The queue on a real Redis: what is taken, held, given back and given up, and that nothing is in two places or in none."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
import redis

from lading.config.errors import QueueFull
from lading.schedulers.connection import AsyncBroker, Broker
from lading.schedulers.queues import MOST_LETTERS, Counts, Lease, Queue
from tests.redis_server import RedisServer

LIST = "lading.cpu.requests"
LARGE = 1 << 30
JUNK = [
    b"",
    b"\x00\xff\xfe[",
    f'["x", "", "{LIST}"]'.encode(),
    f', "", "{LIST}"]'.encode(),
    b'{"not": "json',
    "\u00e9\u2028".encode(),
    bytes(range(256)),
]


@pytest.fixture
def broker(redis_server: RedisServer) -> Broker:
    return Broker.connect(redis_server.url)


@pytest.fixture
def queue(broker: Broker) -> Queue:
    return broker.queue(LIST)


def raws(leases: list[Lease]) -> list[bytes]:
    return [lease.raw for lease in leases]


def test_the_oldest_comes_first(queue: Queue) -> None:
    """Messages are taken in the order in which they were sent, by one send or many, and a lease names each."""
    queue.send([b"1", b"2"])
    queue.send([])
    queue.send([b"3"])
    taken = queue.pull(2, LARGE)
    assert raws(taken) == [b"1", b"2"]
    assert [lease.number for lease in taken] == [1, 2]
    assert raws(queue.pull(0, LARGE)) == []
    assert raws(queue.pull(9, LARGE)) == [b"3"]
    assert queue.pull(9, LARGE) == []


def test_many_come_in_order(queue: Queue) -> None:
    """A pull larger than what the script reads at once keeps order and count."""
    sent = [b"%d" % number for number in range(2500)]
    queue.send(sent, limit=2500)
    taken = queue.pull(2100, LARGE)
    assert raws(taken) == sent[:2100]
    assert queue.release(taken) == 2100
    again = queue.pull(9999, LARGE)
    assert raws(again) == sent
    assert queue.ack(again) == 2500


@pytest.mark.parametrize(("cap", "taken"), [(0, 1), (9, 1), (10, 1), (19, 1), (20, 2), (29, 2), (10_000, 100)])
def test_a_pull_stops_before_its_bytes_are_exceeded(queue: Queue, cap: int, taken: int) -> None:
    """A pull never holds more than its bytes, but for a first message that alone is larger."""
    queue.send([b"0123456789"] * 100)
    assert len(queue.pull(100, cap)) == taken
    assert queue.counts() == Counts(100 - taken, taken, 0, None)


def test_a_full_queue_takes_all_or_nothing(queue: Queue) -> None:
    """A send above the limit adds none of its messages and says how many wait; what fits to the limit is taken."""
    queue.send([b"1", b"2"], limit=3)
    with pytest.raises(QueueFull, match=r"lading\.cpu\.requests has 2 messages waiting and takes no more than 3"):
        queue.send([b"3", b"4"], limit=3)
    queue.send([b"3"], limit=3)
    assert queue.counts().waiting == 3
    queue.pull(1, LARGE)
    queue.send([b"4"], limit=3)


def test_what_is_done_is_gone(queue: Queue, redis_server: RedisServer) -> None:
    """After the last acknowledgement Redis holds nothing of the queue, whatever happened to its messages before."""
    queue.send(JUNK)
    queue.pull(99, LARGE)
    assert queue.restore(0) == len(JUNK)
    alone = queue.pull(1, LARGE)
    assert queue.begin_alone(alone[0]) == 1
    assert queue.release(alone) == 1
    assert queue.ack(queue.pull(99, LARGE)) == len(JUNK)
    with redis.Redis(port=redis_server.port) as client:
        assert client.keys() == []


def test_a_message_is_never_read(queue: Queue) -> None:
    """What is no JSON, holds NUL bytes, no UTF-8 or the end of a lease's value comes back byte for byte on every way."""
    queue.send(JUNK)
    taken = queue.pull(99, LARGE)
    assert raws(taken) == JUNK
    assert sorted(queue.snapshot()) == sorted(JUNK)
    assert queue.release(taken) == len(JUNK)
    assert raws(queue.pull(99, LARGE)) == JUNK
    assert queue.restore(0) == len(JUNK)
    again = queue.pull(99, LARGE)
    assert raws(again) == JUNK
    for lease in again:
        assert queue.bury(lease, "junk")
    letters = queue.dead()
    assert [letter.raw for letter in letters] == JUNK[::-1]
    assert queue.replay(letters[::-1]) == len(JUNK)
    assert raws(queue.pull(99, LARGE)) == JUNK


def test_given_back_comes_next(queue: Queue) -> None:
    """What was released or restored is taken before what waits, in its old order."""
    queue.send([b"1", b"2", b"3", b"4"])
    queue.release(queue.pull(2, LARGE))
    assert raws(queue.pull(3, LARGE)) == [b"1", b"2", b"3"]
    queue.restore(0)
    assert raws(queue.pull(9, LARGE)) == [b"1", b"2", b"3", b"4"]


def test_a_thawed_worker_touches_nothing_of_its_successor(queue: Queue) -> None:
    """A lease that ran out and went to another cannot be acknowledged, renewed, released, counted or buried by its first holder."""
    queue.send([b"1", b"2"])
    queue.pull(2, LARGE)
    assert queue.restore(0) == 2
    frozen = queue.pull(2, LARGE)
    assert queue.restore(0) == 2
    successor = queue.pull(2, LARGE)
    before = queue._look(*[("DUMP", key) for key in queue._keys])
    assert queue.ack(frozen) == queue.renew(frozen) == queue.release(frozen) == 0
    assert queue.begin_alone(frozen[0]) == 0
    assert not queue.bury(frozen[0], "poison")
    assert queue._look(*[("DUMP", key) for key in queue._keys]) == before
    assert queue.ack(successor) == 2


def test_a_thawed_worker_may_find_the_message_waiting(queue: Queue) -> None:
    """Nor can it touch what has gone back and was not taken yet."""
    queue.send([b"1"])
    frozen = queue.pull(1, LARGE)
    queue.restore(0)
    assert queue.ack(frozen) == queue.renew(frozen) == queue.release(frozen) == 0
    assert queue.counts() == Counts(1, 0, 0, None)


def test_leases_run_out_one_by_one(queue: Queue, broker: Broker) -> None:
    """Only what nobody renewed for the length of a lease goes back; renewing counts from now."""
    queue.send([b"1", b"2", b"3"])
    first, second, third = queue.pull(3, LARGE)
    for lease, age in ((first, 100), (second, 100), (third, 10)):
        broker.client.zincrby(f"unacked_index:{LIST}", -age, lease.field)
    assert queue.renew([second]) == 1
    assert queue.restore(50) == 1
    assert raws(queue.pull(9, LARGE)) == [b"1"]
    assert queue.renew([first, second, third]) == 2


def test_restore_is_bounded(queue: Queue) -> None:
    """A step never gives back more than it is told to, and begins with what is longest without a sign of life."""
    queue.send([b"%d" % number for number in range(5)])
    queue.pull(3, LARGE)
    queue.pull(2, LARGE)
    assert queue.restore(0, most=3) == 3
    assert raws(queue.pull(9, LARGE)) == [b"0", b"1", b"2"]


def test_suspicion_and_strikes(queue: Queue) -> None:
    """Only a message whose lease ran out is a suspect; only a start alone counts as a death, and only until it ends well."""
    queue.send([b"poison", b"neighbour"])
    assert [lease.suspect for lease in queue.pull(2, LARGE)] == [None, None]
    queue.restore(0)
    poison, neighbour = queue.pull(2, LARGE)
    assert (poison.suspect, neighbour.suspect) == (0, 0)
    assert queue.begin_alone(poison) == queue.begin_alone(poison) == 1  # a repeat after a lost reply is the same start
    queue.restore(0)  # dead
    poison, neighbour = queue.pull(2, LARGE)
    assert (poison.suspect, neighbour.suspect) == (1, 0)
    assert queue.begin_alone(poison) == 2
    assert queue.release([poison, neighbour]) == 2  # told to stop in the middle
    poison, neighbour = queue.pull(2, LARGE)
    assert (poison.suspect, neighbour.suspect) == (1, 0)
    assert queue.ack([neighbour]) == 1
    assert queue.begin_alone(poison) == 2
    queue.restore(0)  # dead
    [poison] = queue.pull(2, LARGE)
    assert poison.suspect == 2
    assert queue.bury(poison, "killed its process 2 times")
    queue.send([b"poison", b"neighbour"])
    assert [lease.suspect for lease in queue.pull(2, LARGE)] == [None, None]


def test_a_released_message_is_no_suspect(queue: Queue) -> None:
    """An orderly stop holds nothing against what it gives back; and what is no suspect is not counted."""
    queue.send([b"1"])
    queue.release(queue.pull(1, LARGE))
    [lease] = queue.pull(1, LARGE)
    assert lease.suspect is None
    with pytest.raises(ValueError, match="only a message under suspicion"):
        queue.begin_alone(lease)


def test_dead_letters(queue: Queue) -> None:
    """A letter says why, when and what; it can be sent again or dropped, once."""
    queue.send([b"1", b"\xff"])
    for lease in queue.pull(2, LARGE):
        assert queue.bury(lease, f"reason {lease.number}")
    second, first = queue.dead()
    assert (first.reason, first.raw, second.reason, second.raw) == ("reason 1", b"1", "reason 2", b"\xff")
    assert json.loads(first.entry)["message"] == "1"
    assert json.loads(second.entry)["encoding"] == "base64"
    assert first.when <= second.when
    assert queue.counts() == Counts(0, 0, 2, None)
    assert queue.dead(1, 1) == [first]
    assert queue.replay([first]) == 1
    assert queue.replay([first]) == queue.drop([first]) == 0
    assert queue.drop([second]) == 1
    assert raws(queue.pull(9, LARGE)) == [b"1"]
    assert queue.dead() == []


def test_dead_letters_are_bounded(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    """Above the bound the oldest letter goes, and the log says so."""
    queue.send([b"%d" % number for number in range(MOST_LETTERS + 1)])
    for lease in queue.pull(MOST_LETTERS + 1, LARGE):
        queue.bury(lease, "bad")
    assert queue.counts().dead == MOST_LETTERS
    assert queue.dead(MOST_LETTERS - 1, 9)[0].raw == b"1"
    assert "dead letter dropped" in caplog.text


def test_the_age_of_the_next_message(queue: Queue, broker: Broker) -> None:
    """It is told where the message says when it was sent; a message that says nothing sensible has none."""
    now = broker.client.time()[0]
    for header in (now - 100, "soon", None, float("nan"), 10**400):
        queue.send([json.dumps({"headers": {"lading_sent": header}}).encode()])
    age = queue.counts().oldest_age_s
    assert age is not None
    assert 100 <= age < 200
    queue.pull(1, LARGE)
    for _ in range(4):
        assert queue.counts().oldest_age_s is None
        queue.pull(1, LARGE)


def test_waiting_takes_nothing(queue: Queue) -> None:
    """A waiter wakes when a message comes, another waiter too, and the message is still there; else it says that none came."""
    assert not queue.wait(0.05)
    woken = [False, False]

    def wait(number: int) -> None:
        woken[number] = queue.wait(10)

    waiters = [threading.Thread(target=wait, args=(number,)) for number in range(2)]
    for waiter in waiters:
        waiter.start()
    queue.send([b"1", b"2"])
    for waiter in waiters:
        waiter.join()
    assert woken == [True, True]
    assert queue.wait(0)
    assert raws(queue.pull(9, LARGE)) == [b"1", b"2"]


def test_acknowledging_in_a_pipeline(queue: Queue, broker: Broker) -> None:
    """Results and the acknowledgement of their messages go to Redis together."""
    queue.send([b"1"])
    leases = queue.pull(1, LARGE)
    with broker.client.pipeline() as pipe:
        pipe.set("result", "1")
        queue.ack_in(pipe, leases)
        queue.ack_in(pipe, [])
        assert pipe.execute() == [True, 1]
    assert queue.counts() == Counts(0, 0, 0, None)


def test_sending_from_asyncio(redis_server: RedisServer, queue: Queue) -> None:
    """An asynchronous client sends as a Queue does, limit included."""

    async def send() -> None:
        broker: AsyncBroker = Broker.connect_async(redis_server.url)
        await broker.send(LIST, [b"1"])
        await broker.send(LIST, [b"2"], limit=2)
        with pytest.raises(QueueFull):
            await broker.send(LIST, [b"3"], limit=2)
        await broker.close()

    asyncio.run(send())
    assert raws(queue.pull(9, LARGE)) == [b"1", b"2"]


def test_workers_are_counted_while_they_live(broker: Broker) -> None:
    """A worker counts from its first sign of life until it stops or is silent for a minute, in its own pool."""
    broker.alive("cpu", "a")
    broker.alive("cpu", "a")
    broker.alive("cpu", "b")
    broker.alive("gpu", "c")
    assert (broker.workers("cpu"), broker.workers("gpu"), broker.workers("none")) == (2, 1, 0)
    broker.gone("cpu", "a")
    assert broker.workers("cpu") == 1
    broker.client.zincrby("lading.workers.cpu", -61, "b")
    assert broker.workers("cpu") == 0
    broker.client.zincrby("lading.workers.cpu", -90_000, "b")
    broker.alive("cpu", "a")
    assert broker.client.zcard("lading.workers.cpu") == 1
