"""Whether a worker gets on with its work, as its own renewals of leases see it: by progress, not by an answer to a ping. Pure.

Moments are seconds of one clock that never goes back.
"""

from __future__ import annotations

from .leases import RENEWALS

# That a batch may run with nothing moving: a slow one has long lost its work to others, and this one is stuck.
HUNG_LEASES = 3
UNHEARD_LEASES = (
    10  # without a word to the broker: an outage passes, and a process that begins anew would load its models again
)


class Pulse:
    """One worker's."""

    def __init__(self, lease_s: float, now: float) -> None:
        self._lease_s = lease_s
        self._stuck = 0  # renewals in a row at which a batch was running and nothing had moved
        self.kept = now  # when the broker last heard from here
        self._heard = False

    def renewed(self, now: float, *, running: bool, moved: bool) -> bool:
        """The broker heard from here; `moved`: something happened since the last time. Whether the device hangs, told once."""
        self.kept, self._heard = now, True
        # Counted in renewals and not on a clock, which goes on while a whole process is frozen.
        self._stuck = self._stuck + 1 if running and not moved else 0
        return self._stuck == HUNG_LEASES * RENEWALS

    def unhealthy(self, now: float) -> str:
        """Why only another process would go on, "" if this one does."""
        if self._stuck >= HUNG_LEASES * RENEWALS:
            return f"stuck: a batch has not ended for {HUNG_LEASES * self._lease_s:.0f} s"
        if now - self.kept > UNHEARD_LEASES * self._lease_s:
            return f"unheard: the broker has not been reached for {now - self.kept:.0f} s"
        return ""

    def unready(self, now: float, *, preloading: bool) -> str:
        """Why it would not take a request right now, "" if it would."""
        if preloading:
            return "preload: models are on their way"
        if not self._heard or now - self.kept > self._lease_s:
            return f"broker: not reached for {now - self.kept:.0f} s"
        return ""
