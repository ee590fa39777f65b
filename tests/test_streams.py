"""What the command prints into, and what does not stop it: terminals that lack letters, readers that leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.cli import main
from lading.cli.streams import READER_LEFT, noticing_readers

LETTERS = "the file “ĉu” … 文 is opened"
LADING = [sys.executable, "-I", "-m", "lading.cli"]


@pytest.fixture
def output(tiny_encoder: Path, tmp_path: Path) -> str:
    """A table of one row with many kinds of letters, and of more rejects than a pipe holds at once."""
    source, output = tmp_path / "in.parquet", f"{tmp_path}/db/docs"
    rows = 1500
    pq.write_table(pa.table({"id": [f"“{n}”" for n in range(rows)], "text": [LETTERS, *[" "] * (rows - 1)]}), source)
    encode = ["encode", str(source), "--id", "id", "--model", str(tiny_encoder), "--to", f"lancedb://{output}"]
    assert main([*encode, "--quiet"]) == 0
    return output


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_no_letter_stops_what_is_printed(output: str, encoding: str) -> None:
    """On a terminal that lacks letters of the texts and ids, they are printed all the same, with stand-ins."""
    # Without -I, which would ignore the variable.
    command = [sys.executable, "-m", "lading.cli"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "40"}
    for verb in (["query", output, LETTERS], ["rejects", output]):
        done = subprocess.run([*command, *verb], capture_output=True, env=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout
    wrong = subprocess.run([*command, "query", output, LETTERS, "--column", "“"], capture_output=True, env=environment)
    assert wrong.returncode == 2
    assert b"has no vector column" in wrong.stderr


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["plain", "json"])
def test_a_reader_that_leaves_ends_the_command_quietly(output: str, form: list[str]) -> None:
    """`lading rejects OUTPUT | head -1` ends as `yes | head -1` does: with 141, and without a word."""
    with subprocess.Popen(
        [*LADING, "rejects", output, *form], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        assert b"empty-text" in command.stdout.readline()
        command.stdout.close()
        assert command.stderr.read() == b""
        assert command.wait() == READER_LEFT


def test_help_may_be_left_too() -> None:
    """The help, which click prints before any verb runs, ends in the same way."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*LADING, "--help"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (READER_LEFT, b"")


def test_a_broken_connection_is_no_reader_that_left() -> None:
    """A broken pipe that is neither standard output nor standard error is an error that is told."""
    with pytest.raises(RuntimeError, match="connection"), noticing_readers():
        raise BrokenPipeError("the store hung up")
