"""The engine beside models that come and go: it runs what is there, waits for what is not, and loses nothing of what never comes."""

from __future__ import annotations

import contextlib
import threading
from collections import deque

import pyarrow as pa
import pytest

from lading.adapters.contract import DeviceLost, OutOfMemory
from lading.workers.attempts import ROOMS
from lading.workers.engine import Engine
from lading.workers.packer import Packing
from lading.workers.parts import Items
from tests.test_engine import Lengths, Task, rows_of


class Places:
    """Residents of the test's own: models are there or not, and what the engine asks is noted."""

    def __init__(self) -> None:
        self.there: set[int] = set()
        self.lost: dict[int, str] = {}
        self.asked: list[int] = []
        self.held = 0
        self.rooms = 0  # how often another model can go

    def hold(self, adapter):
        self.asked.append(id(adapter))
        self.held += id(adapter) in self.there
        return id(adapter) in self.there

    def release(self, adapter):
        self.held -= 1

    def holding(self, adapter):
        return contextlib.nullcontext()

    def working(self, wanted):
        self.wanted = [id(one) for one in wanted]

    def trouble(self, adapter):
        return self.lost.get(id(adapter), "")

    def delay(self, adapter):
        return ""

    def make_room(self, adapter):
        self.rooms -= 1
        return self.rooms >= 0

    def lose(self, why):
        self.lost_device = why


class Lane:
    """Requests for some models, as the product's lane has them."""

    def __init__(self, *texts) -> None:
        self.waiting = deque(texts)  # (adapter, text)
        self.done, self.refused = [], []

    def adapters(self):
        return list(dict.fromkeys(adapter for adapter, _ in self.waiting))

    def take(self, may_run, budget_of):
        for adapter in self.adapters():
            if may_run(adapter):
                text = next(text for one, text in self.waiting if one is adapter)
                self.waiting.remove((adapter, text))
                prepared = adapter.prepare([pa.array([text])])
                items = Items(adapter, prepared, len(prepared.costs))
                return [(items, Packing(prepared.costs).take(budget_of(adapter)))]
        return []

    def refuse(self, adapter, why):
        self.refused += [text for one, text in self.waiting if one is adapter]
        self.waiting = deque(pair for pair in self.waiting if pair[0] is not adapter)

    def completed(self, items):
        self.done.append(items)


def shards_of(*work):
    """(adapter, texts) each."""
    return [
        Task(number, adapter, lambda _, texts=texts: iter([rows_of(texts)]))
        for number, (adapter, texts) in enumerate(work)
    ]


def engine(places, lane=None, budget=16):
    return Engine(1, budget, 64, threading.Event(), models=places, **({"requests": lane} if lane else {}))


def test_requests_of_a_model_that_is_there_run_while_shards_wait_for_theirs() -> None:
    here, away = Lengths(), Lengths()
    places, lane = Places(), Lane()
    places.there.add(id(here))
    lane.waiting.extend((here, "a b") for _ in range(3))
    running = engine(places, lane)
    found = []
    thread = threading.Thread(target=lambda: found.extend(running.shards(shards_of((away, ["a", "b"])))), daemon=True)
    thread.start()
    while len(lane.done) < 3:
        running.bell.wait(0.01)
    assert not away.batches
    assert id(away) in places.asked
    assert id(away) in places.wanted
    places.there.add(id(away))
    running.bell.set()
    thread.join(30)
    assert [shard.failure for shard in found] == [""]
    assert places.held == 0


def test_a_model_that_cannot_come_fails_its_own_shards_and_requests_alone() -> None:
    here, lost = Lengths(), Lengths()
    places, lane = Places(), Lane((lost, "of the lost one"), (here, "a"))
    places.there.add(id(here))
    places.lost[id(lost)] = "its file is gone"
    work = shards_of((lost, ["a"] * 40), (here, ["a b"] * 3), (lost, ["c"]))
    found = list(engine(places, lane).shards(work))
    assert {shard.work.shard.number: shard.failure for shard in found} == {
        0: "its file is gone",
        1: "",
        2: "its file is gone",
    }
    assert lane.refused == ["of the lost one"]
    assert len(lane.done) == 1
    assert len(found[[shard.work.shard.number for shard in found].index(1)].parts[0].done) >= 1


def test_a_model_that_cannot_come_is_told_of_however_busy_the_others_are() -> None:
    """What keeps the device busy is no reason to look at the lost one's work too late, when its failure is forgotten."""
    here, lost = Lengths(), Lengths()

    class Endless(Lane):
        def completed(self, items):
            super().completed(items)
            if self.pending():
                self.waiting.append((here, "a"))

        def pending(self):
            return not self.refused or not given_up.is_set()

    given_up, ended = threading.Event(), threading.Event()
    places, lane = Places(), Endless((lost, "of the lost one"), *[(here, "a")] * 9)
    places.there.add(id(here))
    places.lost[id(lost)] = "its file is gone"

    def feed():
        yield from shards_of((lost, ["a"]))
        while lane.pending() and not ended.wait(0.001):
            yield None

    def run():
        for shard in engine(places, lane).shards(feed()):
            assert shard.failure == "its file is gone"
            given_up.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    ended.set()
    assert lane.refused == ["of the lost one"]
    assert given_up.is_set()


def test_a_shard_that_is_given_up_while_it_is_read_has_failed() -> None:
    """That all of it could be read in the end makes nothing good: its first rows have no result."""
    lost, asked = Lengths(), threading.Event()

    class Telling(Places):
        def trouble(self, adapter):
            asked.set()
            return super().trouble(adapter)

    places = Telling()
    places.lost[id(lost)] = "its file is gone"

    def read(_):
        yield rows_of(["a b"] * 40)  # a window of its own
        assert asked.wait(30)

    (shard,) = engine(places).shards([Task(0, lost, read)])
    assert shard.failure == "its file is gone"


class Small(Lengths):
    """A device with room for batches of so many words."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.failures = room, 0

    def run(self, parts):
        cost = sum(int(prepared.costs[items].sum()) for prepared, items in parts)
        if cost > self.room:
            self.failures += 1
            raise OutOfMemory(f"no room for {cost}")
        return super().run(parts)


def test_without_memory_batches_become_small_enough_and_stay_so() -> None:
    """Every row has its result, and the device is asked for too much a few times only."""
    adapter, places = Small(5), Places()
    places.there.add(id(adapter))
    running = engine(places, budget=64)
    (shard,) = running.shards(shards_of((adapter, ["a b"] * 400)))
    assert sum(len(items) for part in shard.parts for items, _ in part.done) == 400
    assert not shard.parts[0].failed
    assert running.limits.of(adapter.weights) <= 8
    assert adapter.failures == running.gauges.out_of_memory <= 8
    assert 0 < running.gauges.split <= running.gauges.out_of_memory
    assert running.gauges.too_large == 0


def test_a_row_without_memory_is_rejected_after_other_models_went() -> None:
    adapter, places = Small(3), Places()
    places.there.add(id(adapter))
    places.rooms = 2
    running = engine(places)
    (shard,) = running.shards(shards_of((adapter, ["a b", "one two three four", "c"])))
    (why,) = shard.parts[0].failed.values()
    assert why == ("out-of-memory", "OutOfMemory: no room for 4")
    assert sum(len(items) for items, _ in shard.parts[0].done) == 2
    assert places.rooms < 0
    assert running.gauges.too_large == 1


def test_a_row_without_memory_is_rejected_though_other_models_come_back() -> None:
    """Those that have work do: room that is made again and again is no progress."""
    adapter, places = Small(3), Places()
    places.there.add(id(adapter))
    places.rooms = 1000
    (shard,) = engine(places).shards(shards_of((adapter, ["one two three four"])))
    assert [code for code, _ in shard.parts[0].failed.values()] == ["out-of-memory"]
    assert places.rooms >= 1000 - ROOMS


def test_a_lost_device_ends_the_engine() -> None:
    """No row is blamed for it."""

    class Lost(Lengths):
        def run(self, parts):
            raise DeviceLost("CUDA error: device-side assert triggered")

    adapter, places = Lost(), Places()
    places.there.add(id(adapter))
    with pytest.raises(DeviceLost, match="device-side assert"):
        list(engine(places).shards(shards_of((adapter, ["a", "b"]))))
    assert places.held == 0
    assert "device-side assert" in places.lost_device, "whoever waits for a model would wait on"
