"""Ctrl-C, once and twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from lading.cli.interrupt import orderly_stop


def lading(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a shell runs it."""
    command = [sys.executable, "-I", "-m", "lading.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_ctrl_c_finishes_the_shard_in_flight(tiny_encoder: Path, tmp_path: Path) -> None:
    """The first SIGINT lets what is in flight be published and exits with 130; the same command then does the rest."""
    path, rows = tmp_path / "many.jsonl", 400
    path.write_text("".join(json.dumps({"text": f"row {n} of many"}) + "\n" for n in range(rows)))
    command = [
        "encode",
        str(path),
        "--model",
        str(tiny_encoder),
        "--to",
        f"parquet://{tmp_path}/out",
        *("--shard-rows", "10", "--batch-tokens", "64"),
    ]
    # It freezes itself at its first marker, when at most a few of the 40 shards can be in flight, so that the signal
    # comes in the middle however fast the machine is.
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "lading.cli", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "LADING_FAILPOINT": "publish.linked=stop", "LADING_WINDOW_TOKENS": "256"},
    )  # fmt: skip
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "again to stop at once" in err
    assert "the same command resumes" in out
    resumed = lading(*command, "--json")
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)
    assert summary["rows_done"] == rows
    assert 0 < summary["rows_run"] < rows


def test_a_second_ctrl_c_stops_at_once() -> None:
    """The second SIGINT leaves the process with 130 though the work goes on, the second SIGTERM with 143."""
    work = (
        "import os, signal, sys, threading\n"
        "from lading.cli.interrupt import orderly_stop\n"
        "with orderly_stop() as stop:\n"
        "    os.kill(os.getpid(), getattr(signal, sys.argv[1]))\n"
        "    assert stop.is_set()\n"
        "    print('asked', flush=True)\n"
        "    os.kill(os.getpid(), getattr(signal, sys.argv[1]))\n"
        "    threading.Event().wait()\n"
    )
    for name, code in (("SIGINT", 130), ("SIGTERM", 143)):
        done = subprocess.run([sys.executable, "-I", "-c", work, name], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (code, "asked\n"), done.stderr


def test_the_handlers_are_put_back() -> None:
    """After a run Ctrl-C means again what it meant before."""
    before = signal.getsignal(signal.SIGINT)
    with orderly_stop():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
