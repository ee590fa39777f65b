"""Ctrl-C, twice, on the real command at a terminal: it leaves at once, and nothing half-done counts."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lading.pipelines.report import status

ROWS = 20_000


class Terminal:
    """A command at a pseudo-terminal, and what it has shown that nobody has read yet."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **environment}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True)
        os.close(theirs)
        self.shown = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        """The next match in what is shown. Fails if the command ends without one."""
        while (found := re.search(pattern, self.shown)) is None:
            piece = b""
            with contextlib.suppress(OSError):  # how the end of a closed terminal reads on Linux
                piece = os.read(self._ours, 65536)
            assert piece, f"ended without {pattern!r}: {self.shown}"
            self.shown += re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", piece).decode(errors="replace")
        self.shown = self.shown[found.end() :]
        return found

    def rows(self) -> int:
        """The next count above zero that the progress bar shows."""
        return int(self.read_until(r"\b([1-9]\d*)/\?")[1])  # nobody has counted the lines of the file

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._ours)


@pytest.fixture
def command(tiny_encoder: Path, tmp_path: Path) -> list[str]:
    """One shard of many rows."""
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {n} of many"}) + "\n" for n in range(ROWS)))
    options = [
        "--model",
        str(tiny_encoder),
        "--to",
        f"parquet://{tmp_path}/out",
        "--shard-rows",
        str(ROWS),
        "--threads",
        "1",
    ]
    return [sys.executable, "-I", "-m", "lading.cli", "encode", str(path), *options]


@pytest.fixture
def terminal(command: list[str]) -> Iterator[Terminal]:
    """The command with batches so small that its shard is in flight for long: 16 tokens, a row or two."""
    terminal = Terminal([*command, "--batch-tokens", "16"], LADING_WINDOW_TOKENS="64")
    yield terminal
    terminal.close()


def test_a_second_ctrl_c_leaves_the_shard_in_flight(terminal: Terminal, command: list[str], tmp_path: Path) -> None:
    """The first SIGINT says what happens and goes on, the second ends the command at once; run again, it does every row."""
    terminal.rows()  # through the model: the shard is begun
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_until("finishing the shard in flight; again to stop at once; resume with the same command")
    before = terminal.rows()
    while terminal.rows() == before:
        pass  # it does go on with the shard
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.wait() == 130
    (job,) = status(str(tmp_path / "out"))
    assert (job.state, job.shards_done, job.rows_done) == ("unfinished", 0, 0)
    assert list(tmp_path.glob("out.lading/jobs/*/markers/*")) == []
    again = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert (summary["state"], summary["rows_done"], summary["rows_run"]) == ("finished", ROWS, ROWS)
