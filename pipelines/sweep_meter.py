"""The series of a process that sweeps, the scheduler or a worker in its place, from what each pass says that it did."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..config.metrics import OPS, OTHER, SWEEPING, Book, Sample
from .sweep import LEAD, Swept

READ = ("jobs_open",)
UNSWEPT_S = (
    600.0  # that a scheduler may be without a pass, or a word that it is another's: an outage of the broker passes
)


class SweepMeter:
    """One process's; its book has the series SWEEPING, of which `read` gives READ."""

    def __init__(self, book: Book | None = None) -> None:
        """`book`: that of a process that does other things too."""
        self.book = book or Book(SWEEPING, reading=READ, read=self.read)
        self._open: int | None = None  # None: another process leads, and knows
        self._others = 0  # passes in a row that were another's
        self._last = time.monotonic()
        self._heard = False

    def swept(self, swept: Swept | None, seconds: float) -> None:
        """A pass that ended; None: it was another process's turn. One that failed is not told: a process of which all fail is unhealthy."""
        self._last, self._heard = time.monotonic(), True
        if swept is None:
            self._others += 1
            if self._others >= LEAD:  # one may be a submission's
                self._open = None
            return
        self._open, self._others = swept.open, 0
        self.book.observe("sweep_seconds", seconds)
        for one in swept.endings:
            self.book.add("jobs_total", op=one.op if one.op in OPS else OTHER, outcome=one.outcome)
            if one.outcome == "done" and one.op in OPS:
                self.book.observe("job_duration_seconds", one.seconds, op=one.op)

    def read(self) -> Iterator[Sample]:
        """At a scrape."""
        if self._open is not None:
            yield "jobs_open", self._open, {}

    def unhealthy(self) -> str:
        """Why only another process would go on, "" if this one does."""
        since = time.monotonic() - self._last
        return f"unswept: no pass has ended for {since:.0f} s" if since > UNSWEPT_S else ""

    def unready(self) -> str:
        """Why jobs are not looked after right now, "" if they are."""
        return self.unhealthy() if self._heard else "no pass yet"
