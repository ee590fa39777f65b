"""How many shards of which job go into a pool's queue next. Pure.

The queue of a pool holds a window, not the jobs: what a pool can use before it is filled again, and enough that an
autoscaler sees a backlog. Higher priorities go first; the jobs of one priority share the window equally, counting what
each has there already, and what one cannot use goes to the others. Which models are loaded changes nobody's share: it decides who
of equals is sent first, so that workers need not swap models for what could have waited its turn.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby

from .pools import Pool

WINDOW_BYTES = 64 << 20  # of messages in one pool's queue of shards
MESSAGE_BYTES = 1 << 10  # a pointer in its envelope takes about 700


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """One job of the pool."""

    job: str
    recipe: str
    priority: int
    held: int  # shards that wait in the queue or are leased
    ready: int  # shards that could be sent
    weights: str = ""  # what its recipe loads


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """Shards of one job, to be sent one after the other."""

    job: str
    shards: int


def window(pool: Pool) -> int:
    """Most messages in the pool's queue of shards, waiting and leased ones, however many workers run now."""
    return min(2 * pool.max_workers * pool.pull_shards, WINDOW_BYTES // MESSAGE_BYTES)


def admit(claims: Sequence[Claim], room: int, run: int, on_device: Collection[str] = ()) -> list[Run]:
    """What to send into `room` free places, in order of sending.

    Shards of one recipe go in runs of about `run` (what a worker takes at once), since a worker that gets several of one
    recipe packs them together. The recipes of one priority take turns; those whose weights are `on_device`, of some worker of
    the pool, come first in every round of turns.
    """
    runs: list[Run] = []
    ordered = sorted(claims, key=lambda claim: -claim.priority)
    for _, equals in groupby(ordered, key=lambda claim: claim.priority):
        granted = _shares(list(equals), room)
        room -= sum(shares for _, shares in granted)
        runs += _in_runs(granted, max(run, 1), on_device)
    return runs


def _shares(claims: Sequence[Claim], room: int) -> list[tuple[Claim, int]]:
    """Raise the job that holds least, again and again: the level is found, not walked to."""
    room = min(room, sum(claim.ready for claim in claims))
    if room <= 0:
        return []

    def needed(level: int) -> int:
        return sum(min(max(level - claim.held, 0), claim.ready) for claim in claims)

    low, high = 0, max(claim.held + claim.ready for claim in claims)
    while low < high:  # the highest level that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= room else (low, middle - 1)
    shares = [min(max(low - claim.held, 0), claim.ready) for claim in claims]
    rest = room - sum(shares)
    for place, claim in enumerate(claims):  # less than one each: to the first that can use it
        if rest and shares[place] < claim.ready and claim.held + shares[place] <= low:
            shares[place] += 1
            rest -= 1
    return [(claim, share) for claim, share in zip(claims, shares, strict=True) if share]


def _in_runs(granted: list[tuple[Claim, int]], run: int, on_device: Collection[str]) -> Iterator[Run]:
    """The recipes take turns, a run each; the jobs of a recipe share its runs."""
    recipes: dict[str, list[tuple[Claim, int]]] = {}
    for claim, share in sorted(granted, key=lambda one: one[0].weights not in on_device):
        recipes.setdefault(claim.recipe, []).append((claim, share))
    turns = {recipe: _dealt(shares) for recipe, shares in recipes.items()}
    for start in range(0, sum(share for _, share in granted), run):
        for dealt in turns.values():
            yield from (Run(job, shards) for job, shards in Counter(dealt[start : start + run]).items())


def _dealt(shares: list[tuple[Claim, int]]) -> list[str]:
    """Jobs, one after the other, each as often as it has shards."""
    rounds = range(max(share for _, share in shares))
    return [claim.job for number in rounds for claim, share in shares if number < share]
