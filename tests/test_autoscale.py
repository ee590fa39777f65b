"""The arithmetic of scaling: bounds, when a pool sleeps and wakes, and that a full window asks for every worker."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.schedulers.admission import window
from lading.schedulers.autoscale import Behaviour, Change, Scaler, Trigger, triggers, wanted
from lading.schedulers.pools import Pool

TOLERANCE = 0.1
lengths = st.lists(st.integers(0, 200), min_size=4, max_size=4)


def pool(**changes: int) -> Pool:
    return Pool(name="a", device="cuda", memory_bytes=1, **changes)


pools = st.builds(
    pool,
    max_workers=st.integers(1, 200),
    pull_shards=st.integers(1, 64),
    pull_requests=st.integers(1, 2048),
)


@dataclasses.dataclass(frozen=True)
class Look:
    """Some seconds later the lengths are these; None: they cannot be read."""

    after_s: float
    lengths: list[int] | None


looks = st.lists(st.builds(Look, st.sampled_from([0.1, 1.0, 15.0, 40.0, 301.0]), st.none() | lengths), max_size=60)
behaviours = st.integers(0, 6).flatmap(
    lambda least: st.builds(
        Behaviour,
        least=st.just(least),
        most=st.integers(max(least, 1), 12),
        cooldown_s=st.sampled_from([0.0, 30.0, 300.0]),
        settling_s=st.sampled_from([0.0, 60.0, 300.0]),
    )
)


class Run:
    """A scaler on a clock of its own, with what was seen and what was decided."""

    def __init__(self, behaviour: Behaviour, of: Pool | None = None) -> None:
        self.scaler, self.now = Scaler(triggers(of or pool(pull_shards=4, pull_requests=8)), behaviour), 0.0
        self.changes: list[tuple[float, Change]] = []

    def look(self, after_s: float, lengths: Sequence[int] | None) -> Change | None:
        self.now += after_s
        change = self.scaler.step(self.now, lengths)
        if change is not None:
            self.changes.append((self.now, change))
        return change

    def until(self, second: float, lengths: Callable[[float], Sequence[int] | None]) -> list[tuple[int, int]]:
        """A look each second; the numbers of workers since the beginning, with when they came."""
        while self.now < second:
            self.look(1.0, lengths(self.now))
        return [(round(when), change.after) for when, change in self.changes]


# -- what the triggers ask for


@given(pools, st.data())
def test_a_full_window_asks_for_every_worker(of: Pool, data: st.DataObject) -> None:
    """However it is split into what waits and what is in flight, and however many workers there are (but for the tolerance)."""
    held = data.draw(st.integers(0, window(of)))
    workers = data.draw(st.integers(1, of.max_workers))
    asked = wanted(triggers(of), [window(of) - held, 0, held, 0], workers, TOLERANCE)
    assert asked >= of.max_workers or (asked == workers and workers * (1 + TOLERANCE) >= of.max_workers)


@given(pools, st.integers(0, 3))
def test_one_message_asks_for_one_worker(of: Pool, place: int) -> None:
    """In whichever queue, waiting or in flight."""
    seen = [0, 0, 0, 0]
    seen[place] = 1
    assert wanted(triggers(of), seen, 1, TOLERANCE) == 1
    run = Run(Behaviour(most=9), of)
    run.until(300.0, lambda now: seen)
    assert run.scaler.workers == 1


@given(pools, lengths, lengths, st.integers(1, 50))
def test_more_work_never_asks_for_fewer(of: Pool, some: list[int], more: list[int], workers: int) -> None:
    """And what is in flight asks for no more than it did while it waited."""
    all_of_it = [a + b for a, b in zip(some, more, strict=True)]
    assert wanted(triggers(of), some, workers, TOLERANCE) <= wanted(triggers(of), all_of_it, workers, TOLERANCE)
    waiting, taken = [*some[:2], 0, 0], [0, 0, *some[:2]]
    assert wanted(triggers(of), waiting, workers, TOLERANCE) == wanted(triggers(of), taken, workers, TOLERANCE)


@pytest.mark.parametrize(("share", "reached"), [(1, 48), (2, 32)])
def test_a_pool_with_work_for_days_reaches_its_bound(share: int, reached: int) -> None:
    """Each worker holds what it takes at once, and the window is kept full. With shares twice as large it would stop at two thirds."""
    of = pool(max_workers=48, pull_shards=4)
    shares = [dataclasses.replace(one, per_worker=share * one.per_worker) for one in triggers(of)]
    scaler = Scaler(shares, Behaviour(most=of.max_workers))
    for second in range(3000):
        held = scaler.workers * of.pull_shards
        scaler.step(float(second), [window(of) - held, 0, held, 0])
    assert reached <= scaler.workers <= reached * (1 + TOLERANCE)


def test_keys_and_numbers_of_a_pool() -> None:
    """What KEDA is told: both lists, and the hash of each list's leases, in messages for one worker."""
    of = pool(max_workers=8, pull_shards=4, pull_requests=1024)
    assert triggers(of) == (
        Trigger("shards", "lading.a.shards", 4),
        Trigger("requests", "lading.a.requests", 1024),
        Trigger("shards-inflight", "unacked:lading.a.shards", 4),
        Trigger("requests-inflight", "unacked:lading.a.requests", 1024),
    )


# -- what is made of it


@given(behaviours, looks)
def test_whatever_is_seen(behaviour: Behaviour, seen: list[Look]) -> None:
    """Never more than the most, nor changed to fewer than the least; what cannot be read changes nothing; to none only after the
    cooldown without a message, and from none only for one; no faster than the limits."""
    run = Run(behaviour)
    active = -math.inf
    for one in seen:
        before = run.scaler.workers
        change = run.look(one.after_s, one.lengths)
        after = run.scaler.workers
        assert (change is None) == (before == after)
        if one.lengths is None:
            assert change is None
            continue
        if any(one.lengths):
            active = run.now
        if change is None:
            continue
        assert (change.before, change.after) == (before, after)
        assert behaviour.least <= after <= max(behaviour.most, 1)
        if not after:
            assert run.now - active > behaviour.cooldown_s
        elif not before:
            assert after == max(behaviour.least, 1)
            assert any(one.lengths) or behaviour.least
        elif after > before:
            base = at_the_beginning(run, behaviour.up_period_s)
            assert after <= max(2 * base, base + behaviour.up_workers)
        else:
            base = at_the_beginning(run, behaviour.down_period_s)
            assert after >= base - behaviour.down_workers


def at_the_beginning(run: Run, period_s: float) -> int:
    """Workers a period before the last change, or those that the pool woke up with since."""
    within = [change for when, change in run.changes if run.now - when < period_s]
    woken = [number for number, change in enumerate(within) if change.before == 0]
    return within[woken[-1]].after if woken else within[0].before


def test_a_pool_wakes_grows_and_sleeps() -> None:
    """None to one at once, then by four or by doubling each 15 s; down by one a minute when less was enough for five, to none when there
    was nothing for five."""
    run = Run(Behaviour(most=20))

    def seen(now: float) -> Sequence[int]:
        return [1000, 0, 0, 0] if now < 100 else [0, 0, 2, 0] if now < 700 else [0, 0, 0, 0]

    went = run.until(1100.0, seen)
    assert [workers for _, workers in went[:5]] == [1, 5, 10, 20, 19]
    ups = [when for when, _ in went[:4]]
    assert ups[3] - ups[1] >= 30
    downs = [when for when, workers in went[4:] if workers]
    assert downs[0] > 100 + 300
    assert all(later - earlier >= 60 for earlier, later in itertools.pairwise(downs))
    end, last = went[-1]
    assert last == 0
    assert 700 + 300 < end <= 700 + 300 + 16


def test_work_in_flight_keeps_a_pool_awake() -> None:
    """For as long as it takes, and with the queue's length alone it does not: then a worker is stopped in its work."""
    run = Run(Behaviour(most=4))
    assert run.until(5000.0, lambda now: [1 if now < 5 else 0, 0, 0 if now < 5 else 1, 0]) == [(1, 1)]
    blind = Scaler(triggers(pool())[:2], Behaviour(most=4))
    assert blind.step(0.0, [1, 0]) is not None
    ended = [change for second in range(1, 1000) if (change := blind.step(float(second), [0, 0]))]
    assert [change.after for change in ended] == [0]


def test_ten_percent_more_or_less_change_nothing() -> None:
    """At ten workers of four shards, 36 to 43 shards are as good as 40."""
    assert {wanted(triggers(pool(pull_shards=4)), [n, 0, 0, 0], 10, TOLERANCE) for n in range(36, 44)} == {10}
    assert wanted(triggers(pool(pull_shards=4)), [45, 0, 0, 0], 10, TOLERANCE) == 12
    assert wanted(triggers(pool(pull_shards=4)), [35, 0, 0, 0], 10, TOLERANCE) == 9


@pytest.mark.parametrize("seen", [[0, 0, 0, 0], [9, 0, 0, 0]])
def test_an_outage_freezes_the_number(seen: list[int]) -> None:
    """Neither an end of the cooldown nor more work is concluded from lengths that nobody could read; afterwards it goes on."""
    run = Run(Behaviour(most=4))
    run.until(20.0, lambda now: [1, 0, 0, 0])
    before = len(run.changes)
    run.until(5000.0, lambda now: None)
    assert (run.scaler.workers, len(run.changes)) == (1, before)
    run.until(5400.0, lambda now: seen)
    assert run.scaler.workers == (3 if any(seen) else 0)


def test_some_are_always_there() -> None:
    """Where a pool has a least number, also without any message."""
    run = Run(Behaviour(most=4, least=2))
    assert run.until(2000.0, lambda now: [0, 0, 0, 0]) == [(1, 2)]


def test_it_is_due_when_something_is_to_be_decided() -> None:
    """Nobody needs to read lengths in between."""
    scaler = Scaler(triggers(pool()), Behaviour(most=4, polling_s=10.0, sync_s=4.0))
    assert scaler.due(0.0)
    scaler.step(0.0, [0, 0, 0, 0])
    assert next(second for second in range(1, 21) if scaler.due(float(second))) == 10
    scaler.step(10.0, [1, 0, 0, 0])
    assert scaler.due(10.1)  # the arithmetic has a clock of its own
    scaler.step(10.1, [1, 0, 0, 0])
    assert not scaler.due(14.0)
    assert scaler.due(14.2)
