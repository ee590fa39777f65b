"""What a run tells people and scripts: progress while it goes, a summary at its end. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..config.words import counted

EXIT_CODES = {"finished": 0, "nothing to do": 0, "unfinished": 3, "stopped": 3, "interrupted": 130, "cancelled": 3}


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """Where the job stands; rows are input rows, this run's and earlier ones'."""

    rows_done: int  # through the model, the last ones not yet published
    rejected: int  # in published shards
    rows_total: int | None  # None: the source does not say before it is read
    shards_done: int
    shards_total: int
    tokens: int  # this run's
    elapsed_s: float
    fill: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.elapsed_s if self.elapsed_s else 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The end of a run. Row counts are input rows of the whole job, except `rows_out`; rates and seconds are this run's."""

    job: str
    output: str
    state: str  # one of EXIT_CODES
    reason: str = ""  # why it is not finished, and what to do
    rows_total: int | None = None  # None: the source does not say before it is read, and not all of it was
    rows_in: int = 0  # of the shards that were done or failed
    rows_done: int = 0
    rejected: int = 0
    failed: int = 0  # rows of failed shards, as far as known
    remaining_shards: int = 0
    rows_out: int = 0
    rejects: dict[str, int] = dataclasses.field(default_factory=dict)
    retryable: int = 0  # rejected rows that another attempt may save, while the job is open for that
    truncated: int = 0
    tokens: int = 0  # this run
    rows_run: int = 0  # this run
    elapsed_s: float = 0.0  # model load left out
    load_s: float = 0.0
    fill: float = 1.0
    busy: float = 0.0
    kernel: str = ""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # wall, by stage
    cpu_seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # of the stage's own thread
    folds: int = 0
    conflicts: int = 0
    ids_checked: bool = True

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.state]

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "exit_code": self.exit_code}

    def lines(self) -> list[str]:
        """The summary for people."""
        if self.state == "nothing to do":
            rows = counted(self.rows_done, "row")
            return [f"nothing to do: job {self.job} is finished; {rows} in {self.output}, {self.rejected:,} rejected"]
        rows = counted(self.rows_done, "row", of=self.rows_total)
        if self.rows_total is None:
            rows += " (of how many is not known before all are read)"
        lines = [f"{self.state}: {rows} in {self.output} (job {self.job})"]
        if self.reason:
            lines.append(f"  {self.reason}")
        if self.rows_out != self.rows_done:
            lines.append(f"  {counted(self.rows_out, 'output row')} (chunks)")
        if self.rejected:
            why = ", ".join(f"{count:,} {code}" for code, count in sorted(self.rejects.items()))
            lines.append(f"  {self.rejected:,} rejected ({why}): lading rejects {self.output}")
        if self.retryable and self.state == "finished":
            rows = counted(self.retryable, "row")
            lines.append(f"  {rows} can be tried again: lading retry {self.output} (--give-up: not any more)")
        if self.failed or self.remaining_shards:
            failed = f", {counted(self.failed, 'row')} in failed shards" if self.failed else ""
            lines.append(f"  {counted(self.remaining_shards, 'shard')} to do{failed}; the same command resumes")
        if self.truncated:
            lines.append(f"  {counted(self.truncated, 'text')} truncated at the model's limit (--long-text to change)")
        if not self.ids_checked:
            lines.append("  ids were not checked for duplicates (check_ids: false)")
        commits = f"{counted(self.folds, 'commit')}, {counted(self.conflicts, 'conflict')}"
        if self.rows_run and self.elapsed_s:
            rate = f"{self.rows_run / self.elapsed_s:,.0f} rows/s, {self.tokens / self.elapsed_s:,.0f} tokens/s"
            lines.append(
                f"  {rate}; fill {self.fill:.1%}, device busy {self.busy:.1%}; model loaded in {self.load_s:.1f} s"
            )
            stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
            lines.append(f"  seconds: {stages}; {commits}; {self.kernel}")
        elif self.folds:
            lines.append(f"  {commits}; {self.seconds.get('fold', 0.0):.1f} s of all workers' time")
        return lines
