"""Whatever several workers do, in whatever order: every message is in one place, and the queue does what a model of it does."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from lading.config.errors import QueueFull
from lading.schedulers.connection import Broker
from lading.schedulers.queues import Lease, Queue
from tests.redis_server import RedisServer

LIST = "lading.cpu.shards"


@dataclasses.dataclass
class Model:
    """A queue as plain Python: what waits, what is leased since which tick, what is suspected, done and dead."""

    waiting: list[bytes] = dataclasses.field(default_factory=list)  # the next one first
    leased: dict[str, tuple[int, Lease]] = dataclasses.field(default_factory=dict)
    deaths: dict[bytes, int] = dataclasses.field(default_factory=dict)
    done: list[bytes] = dataclasses.field(default_factory=list)
    dead: list[bytes] = dataclasses.field(default_factory=list)
    ticks: int = 0

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks

    def fits(self, most: int, max_bytes: int) -> list[bytes]:
        """What a pull takes."""
        fitting: list[bytes] = []
        for raw in self.waiting[:most]:
            if fitting and sum(map(len, fitting)) + len(raw) > max_bytes:
                break
            fitting.append(raw)
        return fitting

    def take_back(self, fields: list[str]) -> list[Lease]:
        leases = [self.leased.pop(field)[1] for field in fields]
        self.waiting = [lease.raw for lease in leases] + self.waiting
        return leases


class QueueMachine(RuleBasedStateMachine):
    """Each rule is a step of some worker, maybe of one that was thought dead: every lease ever made may be used again."""

    leases = Bundle("leases")

    def __init__(self, queue: Queue) -> None:
        super().__init__()
        self.queue, self.model, self.sent = queue, Model(), Counter[bytes]()

    @rule(lengths=st.lists(st.integers(0, 40), max_size=5), limit=st.sampled_from([0, 10]))
    def send(self, lengths: list[int], limit: int) -> None:
        raws = [
            b"%d\x00\xff" % (sum(self.sent.values()) + number) + b'"]' * length for number, length in enumerate(lengths)
        ]
        if limit and raws and len(self.model.waiting) + len(raws) > limit:
            with pytest.raises(QueueFull):
                self.queue.send(raws, limit=limit)
            return
        self.queue.send(raws, limit=limit)
        self.sent.update(raws)
        self.model.waiting += raws

    @rule(target=leases, most=st.integers(1, 40), max_bytes=st.integers(0, 200))
    def pull(self, most: int, max_bytes: int) -> list[Lease]:
        expected = self.model.fits(most, max_bytes)
        taken = self.queue.pull(most, max_bytes)
        assert [lease.raw for lease in taken] == expected
        assert [lease.suspect for lease in taken] == [self.model.deaths.get(raw) for raw in expected]
        del self.model.waiting[: len(taken)]
        now = self.model.tick()
        self.model.leased |= {lease.field: (now, lease) for lease in taken}
        return taken

    @rule(most=st.integers(1, 40))
    def pull_and_vanish(self, most: int) -> None:
        """The reply was lost: nobody holds these leases."""
        self.pull(most, 1000)

    @rule(leases=leases)
    def ack(self, leases: list[Lease]) -> None:
        held = self.held(leases)
        assert self.queue.ack(leases) == len(held)
        for lease in held:
            self.forget(lease)
            self.model.done.append(lease.raw)

    @rule(leases=leases)
    def renew(self, leases: list[Lease]) -> None:
        held = self.held(leases)
        assert self.queue.renew(leases) == len(held)
        now = self.model.tick()
        self.model.leased |= {lease.field: (now, lease) for lease in held}

    @rule(leases=leases)
    def release(self, leases: list[Lease]) -> None:
        held = self.held(leases)
        assert self.queue.release(leases) == len(held)
        for lease in self.model.take_back([lease.field for lease in held]):
            if lease.suspect is not None:
                self.model.deaths[lease.raw] = lease.suspect

    @rule(most=st.integers(1, 10))
    def restore(self, most: int) -> None:
        due = sorted(self.model.leased, key=lambda field: (self.model.leased[field][0], field))[:most]
        assert self.queue.restore(0, most) == len(due)
        for lease in self.model.take_back(due):
            self.model.deaths.setdefault(lease.raw, 0)

    @rule(leases=leases, which=st.integers(0, 100))
    def begin_alone(self, leases: list[Lease], which: int) -> None:
        for lease in leases[which : which + 1]:
            held = self.held([lease])
            deaths = (lease.suspect or 0) + 1
            assert self.queue.begin_alone(lease) == (deaths if held else 0)
            if held:
                self.model.deaths[lease.raw] = deaths

    @rule(leases=consumes(leases), which=st.integers(0, 100))
    def bury(self, leases: list[Lease], which: int) -> None:
        for lease in leases[which : which + 1]:
            held = self.held([lease])
            assert self.queue.bury(lease, "why") == bool(held)
            if held:
                self.forget(lease)
                self.model.dead.insert(0, lease.raw)

    @rule()
    def replay(self) -> None:
        for letter in self.queue.dead(0, 1):
            assert self.queue.replay([letter]) == 1
            self.model.waiting.append(self.model.dead.pop(0))

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        counts = self.queue.counts()
        model = self.model
        assert (counts.waiting, counts.in_flight, counts.dead) == (
            len(model.waiting),
            len(model.leased),
            len(model.dead),
        )
        dead = [letter.raw for letter in self.queue.dead()]
        assert dead == model.dead
        assert Counter([*self.queue.snapshot(), *dead, *model.done]) == self.sent

    def held(self, leases: list[Lease]) -> list[Lease]:
        return [lease for lease in leases if lease.field in self.model.leased]

    def forget(self, lease: Lease) -> None:
        del self.model.leased[lease.field]
        self.model.deaths.pop(lease.raw, None)


@pytest.fixture
def fresh(redis_server: RedisServer) -> Callable[[], Queue]:
    """An empty queue, each time it is called."""
    broker = Broker.connect(redis_server.url)

    def make() -> Queue:
        broker.client.flushdb()
        return broker.queue(LIST)

    return make


def test_no_message_is_lost_or_doubled(fresh: Callable[[], Queue]) -> None:
    """Under any order of steps by any holders of leases, old or current, the queue does what its model does."""
    check = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    run_state_machine_as_test(
        lambda: QueueMachine(fresh()),
        settings=settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=check),
    )
