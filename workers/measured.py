"""What a run measured of itself, and how that and the job's own counts become its summary."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from ..pipelines.open_job import Job
from .gauges import Gauges
from .stages import Clock
from .summary import Summary


@dataclasses.dataclass(slots=True)
class Measured:
    """Clocks and counts of one run, beside those of its engine."""

    write: Clock = dataclasses.field(default_factory=Clock)
    fold: Clock = dataclasses.field(default_factory=Clock)
    load_s: float = 0.0
    rows_run: int = 0
    folds: int = 0
    conflicts: int = 0
    gauges: Gauges | None = None  # the engine's; None until it begins
    kernel: str = ""
    began: float = 0.0

    def begin(self, gauges: Gauges, kernel: str) -> None:
        """The model is loaded, the work begins."""
        self.gauges, self.kernel, self.began = gauges, kernel, time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    def fields(self) -> dict[str, Any]:
        """The fields of a Summary that are this run's own."""
        if self.gauges is None:
            return {}
        gauges = self.gauges
        stages = {"read": gauges.read, "prepare": gauges.prepare, "run": gauges.run, "hand out": gauges.hand_out}
        clocks = {**stages, "write": self.write, "fold": self.fold}
        # The streams run beside each other: on the clock, `run` and `idle` are the whole device's.
        seconds = {name: clock.wall for name, clock in clocks.items()}
        seconds |= {"run": gauges.run.wall / gauges.streams, "idle": gauges.idle}
        return {
            "tokens": gauges.cost,
            "rows_run": self.rows_run,
            "elapsed_s": self.elapsed_s,
            "load_s": self.load_s,
            "fill": gauges.fill,
            "busy": gauges.busy,
            "kernel": self.kernel,
            "seconds": {name: round(taken, 3) for name, taken in seconds.items()},
            "cpu_seconds": {name: round(clock.cpu, 3) for name, clock in clocks.items()},
            "folds": self.folds,
            "conflicts": self.conflicts,
        }


def summarise(job: Job, state: str, reason: str = "", measured: Measured | None = None) -> Summary:
    """The summary of a run of `job` that ended in `state`; counts come from the receipts. Raises LadingError if they do not balance."""
    totals = job.manifest.totals()
    source = job.spec.source
    return Summary(
        job=job.id,
        output=str(job.sink.output),
        state=state,
        reason=reason,
        rows_total=totals.rows_in if totals.shards_done == totals.shards else job.rows,
        rows_in=totals.rows_in,
        rows_done=totals.done,
        rejected=totals.rejected,
        failed=totals.failed,
        remaining_shards=totals.shards - totals.shards_done,
        rows_out=totals.rows_out,
        rejects=totals.rejects,
        retryable=0 if state == "nothing to do" else totals.retryable,
        truncated=totals.truncated,
        ids_checked=source.check_ids or not source.id,
        **(measured.fields() if measured else {}),
    )
