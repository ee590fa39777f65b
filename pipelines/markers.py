"""Which shards of a job are settled, known from the names of its markers; the markers themselves are left unread.

For those who watch jobs of a million shards: one bit a shard is kept, a listing is made only when asked for, and single
names are looked up in between. Receipts and the arithmetic over them are the manifest's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from ..config.errors import LadingError
from .folder import Folder
from .generations import Opening, Pair, Segment, segments
from .manifest import parse_opening, parse_receipt
from .records import Receipt

LISTED_AT_ONCE = 1000  # names that one request to an object store lists
_PLAIN = ".0.json"
_LATER = re.compile(r"(\d+)\.(\d+)(\.open)?\.json")


class Markers:
    """What is published of one job, as of the last look. Markers only come, so that what is settled stays so until a look
    finds a new opening."""

    def __init__(self, folder: Folder, shards: int) -> None:
        self._folder = folder
        self._published = np.zeros(shards, bool)  # generation 0 has a marker
        self._later: dict[int, set[int]] = {}  # shards that have openings -> generations of them that have no marker
        self._receipts: dict[Pair, Receipt] = {}  # of shards with openings
        self._openings: dict[Pair, Opening] = {}
        self.pending = shards  # generations without a marker

    def look(self) -> None:
        """List all markers, and read those of shards that were opened again. Raises StopJob, LadingError."""
        names = self._folder.names("markers")
        plain = [name[: -len(_PLAIN)] for name in names if name.endswith(_PLAIN)]
        try:
            self._published[np.array(list(map(int, plain)), np.int64)] = True
        except (ValueError, IndexError) as error:
            raise LadingError(
                f"{self._folder.url}/markers holds what is no marker of the job ({error}): move it away"
            ) from error
        for name in names if len(plain) < len(names) else ():
            if name.endswith(_PLAIN):
                continue
            match = _LATER.fullmatch(name)
            if match is None:
                raise LadingError(f"{self._folder.url}/markers/{name} is not a marker's name: move it away")
            pair = (int(match[1]), int(match[2]))
            if match[3] and pair not in self._openings:
                self._openings[pair] = parse_opening(self._folder, name, self._read(name))
            elif not match[3] and pair not in self._receipts:
                self._receipts[pair] = parse_receipt(self._folder, name, self._read(name))
        for shard in {shard for shard, _ in self._openings}:
            self._published[shard] = True  # or it had not been opened again
            self._later[shard] = {one.generation for one in self._segments(shard) if one.receipt is None}
        self._count()

    def published(self) -> Iterator[Pair]:
        """Everything with a marker that still counts."""
        reopened = self._published.copy()
        reopened[list(self._later)] = False
        yield from ((int(shard), 0) for shard in np.flatnonzero(reopened))
        for shard in self._later:
            yield from ((shard, one.generation) for one in self._segments(shard) if one.receipt)

    def settle(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Of these, which lacked a marker: those that lack it still. Looks up each, or lists all, as is cheaper."""
        pairs = list(pairs)
        if not pairs:
            return []
        if len(pairs) * LISTED_AT_ONCE > len(self._published) - self.pending + len(pairs):
            self.look()
        else:
            for shard, generation in pairs:
                if self._folder.exists(f"markers/{shard}.{generation}.json"):
                    if shard in self._later:
                        self._later[shard].discard(generation)
                    elif generation == 0:
                        self._published[shard] = True
            self._count()
        return [pair for pair in pairs if self.lacks(pair)]

    def lacks(self, pair: Pair) -> bool:
        """Whether there is such a generation, and it has no marker."""
        shard, generation = pair
        if shard in self._later:
            return generation in self._later[shard]
        return generation == 0 and 0 <= shard < len(self._published) and not self._published[shard]

    def reopened(self) -> Iterator[Pair]:
        """Generations without a marker of shards that were opened again."""
        return ((shard, generation) for shard in sorted(self._later) for generation in sorted(self._later[shard]))

    def from_shard(self, shard: int) -> Iterator[int]:
        """The shards from this one on that were never opened again and have no marker, in order."""
        step = 4096
        for start in range(shard, len(self._published), step):
            for place in np.flatnonzero(~self._published[start : start + step]):
                if start + int(place) not in self._later:
                    yield start + int(place)

    def receipt(self, pair: Pair) -> Receipt | None:
        """Read one marker."""
        if pair in self._receipts:
            return self._receipts[pair]
        name = f"{pair[0]}.{pair[1]}.json"
        stored = self._folder.read(f"markers/{name}")
        return None if stored is None else parse_receipt(self._folder, name, stored)

    def _segments(self, shard: int) -> list[Segment]:
        if (shard, 0) not in self._receipts and (first := self.receipt((shard, 0))):
            self._receipts[shard, 0] = first
        return segments(shard, self._receipts, self._openings)

    def _read(self, name: str) -> bytes:
        stored = self._folder.read(f"markers/{name}")
        if stored is None:
            raise LadingError(
                f"{self._folder.url}/markers/{name} was removed while it was read: markers are never removed"
            )
        return stored

    def _count(self) -> None:
        plain = len(self._published) - int(np.count_nonzero(self._published))
        self.pending = plain + sum(map(len, self._later.values()))
