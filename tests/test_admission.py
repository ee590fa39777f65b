"""Admission: what goes into a pool's window next. Properties over any jobs, and the policy in examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st

from lading.schedulers.admission import MESSAGE_BYTES, WINDOW_BYTES, Claim, Run, admit, window
from lading.schedulers.pools import Pool

RUN = 4
WEIGHTS = {"a": "x", "b": "y", "c": "y"}  # recipe -> what it loads
held_weights = st.frozensets(st.sampled_from(["x", "y", "z"]))


@st.composite
def some_claims(draw: st.DrawFn) -> list[Claim]:
    count = draw(st.integers(0, 8))
    small = st.integers(0, 50)
    return [
        Claim(
            f"j{number}",
            recipe := draw(st.sampled_from("abc")),
            draw(st.integers(-1, 1)),
            draw(small),
            draw(small),
            WEIGHTS[recipe],
        )
        for number in range(count)
    ]


def granted(claims: list[Claim], room: int, run: int = RUN, on_device: Collection[str] = ()) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in admit(claims, room, run, on_device):
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


@given(some_claims(), st.integers(0, 200), st.integers(1, 9), held_weights)
def test_recipes_come_in_runs(claims: list[Claim], room: int, run: int, on_device: frozenset[str]):
    """While two recipes of one priority both have shards to send, they take turns of exactly `run`."""
    recipes = {claim.job: (claim.priority, claim.recipe) for claim in claims}
    sequence = [recipes[one.job] for one in admit(claims, room, run, on_device) for _ in range(one.shards)]
    left = Counter(sequence)
    place = 0
    while place < len(sequence):
        kind = sequence[place]
        length = min(run, left[kind])
        assert sequence[place : place + length] == [kind] * length
        left[kind] -= length
        place += length


@given(some_claims(), st.integers(-5, 200), st.integers(1, 9), held_weights)
def test_what_is_loaded_changes_nobody_s_share(claims: list[Claim], room: int, run: int, on_device: frozenset[str]):
    """Every job gets the shards that it would get if nothing were loaded, none more and none less."""
    assert granted(claims, room, run, on_device) == granted(claims, room, run)


@given(some_claims(), st.integers(0, 200), st.integers(1, 9), held_weights)
def test_what_is_loaded_goes_first_in_its_round(claims: list[Claim], room: int, run: int, on_device: frozenset[str]):
    """In each round every recipe of a priority that has shards left has its run before any has its next: those on a device first."""
    kinds = {claim.job: (claim.priority, claim.recipe) for claim in claims}
    sent: Counter[tuple[int, str]] = Counter()
    turns: list[tuple[int, int, bool]] = []
    for one in admit(claims, room, run, on_device):
        priority, recipe = kinds[one.job]
        turns.append((-priority, sent[priority, recipe] // run, WEIGHTS[recipe] not in on_device))
        sent[priority, recipe] += one.shards
    assert turns == sorted(turns)


def test_loaded_models_go_first():
    """Of two jobs alike the one whose model some worker holds; the other has its turn next, and a higher priority goes before both."""
    claims = [Claim("x", "a", 0, 0, 9, "x"), Claim("y", "b", 0, 0, 9, "y"), Claim("z", "c", 1, 0, 2, "z")]
    order = [Run("z", 2), Run("y", 4), Run("x", 4), Run("y", 2), Run("x", 2)]
    assert admit(claims, 14, 4, {"y"}) == order
    assert admit(claims, 14, 4) == [Run("z", 2), Run("x", 4), Run("y", 4), Run("x", 2), Run("y", 2)]


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
