"""Whatever several workers do, in whatever order: every message is in one place, and the queue does what a model of it does."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lading.config.errors import QueueFull
from lading.schedulers.connection import Broker
from lading.schedulers.queues import Lease
from tests.redis_server import RedisServer

LIST = "lading.cpu.shards"
AGO = st.integers(0, 5)


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

    def __init__(self, broker: Broker) -> None:
        super().__init__()
        self.client, self.queue = broker.client, broker.queue(LIST)
        self.model, self.sent = Model(), Counter[bytes]()
        self.pulls: list[list[Lease]] = []

    @initialize()
    def begin(self) -> None:
        self.send([1, 2, 3, 5, 8, 13], 0)

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

    @precondition(lambda self: self.model.waiting)
    @rule(most=st.integers(1, 10), max_bytes=st.integers(0, 300))
    def pull(self, most: int, max_bytes: int) -> None:
        expected = self.model.fits(most, max_bytes)
        taken = self.queue.pull(most, max_bytes)
        assert [lease.raw for lease in taken] == expected
        assert [lease.suspect for lease in taken] == [self.model.deaths.get(raw) for raw in expected]
        del self.model.waiting[: len(taken)]
        now = self.model.tick()
        self.model.leased |= {lease.field: (now, lease) for lease in taken}
        self.pulls.append(taken)

    @precondition(lambda self: self.pulls)
    @rule(ago=AGO)
    def ack(self, ago: int) -> None:
        leases, held = self.held(ago)
        assert self.queue.ack(leases) == len(held)
        for lease in held:
            self.forget(lease)
            self.model.done.append(lease.raw)

    @precondition(lambda self: self.pulls)
    @rule(ago=AGO)
    def renew(self, ago: int) -> None:
        leases, held = self.held(ago)
        assert self.queue.renew(leases) == len(held)
        now = self.model.tick()
        self.model.leased |= {lease.field: (now, lease) for lease in held}

    @precondition(lambda self: self.pulls)
    @rule(ago=AGO)
    def release(self, ago: int) -> None:
        leases, held = self.held(ago)
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

    @precondition(lambda self: self.pulls)
    @rule(ago=AGO, which=st.integers(0, 9))
    def begin_alone(self, ago: int, which: int) -> None:
        for lease in self.held(ago)[0][which : which + 1]:
            held = lease.field in self.model.leased
            if lease.suspect is None:
                continue
            deaths = lease.suspect + 1
            assert self.queue.begin_alone(lease) == (deaths if held else 0)
            if held:
                self.model.deaths[lease.raw] = deaths

    @precondition(lambda self: self.pulls)
    @rule(ago=AGO, which=st.integers(0, 9))
    def bury(self, ago: int, which: int) -> None:
        for lease in self.held(ago)[0][which : which + 1]:
            held = lease.field in self.model.leased
            assert self.queue.bury(lease, "why") == held
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
        held_against = {hashlib.sha1(raw).hexdigest().encode(): b"%d" % deaths for raw, deaths in model.deaths.items()}
        assert self.client.hgetall(f"strikes:{LIST}") == held_against

    def held(self, ago: int) -> tuple[list[Lease], list[Lease]]:
        """The leases of a pull so many pulls ago, and those of them that still count."""
        leases = self.pulls[-1 - ago % len(self.pulls)]
        return leases, [lease for lease in leases if lease.field in self.model.leased]

    def forget(self, lease: Lease) -> None:
        del self.model.leased[lease.field]
        self.model.deaths.pop(lease.raw, None)


def test_no_message_is_lost_or_doubled(redis_server: RedisServer) -> None:
    """Under any order of steps by any holders of leases, old or current, the queue does what its model does."""
    broker = Broker.connect(redis_server.url)

    def empty() -> QueueMachine:
        broker.client.flushdb()
        return QueueMachine(broker)

    effort = settings(
        max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(empty, settings=effort)
