"""Admission: what goes into a pool's window next. Properties over any jobs, and the policy in examples."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lading.schedulers.admission import MESSAGE_BYTES, WINDOW_BYTES, Claim, Run, admit, window
from lading.schedulers.pools import Pool

RUN = 4


@st.composite
def some_claims(draw: st.DrawFn) -> list[Claim]:
    count = draw(st.integers(0, 8))
    small = st.integers(0, 50)
    return [
        Claim(f"j{number}", draw(st.sampled_from("ab")), draw(st.integers(-1, 1)), draw(small), draw(small))
        for number in range(count)
    ]


def granted(claims: list[Claim], room: int, run: int = RUN) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in admit(claims, room, run):
        total[one.job] += one.shards
    return total


@given(some_claims(), st.integers(-5, 200), st.integers(1, 9))
def test_all_room_is_used_and_no_more(claims: list[Claim], room: int, run: int):
    """As much is sent as fits and is ready, and of no job more than it has."""
    found = granted(claims, room, run)
    assert sum(found.values()) == max(min(room, sum(claim.ready for claim in claims)), 0)
    assert all(found[claim.job] <= claim.ready for claim in claims)
    assert all(one.shards > 0 for one in admit(claims, room, run))


@given(some_claims(), st.integers(0, 200))
def test_shares_are_equal_as_far_as_possible(claims: list[Claim], room: int):
    """Whoever is sent a shard holds at most one more than any job of its priority that could still be sent some."""
    found = granted(claims, room)
    for one in claims:
        for other in claims:
            if one.priority == other.priority and found[one.job] and found[other.job] < other.ready:
                assert one.held + found[one.job] <= other.held + found[other.job] + 1


@given(some_claims(), st.integers(0, 200))
def test_priorities_go_first(claims: list[Claim], room: int):
    """Nothing of a lower priority is sent while a higher one has something ready, and the higher ones are sent first."""
    found = granted(claims, room)
    for low in claims:
        for high in claims:
            if low.priority < high.priority and found[low.job]:
                assert found[high.job] == high.ready
    priorities = {claim.job: claim.priority for claim in claims}
    order = [priorities[one.job] for one in admit(claims, room, RUN)]
    assert order == sorted(order, reverse=True)


@given(some_claims(), st.integers(0, 200), st.integers(1, 9))
def test_recipes_come_in_runs(claims: list[Claim], room: int, run: int):
    """While two recipes of one priority both have shards to send, they take turns of exactly `run`."""
    recipes = {claim.job: (claim.priority, claim.recipe) for claim in claims}
    sequence = [recipes[one.job] for one in admit(claims, room, run) for _ in range(one.shards)]
    left = Counter(sequence)
    place = 0
    while place < len(sequence):
        kind = sequence[place]
        length = min(run, left[kind])
        assert sequence[place : place + length] == [kind] * length
        left[kind] -= length
        place += length


def test_a_small_job_is_served_beside_a_huge_one():
    """A job that holds nothing gets all the room there is until it holds as much as the others."""
    huge = Claim("huge", "a", 0, held=12, ready=1_000_000)
    small = Claim("small", "b", 0, held=0, ready=5)
    assert granted([huge, small], 4) == {"small": 4}
    assert granted([huge, small], 16) == {"small": 5, "huge": 11}


def test_runs_take_turns():
    """Two jobs of one recipe share its runs, another recipe has its own."""
    claims = [Claim("x", "a", 0, 0, 9), Claim("y", "a", 0, 0, 9), Claim("z", "b", 0, 0, 9)]
    order = [Run("x", 2), Run("y", 2), Run("z", 4), Run("x", 2), Run("y", 2)]
    assert admit(claims, 12, 4) == order


def test_the_window_does_not_ask_who_works():
    """Twice what the largest number of workers takes at once, and never more than some megabytes of messages."""
    assert window(Pool(name="p", device="cpu", memory_bytes=1, max_workers=8, pull_shards=4)) == 64
    most = window(Pool(name="p", device="cpu", memory_bytes=1, max_workers=100_000, pull_shards=100))
    assert most * MESSAGE_BYTES <= WINDOW_BYTES
