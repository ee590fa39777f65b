"""How a run is seen while it goes: lines, a bar, and the time that is left."""

from __future__ import annotations

import dataclasses
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lading.cli import progress
from lading.workers.summary import Progress

BEGIN = Progress(
    rows_done=100, rejected=0, rows_total=1000, shards_done=1, shards_total=10, tokens=0, elapsed_s=0.0, fill=1.0
)
LATER = Progress(
    rows_done=390,
    rejected=10,
    rows_total=1000,
    shards_done=4,
    shards_total=10,
    tokens=90_000,
    elapsed_s=30.0,
    fill=0.981,
)


def test_time_left_counts_this_run_only() -> None:
    """300 rows in 30 seconds leave 60 seconds for 600 rows, whatever an earlier run had done."""
    assert progress.seconds_left(BEGIN, LATER) == 60.0
    assert progress.seconds_left(BEGIN, BEGIN) is None
    assert progress.seconds_left(BEGIN, dataclasses.replace(LATER, rows_total=None)) is None


def test_a_line_tells_rows_rate_fill_rejects_and_time() -> None:
    """A plain line has everything that the bar shows."""
    line = progress.line(BEGIN, LATER)
    for part in (
        "400 of 1,000 rows (40%)",
        "shard 4 of 10",
        "3,000 tokens/s",
        "fill 98.1%",
        "10 rejected",
        "1:00 left",
    ):
        assert part in line
    assert "of" not in progress.line(BEGIN, dataclasses.replace(LATER, rows_total=None)).split("rows")[0]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "-:--"), (0, "0:00"), (187, "3:07"), (7509, "2:05:09"), (59.6, "1:00")]
)
def test_durations_read_like_a_clock(seconds: float | None, shown: str) -> None:
    """Minutes and seconds, hours from an hour on."""
    assert progress.duration(seconds) == shown


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a pseudo-terminal."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def test_a_terminal_gets_a_bar(terminal: tuple[int, int]) -> None:
    """On a terminal progress is drawn in place, with rows, rate and time left."""
    ours, theirs = terminal
    show = (
        "from lading.cli.progress import reporting\nfrom lading.workers.summary import Progress\n"
        "with reporting(quiet=False) as on_progress:\n"
        f"    on_progress({BEGIN!r})\n    on_progress({LATER!r})\n"
    )
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", show], stderr=theirs, stdout=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    seen = b""
    while True:  # a closed pseudo-terminal reads as an error on Linux, as an end elsewhere
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    assert process.wait() == 0
    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen).decode()
    assert "400/1000" in plain
    assert "3,000 tokens/s" in plain
    assert "1:00 left" in plain
