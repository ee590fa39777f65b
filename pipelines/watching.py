"""What a sweeper remembers of one open job between two passes: which of its shards are sent, and which come next.

A shard without a marker is either in the queue (waiting or leased), or lost, or was never sent. The queue is looked at
before the markers, and a worker publishes before it acknowledges: what is in neither was lost, and is sent again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from .generations import Pair
from .markers import Markers
from .registry import Entry

RESEND_S = 30.0  # a shard that is lost again and again is sent ever more rarely: this long, doubled each time
RESEND_MOST_S = 600.0


@dataclasses.dataclass(slots=True)
class _Lost:
    times: int
    due: float  # by the sweeper's clock


class Watched:
    """One job. Costs a bit a shard, and per pass what happened since the last one."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.folder = entry.place.job(entry.job)
        self.markers = Markers(self.folder, entry.shards)
        self.stopped = False  # nothing more is sent
        self.looked = False
        self.losses = 0  # since somebody last looked why
        self._sent: set[Pair] = set()  # in the queue, as far as the last pass knew or did
        self._lost: dict[Pair, _Lost] = {}
        self._cursor = 0  # every shard before it was sent, or is settled

    @property
    def held(self) -> int:
        """Shards in the queue."""
        return len(self._sent)

    def look(self) -> None:
        """List the job's markers. Raises StopJob, LadingError."""
        self.markers.look()
        self.looked = True

    def ready(self, now: float) -> int:
        """Shards that could be sent now."""
        if self.stopped:
            return 0
        later = sum(lost.due > now for pair, lost in self._lost.items() if pair not in self._sent)
        return self.markers.pending - len(self._sent) - later

    def observe(self, queued: set[Pair], now: float) -> None:
        """Compare with what was in the queue a moment ago. Raises StopJob."""
        lost = self.markers.settle([pair for pair in self._sent if pair not in queued])
        for pair in lost:
            before = self._lost.get(pair, _Lost(0, now))
            pause = min(RESEND_S * 2 ** (before.times - 1), RESEND_MOST_S) if before.times else 0.0
            self._lost[pair] = _Lost(before.times + 1, now + pause)
        self.losses += len(lost)
        self._sent = {pair for pair in queued if self.markers.lacks(pair)}
        self._lost = {pair: lost for pair, lost in self._lost.items() if self.markers.lacks(pair)}

    def take(self, count: int, now: float) -> list[Pair]:
        """The next shards to send, at most so many; from now on they count as sent."""
        taken: list[Pair] = []
        candidates = self._candidates(now)
        while len(taken) < count and (pair := next(candidates, None)) is not None:
            waits = pair in self._lost and self._lost[pair].due > now
            if pair not in self._sent and not waits:
                self._sent.add(pair)
                taken.append(pair)
        return taken

    def _candidates(self, now: float) -> Iterator[Pair]:
        yield from sorted(pair for pair, lost in self._lost.items() if lost.due <= now)
        yield from self.markers.reopened()
        for shard in self.markers.from_shard(self._cursor):
            self._cursor = shard + 1  # only now: what nobody asked for is still before us
            yield (shard, 0)
