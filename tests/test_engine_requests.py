"""Requests in the engine: first, in the same batches as rows of shards, shared fairly between models, never at the cost of a tenth for shards."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque

import numpy as np
import pyarrow as pa
import pytest

from lading.config.errors import StopJob
from lading.workers.engine import Engine
from lading.workers.packer import Packing
from lading.workers.parts import Items
from lading.workers.shares import LEAST_SHARE, Shares
from lading.workers.window import WINDOW_PARTS
from tests.test_engine import Lengths, Task, rows_of


class Waiting:
    """Requests that wait, each a text; what is completed goes to `done`."""

    def __init__(self, adapter: Lengths, texts: list[str]) -> None:
        self.adapter, self.texts = adapter, deque(texts)
        self.done: queue.SimpleQueue[tuple[str, Items]] = queue.SimpleQueue()
        self.names: dict[int, str] = {}

    def adapters(self):
        return [self.adapter] if self.texts else []

    def take(self, may_run, budget_of):
        if not self.texts or not may_run(self.adapter):
            return []
        chosen, budget = [], budget_of(self.adapter)
        while self.texts and budget > 0:
            text = self.texts.popleft()
            prepared = self.adapter.prepare([pa.array([text])])
            items = Items(self.adapter, prepared, len(prepared.costs))
            self.names[id(items)] = text
            chosen.append((items, Packing(prepared.costs).take(budget)))
            budget -= int(prepared.costs.sum())
        return chosen

    def refuse(self, adapter, why: str) -> None:
        raise AssertionError(why)

    def completed(self, items: Items) -> None:
        self.done.put((self.names[id(items)], items))


def engine(adapter: Lengths, requests: Waiting, budget: int = 16, window: int = 64) -> Engine:
    return Engine(adapter.streams, budget, window, threading.Event(), requests=requests)


def shards_of(adapter: Lengths, count: int, texts: list[str]):
    return [Task(number, adapter, lambda _: iter([rows_of(texts)])) for number in range(count)]


def test_requests_run_first_and_share_batches_with_shards() -> None:
    """What comes while shards are at work is in the next batch that is formed, which rows of a shard fill up."""

    class Asking(Lengths):
        def run(self, parts):
            if not self.batches:
                requests.texts.append("now please")
            return super().run(parts)

    adapter = Asking()
    requests = Waiting(adapter, [])
    (_,) = engine(adapter, requests, window=1000).shards(shards_of(adapter, 1, ["a b c d e f"] * 40))
    (with_request,) = [batch for batch in adapter.batches if "now please" in batch]
    assert with_request == ["now please", "a b c d e f", "a b c d e f"]
    assert adapter.batches.index(with_request) <= 3  # two batches of the stream were formed before
    text, items = requests.done.get_nowait()
    assert text == "now please"
    assert items.done[0][1].column(0).to_pylist() == [2.0]


def test_a_request_that_fails_harms_nobody_else() -> None:
    """The batch is halved down to it: the rows beside it have their results."""
    adapter = Lengths()
    requests = Waiting(adapter, ["poison", "fine"])
    (shard,) = engine(adapter, requests).shards(shards_of(adapter, 1, ["a b"] * 3))
    results = dict(requests.done.get_nowait() for _ in range(2))
    assert results["poison"].failed[0][0] == "failed"
    assert not results["fine"].failed
    assert not shard.parts[0].failed


def test_requests_beside_a_hopeless_job_are_answered() -> None:
    """The model raises on every row of the shards: they stop, and no request that was taken off its lane is forgotten."""

    class Asking(Lengths):
        def run(self, parts):
            requests.texts.extend(["fine"] if len(self.batches) < 12 else [])
            return super().run(parts)

    adapter = Asking()
    requests = Waiting(adapter, ["first", "second"])
    with pytest.raises(StopJob, match="the model failed on every one"):
        list(engine(adapter, requests).shards(shards_of(adapter, 3, ["poison"] * 10)))
    answered = [requests.done.get_nowait() for _ in range(requests.done.qsize())]
    assert len(answered) == len(requests.names) > 1  # all that were taken
    assert all(items.done and not items.failed for _, items in answered)


def test_rows_do_not_wait_for_a_window_to_fill_when_nothing_more_is_at_hand() -> None:
    """The feed says that it has no more for now: what was read is run, though the feed goes on."""
    adapter = Lengths()
    more = threading.Event()

    def feed():
        yield from shards_of(adapter, 1, ["a"])
        yield None
        assert more.wait(60)

    finished = engine(adapter, Waiting(adapter, []), window=1000).shards(feed())
    assert next(finished).work.shard.number == 0
    more.set()
    assert list(finished) == []


def test_a_window_holds_rows_of_one_model() -> None:
    """Shards of two models alternate: every batch is of one of them, every shard comes out."""
    one, other = Lengths(), Lengths()
    tasks = [Task(number, [one, other][number % 2], lambda _: iter([rows_of(["a b"] * 5)])) for number in range(6)]
    finished = list(engine(one, Waiting(one, [])).shards(tasks))
    assert sorted(shard.work.shard.number for shard in finished) == list(range(6))
    assert sum(map(len, one.batches)) == sum(map(len, other.batches)) == 15


def test_a_request_is_served_while_no_shard_is_there() -> None:
    """The engine waits for shards and for requests at the same time."""
    adapter = Lengths()
    requests = Waiting(adapter, [])
    asked, end = threading.Event(), threading.Event()
    running = engine(adapter, requests)

    def feed():
        asked.set()
        assert end.wait(60)
        yield from ()

    thread = threading.Thread(target=lambda: list(running.shards(feed())))
    thread.start()
    assert asked.wait(60)
    requests.texts.append("hello you")
    running.bell.set()
    assert requests.done.get(timeout=60)[0] == "hello you"
    end.set()
    thread.join(60)
    assert not thread.is_alive()


class Bell(threading.Event):
    """Counts the turns of the engine's loop, each of which begins with silence."""

    turns = 0

    def clear(self) -> None:
        self.turns += 1
        super().clear()


def test_the_engine_waits_and_does_not_spin_while_a_batch_runs() -> None:
    """A shard that has ended waits behind its last batch: until that is done the loop sleeps, and leaves the core to others."""
    turned: list[int] = []

    class Slow(Lengths):
        def run(self, parts):
            before = bell.turns
            time.sleep(0.3)  # long beside a turn, of which some microseconds would make thousands
            turned.append(bell.turns - before)
            return super().run(parts)

    adapter, bell = Slow(), Bell()
    running = Engine(1, 16, 64, threading.Event(), bell=bell)
    list(running.shards(shards_of(adapter, 3, ["a b"])))
    assert max(turned) < 20


def test_many_parts_without_cost_end_a_window_too() -> None:
    """Blank rows of one shard do not gather without end."""
    adapter = Lengths()
    task = Task(0, adapter, lambda _: iter([rows_of([""], number) for number in range(3 * WINDOW_PARTS)]))
    (shard,) = engine(adapter, Waiting(adapter, [])).shards([task])
    assert len(shard.parts) == 3 * WINDOW_PARTS


def share_of_shards(batch_s: float, request_s: float, batches: int) -> float:
    """Shards always wait, requests too: the share of the device's time that shards get."""
    shares, shards = Shares(), 0.0
    total = 0.0
    for _ in range(batches):
        seconds, of_shards = (batch_s, 1.0) if shares.owed > 0 else (request_s, 0.0)
        shares.count(seconds, of_shards)
        shards += seconds * of_shards
        total += seconds
    return shards / total


@pytest.mark.parametrize(("batch_s", "request_s"), [(1.0, 1.0), (1.0, 0.01), (0.01, 1.0), (0.2, 0.03)])
def test_waiting_shards_keep_a_tenth_of_the_device(batch_s: float, request_s: float) -> None:
    """However long the batches of either are, and however many requests come."""
    assert share_of_shards(batch_s, request_s, 50_000) == pytest.approx(LEAST_SHARE, rel=0.05)


def test_a_night_of_shards_is_not_held_against_them() -> None:
    """After hours without requests, requests get their nine tenths, and shards do not wait for hours."""
    shares = Shares()
    for _ in range(1000):
        shares.count(1.0, 1.0)
    waited = 0.0
    while shares.owed <= 0:
        shares.count(0.1, 0.0)
        waited += 0.1
    assert waited <= 1.0 * (1 - LEAST_SHARE) / LEAST_SHARE + 0.2


def test_alone_runs_items_and_counts_what_the_model_raised_on() -> None:
    """Without any thread, each failure kept to its item."""
    adapter = Lengths()
    prepared = adapter.prepare([pa.array(["a", "poison", "b c", "poison"])])
    items = Items(adapter, prepared, len(prepared.costs))
    assert engine(adapter, Waiting(adapter, [])).alone(items) == 2
    assert sorted(items.failed) == [1, 3]
    assert items.missing == 0
    assert sorted(int(one) for places, _ in items.done for one in np.atleast_1d(places)) == [0, 2]


class Endless(Waiting):
    """Requests that never end."""

    def take(self, may_run, budget_of):
        self.texts.append("again")
        return super().take(may_run, budget_of)


def test_shards_end_though_requests_keep_coming() -> None:
    """Something is to run alone then, and would wait for a quiet moment that never comes."""
    adapter = Lengths()
    finished = list(engine(adapter, Endless(adapter, [])).shards(shards_of(adapter, 3, ["a b c"] * 4)))
    assert len(finished) == 3
