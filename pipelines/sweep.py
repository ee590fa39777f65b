"""Admission and the sweep: what keeps every open job going, whatever was lost on the way.

One pass restores leases that ran out, sends what is neither done, failed, queued nor leased as far as there is room, folds
what nobody folded, and ends what is finished. Any process may do it at any time; that they take turns only saves work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..config.errors import BadMessage, BrokerError, LadingError
from ..config.events import tell
from ..schedulers.admission import MESSAGE_BYTES, WINDOW_BYTES, Claim, admit, window
from ..schedulers.connection import ALIVE_S, Broker
from ..schedulers.messages import ShardPointer, decode, shard_message
from ..schedulers.pools import Pool, Pools, find
from ..schedulers.reports import on_device
from ..schedulers.sweeping import Turns, publish_totals
from .aftercare import LOOK_S, Aftercare, settle
from .endings import Ending, Endings, ending
from .generations import Pair
from .registry import Entry, Registry
from .watching import Watched

__all__ = ["Sweeper", "Swept", "settle"]

log = logging.getLogger(__name__)

HUNGRY = 10  # times more passes while workers empty the window faster than it is filled
LEAD = 3  # intervals of sweeping after which another process takes over
FAULT_S = 30.0  # a job that could not be looked at is left alone for so long
TURN_WAIT_S = 2.0  # that a submission waits for another's pass to end
RESTORED_AT_ONCE = 100

Clock = Callable[[], float]


@dataclasses.dataclass(slots=True)
class Swept:
    """What one pass did."""

    restored: int = 0  # leases that ran out
    sent: int = 0  # shards
    folded: int = 0  # shards that nobody had brought into view
    ended: int = 0  # jobs that need no more looks
    hungry: bool = False  # a window was more than half empty and could be filled: the next pass should come soon
    faults: dict[str, str] = dataclasses.field(default_factory=dict)  # job -> why it cannot be looked at
    left: dict[str, int] = dataclasses.field(default_factory=dict)  # pool -> shards that are not done
    endings: list[Ending] = dataclasses.field(default_factory=list)  # of jobs since the last pass that is told
    open: int = 0  # jobs that are not over

    def to_dict(self) -> dict[str, Any]:
        """What people want to know; the last two are for gauges."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("endings", "open")}


class Sweeper:
    """For a process that sweeps again and again: what it remembers makes a pass cheap. Not for several threads."""

    def __init__(
        self, broker: Broker, registry: Registry, pools: Pools, *, lease_s: float, clock: Clock = time.monotonic
    ) -> None:
        self.broker, self.registry, self.pools = broker, registry, pools
        self._lease_s, self._clock = lease_s, clock
        self._turns = Turns(broker)
        self._care = Aftercare(registry, broker)
        self._endings = Endings(registry)
        self._ended: list[Ending] = []  # that no pass has told yet: one that breaks off leaves them to the next
        self._follow_next = 0.0
        self._watched: dict[str, Watched] = {}
        self._untold = ""  # why the broker did not tell what workers hold
        self._led = False  # at the last pass that asked who leads
        self._shunned: dict[str, tuple[float, str]] = {}  # job -> until when, and why

    def sweep(self, *, thorough: bool = False, lead_s: float = 0.0) -> Swept | None:
        """One pass; None if another process has its turn. `thorough` goes by nothing that it remembers, and puts nothing off.

        `lead_s`: for one of several processes that all sweep all the time: none but the first of them does, until it has
        been away for so long.

        A pool whose window is full costs two counts, and no listing. Raises BrokerError, and StopJob if the registry
        cannot be reached; what ails a single job is in `faults`.
        """
        if lead_s and not self._leads(lead_s):
            self._endings.forget()
            return None
        if not self._turns.begin():
            return None
        try:
            swept = self._pass(thorough)
        finally:
            self._turns.end()
        swept.endings, self._ended = self._ended, []
        did = {"restored": swept.restored, "sent": swept.sent, "folded": swept.folded, "ended": swept.ended}
        if any(did.values()):
            tell(log, "swept", **did, faults=len(swept.faults))
        return swept

    def _leads(self, lead_s: float) -> bool:
        led, self._led = self._led, self._turns.lead(lead_s)
        if self._led and not led:
            tell(log, "sweep led")
        return self._led

    def admit(self, entry: Entry) -> int:
        """Send the first shards of a job that was just registered, if there is room; how many. Raises BrokerError, StopJob."""
        until = self._clock() + TURN_WAIT_S
        while not (ours := self._turns.begin()) and self._clock() < until:
            time.sleep(0.02)
        try:
            return self._fill(find(self.pools, entry.pool), [Watched(entry)], anew=True)
        finally:
            if ours:
                self._turns.end()

    def _pass(self, thorough: bool) -> Swept:
        swept = Swept()
        anew = not self._turns.alone() or thorough
        for pool in self.pools.values():
            swept.restored += sum(self._restore(name) for name in (pool.shards, pool.requests))
        now = self._clock()
        roomy = [pool for pool in self.pools.values() if anew or self._has_room(pool)]
        if roomy or now >= self._follow_next or self._care.due(self._watched, now):
            self._ended += self._follow(anew, now)
            self._follow_next = now + LOOK_S
            for pool in roomy:
                jobs = [job for job in self._watched.values() if job.entry.pool == pool.name]
                sent = self._fill(pool, jobs, anew=anew)
                swept.sent += sent
                swept.hungry |= 2 * sent > window(pool)
            for job in list(self._watched.values()):
                self._apart(job.entry.job, lambda job=job: self._look_after(job, swept, thorough))
        swept.open, swept.left = len(self._watched), dict.fromkeys(self.pools, 0)
        for job in self._watched.values():
            if not job.stopped:
                swept.left[job.entry.pool] += job.markers.pending
        publish_totals(self.broker, swept.left)
        swept.faults |= {job: why for job, (_, why) in self._shunned.items()}
        return swept

    def _restore(self, name: str) -> int:
        queue, back = self.broker.queue(name), 0
        while (count := queue.restore(self._lease_s, RESTORED_AT_ONCE)) == RESTORED_AT_ONCE:
            back += count
        return back + count

    def _has_room(self, pool: Pool) -> bool:
        counts = self.broker.queue(pool.shards).counts()
        return counts.waiting + counts.in_flight < window(pool)

    def _follow(self, anew: bool, now: float) -> list[Ending]:
        """Watch the jobs that are open now; how others ended."""
        known = {} if anew else {job: watched.entry for job, watched in self._watched.items()}
        entries = {entry.job: entry for entry in self.registry.list_open(known)}
        for job in [job for job in self._watched if job not in entries]:
            self._drop(job)
        self._shunned = {job: fault for job, fault in self._shunned.items() if job in entries}
        for job, entry in entries.items():
            watched = self._watched.get(job)
            if watched is None or watched.entry != entry:
                self._apart(job, lambda entry=entry: self._watch(entry))
        return self._endings.look(entries, now)

    def _watch(self, entry: Entry) -> None:
        find(self.pools, entry.pool)  # or nobody would ever do it
        watched = self._watched.setdefault(entry.job, Watched(entry))
        watched.entry, watched.stopped = entry, False

    def _drop(self, job: str) -> None:
        del self._watched[job]
        self._care.forget(job)
        self._endings.look_soon()

    def _fill(self, pool: Pool, jobs: Sequence[Watched], *, anew: bool) -> int:
        """Send into a pool's window what there is room for; how many shards."""
        queue = self.broker.queue(pool.shards)
        raws = queue.snapshot()  # before any marker is looked at
        queued, now = _pointers(raws), self._clock()
        claims: list[Claim] = []

        def look(job: Watched) -> None:
            if anew or not job.looked:
                job.look()
            job.observe(queued.get(job.entry.job, set()), now)
            entry = job.entry
            claims.append(Claim(entry.job, entry.recipe, entry.priority, job.held, job.ready(now), entry.weights))

        for job in jobs:
            self._apart(job.entry.job, lambda job=job: look(job))
        by_id = {job.entry.job: job for job in jobs}
        room = min(window(pool) - len(raws), (WINDOW_BYTES - sum(map(len, raws))) // MESSAGE_BYTES)
        pointers = [
            ShardPointer(run.job, *pair, by_id[run.job].entry.recipe)
            for run in admit(claims, room, pool.pull_shards, self._on_device(pool, claims))
            for pair in by_id[run.job].take(run.shards, now)
        ]
        queue.send([shard_message(pointer, now=time.time()) for pointer in pointers])
        return len(pointers)

    def _on_device(self, pool: Pool, claims: Sequence[Claim]) -> frozenset[str]:
        """The weights that workers of the pool hold, asked for only where there is something to choose. Nothing depends on it but an
        order: a broker that does not tell (an ACL without `lading.residents.*`, say) stops no sweep."""
        if len({claim.weights for claim in claims if claim.ready}) < 2:
            return frozenset()
        try:
            return on_device(self.broker.reports(pool.name, max(ALIVE_S, self._lease_s)))
        except BrokerError as error:
            if str(error) != self._untold:
                tell(log, "residents unknown", pool=pool.name, why=error)
            self._untold = str(error)
            return frozenset()

    def _look_after(self, job: Watched, swept: Swept, thorough: bool) -> None:
        cared = self._care.look_after(job, self._clock(), at_once=thorough)
        swept.folded += cared.folded
        if cared.failed:
            self._ended.append(ending(job.entry, "failed", time.time()))
        if cared.over:
            swept.ended += 1
            self._drop(job.entry.job)

    def _apart(self, job: str, do: Callable[[], None]) -> None:
        """One job's trouble is its own: it is told once, and the job is left alone for a while."""
        until, told = self._shunned.get(job, (0.0, ""))
        if self._clock() < until:
            return
        try:
            do()
        except BrokerError:
            raise
        except Exception as error:  # a damaged file may raise anything
            why = str(error) if isinstance(error, LadingError) else f"{type(error).__name__}: {error}"
            if why != told:
                tell(log, "job unreachable", job=job, why=why)
            self._shunned[job] = (self._clock() + FAULT_S, why)
        else:
            self._shunned.pop(job, None)


def _pointers(raws: Sequence[bytes]) -> dict[str, set[Pair]]:
    """By job, the shards that these messages point to. What cannot be read is the workers' matter."""
    found: dict[str, set[Pair]] = {}
    for raw in raws:
        with contextlib.suppress(BadMessage):
            body = decode(raw).body
            if isinstance(body, ShardPointer):
                found.setdefault(body.job, set()).add((body.shard, body.generation))
    return found
