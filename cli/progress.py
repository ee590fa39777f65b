"""How a run is seen while it goes, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ..config.words import counted

if TYPE_CHECKING:
    from ..workers.summary import Progress

OnProgress = Callable[["Progress"], None]
LINE_EVERY_S = 5.0


@contextmanager
def reporting(*, quiet: bool) -> Generator[OnProgress]:
    """What to hand to `workers.run.run` as `on_progress`. It may be called from any thread, one call at a time."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines()


def seconds_left(first: Progress, now: Progress) -> float | None:
    """Estimate from the rows of this run: `first` is where it began. None where nothing can be said yet."""
    began, done = first.rows_done + first.rejected, now.rows_done + now.rejected
    elapsed = now.elapsed_s - first.elapsed_s
    if now.rows_total is None or done <= began or elapsed <= 0:
        return None
    return max(now.rows_total - done, 0) * elapsed / (done - began)


def duration(seconds: float | None) -> str:
    """`3:07` or `2:05:09`, as a clock shows it; `-:--` for None."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rates(progress: Progress) -> str:
    """Speed, fill and rejects, the part that bar and line have in common."""
    rejected = f", {progress.rejected:,} rejected" if progress.rejected else ""
    return f"{progress.tokens_per_s:,.0f} tokens/s, fill {progress.fill:.1%}{rejected}"


def line(first: Progress, now: Progress) -> str:
    """One plain line: rows, share, rates, time left."""
    done = now.rows_done + now.rejected
    rows = counted(done, "row", of=now.rows_total)
    share = f" ({done / now.rows_total:.0%})" if now.rows_total else ""
    shards = f"shard {now.shards_done:,} of {now.shards_total:,}"
    return f"{rows}{share}, {shards}, {rates(now)}, {duration(seconds_left(first, now))} left"


def _lines() -> OnProgress:
    first: list[Progress] = []
    last = [time.monotonic()]

    def show(progress: Progress) -> None:
        first[:] = first or [progress]
        if time.monotonic() - last[0] >= LINE_EVERY_S:
            last[0] = time.monotonic()
            click.echo(line(first[0], progress), err=True)

    return show


@contextmanager
def _bar() -> Generator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("rows  {task.fields[rates]}  {task.fields[left]}"),
    )
    bar = Bar(*columns, console=Console(stderr=True), expand=True)
    first: list[Progress] = []
    with bar:
        task = bar.add_task("", total=None, rates="loading the model", left="")

        def show(progress: Progress) -> None:
            first[:] = first or [progress]
            done = progress.rows_done + progress.rejected
            left = f"{duration(seconds_left(first[0], progress))} left"
            bar.update(task, completed=done, total=progress.rows_total, rates=rates(progress), left=left)

        yield show
