"""The queue beside plain Celery and kombu: each takes what the other sends and gives back."""

from __future__ import annotations

import base64
import json

import kombu
import pytest
from celery import Celery
from celery.result import AsyncResult

from lading.schedulers.connection import Broker
from lading.schedulers.queues import Queue
from tests.redis_server import RedisServer

LIST = "lading.cpu.requests"


@pytest.fixture
def queue(redis_server: RedisServer) -> Queue:
    return Broker.connect(redis_server.url).queue(LIST)


@pytest.fixture
def app(redis_server: RedisServer) -> Celery:
    """A producer as an application would have it, that knows nothing of Lading."""
    return Celery("application", broker=redis_server.url, backend=redis_server.url, set_as_current=False)


def arguments_of(raw: bytes) -> tuple[str, str, object]:
    """Task id, task and arguments of a message of Celery's."""
    message = json.loads(raw)
    return message["headers"]["id"], message["headers"]["task"], json.loads(base64.b64decode(message["body"]))[:2]


def taken_by_kombu(url: str, most: int) -> list[object]:
    """Bodies that a plain consumer of kombu's takes and acknowledges."""
    bodies: list[object] = []

    def take(body: object, message: kombu.Message) -> None:
        bodies.append(body)
        message.ack()

    with kombu.Connection(url) as connection:
        lists = [kombu.Queue(LIST, exchange=kombu.Exchange(LIST, type="direct"), routing_key=LIST)]
        with connection.Consumer(lists, callbacks=[take], accept=["json"]):
            while len(bodies) < most:
                connection.drain_events(timeout=30)
    return bodies


def test_what_celery_sends_is_pulled(app: Celery, queue: Queue) -> None:
    """Messages of `send_task`, with arguments of both kinds, are taken in their order, as they were sent."""
    sent = [
        app.send_task("lading.request", args=[number], kwargs={"texts": ["\u00e9"]}, queue=LIST).id
        for number in range(3)
    ]
    leases = queue.pull(10, 1 << 20)
    assert [arguments_of(lease.raw) for lease in leases] == [
        (id, "lading.request", [[number], {"texts": ["\u00e9"]}]) for number, id in enumerate(sent)
    ]
    assert queue.ack(leases) == 3


def test_what_is_given_back_kombu_can_take(app: Celery, queue: Queue, redis_server: RedisServer) -> None:
    """A released and a restored message are read by a plain consumer, in their order, and nothing of them stays."""
    for number in range(3):
        app.send_task("lading.request", args=[number], queue=LIST)
    leases = queue.pull(10, 1 << 20)
    assert queue.release(leases[1:]) == 2
    assert queue.restore(0) == 1
    bodies = taken_by_kombu(redis_server.url, 3)
    assert [body[0] for body in bodies] == [[0], [1], [2]]  # type: ignore[index]
    counts = queue.counts()
    assert (counts.waiting, counts.in_flight) == (0, 0)


def test_a_result_for_who_awaits_with_celery(app: Celery, queue: Queue) -> None:
    """A result that is stored beside the acknowledgement is what a plain AsyncResult returns."""
    awaited: AsyncResult = app.send_task("lading.request", queue=LIST)
    leases = queue.pull(1, 1 << 20)
    answer = {"status": "SUCCESS", "result": [1.5], "traceback": None, "children": [], "task_id": awaited.id}
    key = f"celery-task-meta-{awaited.id}"
    with queue._client.pipeline() as pipe:
        pipe.execute_command("SETEX", key, 60, json.dumps(answer))
        pipe.publish(key, json.dumps(answer))
        queue.ack_in(pipe, leases)
        pipe.execute()
    assert awaited.get(timeout=30) == [1.5]


def test_a_lease_has_the_form_of_kombu_s(app: Celery, queue: Queue) -> None:
    """Kombu's own restore reads it: the message, an empty exchange, the queue."""
    app.send_task("lading.request", queue=LIST)
    [lease] = queue.pull(1, 1 << 20)
    value = queue._client.hget(f"unacked:{LIST}", lease.field)
    assert json.loads(value) == [json.loads(lease.raw), "", LIST]
    assert queue._client.zscore(f"unacked_index:{LIST}", lease.field) > 1e9
