"""Requests between the queue and the engine: shared fairly, taken a little ahead, and each of them answered or given up for a reason."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import lancedb
import pytest

from lading.config.settings import load as load_settings
from lading.pipelines.registry import Registry
from lading.schedulers import pools
from lading.schedulers.bodies import RequestOptions
from lading.schedulers.connection import Broker
from lading.schedulers.messages import Request, request_message
from lading.workers.groups import Group
from lading.workers.parts import Chosen, cost_of
from lading.workers.requests import BUDGETS_AHEAD
from lading.workers.worker import Worker
from tests.redis_server import RedisServer

BUDGET, PULL = 64, 8
HOT, COLD = RequestOptions(), RequestOptions(max_tokens=32)  # two recipes, and so two models


@pytest.fixture
def worker(
    redis_server: RedisServer, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Worker]:
    """A worker of which only the parts that pull and answer requests run: the test is its engine."""
    for name, value in {
        "BROKER_URL": redis_server.url,
        "JOBS": f"{tmp_path}/jobs",
        "ROOTS": f"{tmp_path},{tiny_encoder.parent.parent}",
        "THREADS": "1",
        "FOLD_INTERVAL_S": "0.05",
    }.items():
        monkeypatch.setenv(f"LADING_{name}", value)
    settings = load_settings()
    pool = dataclasses.replace(pools.find(pools.load(), "cpu"), batch_tokens=BUDGET, pull_requests=PULL)
    one = Worker(pool, settings, Broker.connect(settings.broker_url), Registry(settings.jobs))
    one.answers.start()
    yield one
    one.stopping.set()
    one.lane.join(30)
    one.answers.end(30)


def until(claim: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def send(worker: Worker, model: Path, *texts: str, options: RequestOptions = HOT, expires: float = 0.0, into: str = ""):
    """One request for each text; their ids."""
    ids = [uuid.uuid4().hex for _ in texts]
    requests = [Request("encode", str(model), [one], options, into, [one] if into else ()) for one in texts]
    worker.requests.send(
        [request_message(one, id=id, now=time.time(), expires=expires) for one, id in zip(requests, ids, strict=True)]
    )
    return ids


def take(worker: Worker) -> list[Chosen]:
    """As an engine with every model there."""
    return worker.lane.take(lambda _: True, lambda _: BUDGET)


def answer(worker: Worker, id: str) -> dict[str, object] | None:
    stored = worker.broker.client.get(f"celery-task-meta-{id}")
    return json.loads(stored) if stored else None  # pyright: ignore


def names(chosen: list[Chosen]) -> set[str]:
    """Ids of the requests that these items are of."""
    return {member.asked.id for group, _ in chosen for member in group.members if isinstance(group, Group)}  # pyright: ignore


def test_a_models_backlog_does_not_starve_another_model(worker: Worker, tiny_encoder: Path) -> None:
    """One request for a model that nobody else asks for is in one of the next two batches, however many wait for another model."""
    send(worker, tiny_encoder, *[f"hot {n} " + "word " * 6 for n in range(PULL - 1)])
    (cold,) = send(worker, tiny_encoder, "cold", options=COLD)
    send(worker, tiny_encoder, *[f"hot {n} " + "word " * 6 for n in range(200)])
    worker.lane.start()
    until(lambda: len(worker.lane.adapters()) == 2)
    batches = [take(worker) for _ in range(2)]
    assert cold in names(batches[0]) | names(batches[1])
    (late,) = send(worker, tiny_encoder, "cold again", options=COLD)
    served: set[str] = set()
    while late not in served:  # the queue itself is first come, first served
        until(lambda: (taken := take(worker)) and served.update(names(taken)) is None)
    assert worker.requests.counts().waiting == 0


def test_no_more_is_taken_than_the_engine_has_before_it(worker: Worker, tiny_encoder: Path) -> None:
    """What is beyond some batches' worth stays in the queue for other workers, and is taken when there is room."""
    send(worker, tiny_encoder, *["one two three"] * 400)
    worker.lane.start()
    chosen: list[Chosen] = []
    until(lambda: chosen or chosen.extend(take(worker)))
    each = cost_of(chosen) // sum(len(items) for _, items in chosen)

    def held() -> int:
        return worker.requests.counts().in_flight * each

    most = BUDGETS_AHEAD * BUDGET + PULL * each + cost_of(chosen)
    until(lambda: held() > BUDGETS_AHEAD * BUDGET)
    assert held() <= most
    before = worker.requests.counts().in_flight
    taken = sum(cost_of(take(worker)) for _ in range(2))
    until(lambda: worker.requests.counts().in_flight > before)
    assert held() <= most + taken


def test_a_request_past_its_time_is_dropped(worker: Worker, tiny_encoder: Path) -> None:
    """It is acknowledged without an answer, and never comes to the engine."""
    (late,) = send(worker, tiny_encoder, "late", expires=time.time() - 1)
    (timely,) = send(worker, tiny_encoder, "timely", expires=time.time() + 1000)
    worker.lane.start()
    taken: set[str] = set()
    until(lambda: timely in taken or taken.update(names(take(worker))))
    assert taken == {timely}
    assert worker.requests.counts().in_flight == 1
    assert answer(worker, late) is None


def test_requests_without_a_good_input_are_answered(worker: Worker, tiny_encoder: Path) -> None:
    """There is nothing to run for them, and their client still hears what is wrong with each input."""
    ids = send(worker, tiny_encoder, "", " ", "\n")
    worker.lane.start()
    until(lambda: all(answer(worker, id) for id in ids))
    for id in ids:
        stored = answer(worker, id)
        assert stored
        assert stored["status"] == "SUCCESS"
        assert [(index, code) for index, code, _ in stored["result"]["errors"]] == [(0, "empty-text")]  # pyright: ignore
    until(lambda: worker.requests.counts().in_flight == 0)
    assert take(worker) == []


def test_requests_wait_for_a_table_whose_disk_is_full(
    worker: Worker,
    tiny_encoder: Path,
    tmp_path: Path,
    disk: Callable[[str, str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Their leases are kept meanwhile, nobody is under suspicion, and they are answered when there is room again."""
    place = disk("small", "400k")
    (place / "ballast").write_bytes(bytes(390 << 10))
    ids = send(worker, tiny_encoder, "a", "b", into=f"lancedb://{place}/docs")
    threading.Thread(target=_serve, args=(worker,), daemon=True).start()
    worker.lane.start()
    with caplog.at_level(logging.ERROR, "lading"):
        until(lambda: "requests wait" in caplog.text)
    assert worker.leases.held(worker.requests)
    (place / "ballast").unlink()
    until(lambda: all(answer(worker, id) for id in ids))
    assert [answer(worker, id)["status"] for id in ids] == ["SUCCESS"] * 2  # pyright: ignore
    until(lambda: worker.requests.counts().in_flight == 0)
    assert lancedb.connect(str(place)).open_table("docs").count_rows() == 2


def _serve(worker: Worker) -> None:
    """The engine, without shards."""
    while not worker.stopping.is_set():
        if group := next((group for group, _ in take(worker)), None):
            worker.engine.alone(group)
            worker.lane.completed(group)
        worker.stopping.wait(0.01)
