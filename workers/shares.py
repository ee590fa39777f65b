"""How the device's time is shared between requests and shards: requests go first, waiting shards keep a tenth. Pure."""

from __future__ import annotations

import dataclasses

LEAST_SHARE = 0.1  # of the device's time, for shards that wait while requests keep coming


@dataclasses.dataclass(slots=True)
class Shares:
    """`owed` above 0: shards have had less than their share, and the next batch is theirs if any of them wait."""

    owed: float = 0.0  # seconds
    largest: float = 0.0  # seconds of the largest batch of shards

    def count(self, seconds: float, of_shards: float) -> None:
        """A batch ran for so long; `of_shards` (0..1) of its cost was rows of shards."""
        theirs = seconds * of_shards
        self.largest = max(self.largest, theirs)
        owed = self.owed + (seconds - theirs) * LEAST_SHARE / (1 - LEAST_SHARE) - theirs
        # A night of shards alone is no reason to let them wait for hours: at most one batch is remembered against them.
        self.owed = max(owed, -self.largest)
