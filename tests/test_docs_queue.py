"""What the documents on the queue say can be typed, with a real broker and real workers."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest

from lading.cli import main
from lading.config.settings import load
from lading.pipelines.registry import Registry
from lading.schedulers import pools
from lading.schedulers.connection import Broker
from lading.workers.worker import Worker
from tests import models_outputs
from tests.redis_server import RedisServer
from tests.test_docs import FENCE, ROOT, typed, write_corpus

QUEUE = (ROOT / "docs/queue.md").read_text()
SHARED = re.compile(r"/shared\b")
STAYS = ("up", "worker", "scheduler", "autoscale")  # verbs that run until they are told to stop


def section(text: str, heading: str) -> str:
    (found,) = [one for one in re.split(r"^## ", text, flags=re.MULTILINE) if one.startswith(heading + "\n")]
    return found


def yaml_block(text: str) -> str:
    return next(block for language, block in FENCE.findall(text) if language == "yaml")


class Machine:
    """A folder in which commands are typed. What runs until it is told to stop does so until `close`."""

    def __init__(self, folder: Path, model: Path, server: RedisServer, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.server, self.patch = folder, server, patch
        self.broker = Broker.connect(server.url)
        self.words = {"MODEL": str(model)}  # of the document -> what stands for it here
        self.running: list[subprocess.Popen[bytes]] = []
        self.pool, self.workers = "cpu", 0  # whose workers run, and how many
        write_corpus(folder)
        patch.chdir(folder)
        for name, value in {"BROKER_URL": server.url, "JOBS": f"{folder}/jobs", "FOLD_INTERVAL_S": "0.1"}.items():
            patch.setenv(f"LADING_{name}", value)

    def here(self, text: str) -> str:
        text = SHARED.sub(str(self.folder), text.replace("redis://queue.example:6379/0", self.server.url))
        for word, value in self.words.items():
            text = re.sub(rf"\b{word}\b", value, text)
        return text

    def type(self, line: str, capsys: pytest.CaptureFixture[str]) -> str:
        """What the command prints; it must succeed."""
        words = shlex.split(self.here(line), comments=True)
        if words[0] == "export":
            self.patch.setenv(*words[1].split("=", 1))
        elif words[0] != "redis-server":  # ours runs
            given = dict(one.split("=", 1) for one in words if re.match(r"[A-Z_]+=", one))
            program, *arguments = words[len(given) :]
            if program == "celery" or (arguments[0] in STAYS and not {"--once", "status"} & {*arguments}):
                self._start(program, arguments, given)
            else:
                assert program == "lading"
                return self._run(line, arguments, capsys)
        return ""

    def _run(self, line: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
        capsys.readouterr()
        code = main(
            [name for one in arguments for name in (sorted(map(str, Path().glob(one))) if "*" in one else [one])]
        )
        said = capsys.readouterr()
        finished = arguments[0] == "cancel" and code == 2 and "is finished" in said.err  # workers were faster
        assert code == 0 or finished, f"{line}\n{said.err}"
        if found := re.search(r"submitted: job (\w+)", said.out):
            self.words["JOB"] = self.words.get("JOB", found[1])
        if arguments[:2] == ["dead", "list"]:
            self.words["ID"] = said.out.split()[0]
        return said.out

    def _start(self, program: str, arguments: list[str], given: dict[str, str]) -> None:
        module = {"lading": "lading.cli", "celery": "celery"}[program]
        command = [sys.executable, "-P", "-m", module, *arguments]
        with open(self._log(len(self.running)), "wb") as log:
            started = subprocess.Popen(command, env={**os.environ, **given}, stdout=log, stderr=log)
        self.running.append(started)
        self.workers += arguments[0] != "scheduler"

    def close(self) -> None:
        """All end with 0 when they are told to."""
        until(lambda: self.broker.workers(self.pool) == self.workers)
        for one in self.running:
            one.send_signal(signal.SIGTERM)
        for number, one in enumerate(self.running):
            assert one.wait(60) == 0, self._log(number).read_text()

    def abandon(self) -> None:
        for one in self.running:
            if one.poll() is None:
                one.send_signal(signal.SIGTERM)
                one.wait(60)

    def _log(self, number: int) -> Path:
        return self.folder / f"{number}.log"


def until(claim: Callable[[], object]) -> None:
    """Wait for something that will be; the deadline is for a test that has failed."""
    deadline = time.monotonic() + 120
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def machine(
    tmp_path: Path, tiny_encoder: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    one = Machine(tmp_path, tiny_encoder, redis_server, monkeypatch)
    yield one
    one.abandon()


def test_commands_for_one_machine_run(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/queue.md, typed from top to bottom beside a corpus: every command succeeds, the job ends, what runs on stops with 0."""
    part = section(QUEUE, "On one machine")
    (machine.folder / "job.yaml").write_text(machine.here(yaml_block(part)))
    machine.broker.queue("lading.cpu.requests").send([b"junk"])
    for line in typed(part):
        if line.startswith("lading dead list"):
            until(lambda: machine.broker.queue("lading.cpu.requests").counts().dead)
        said = machine.type(line, capsys)
        if line.startswith("lading watch"):
            assert said.startswith("finished: 40 of 40 rows")
    machine.close()


def test_commands_for_many_machines_run(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for a registry, settings and pools that all share, with two kinds of workers and a scheduler."""
    (machine.folder / "job.yaml").write_text(machine.here(yaml_block(section(QUEUE, "On one machine"))))
    (machine.folder / "config").mkdir()
    (machine.folder / "config/pools.yaml").write_text(yaml_block(section(QUEUE, "Pools and routing")))
    for line in typed(section(QUEUE, "On many machines")):
        said = machine.type(line, capsys)
        if line.startswith("lading watch"):
            assert said.startswith("finished: 40 of 40 rows")
    machine.close()
    assert machine.workers == 2


def test_the_client_s_examples_run(
    tmp_path: Path, tiny_encoder: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each program in docs/client.md does what its text says, with a worker that answers."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"BROKER_URL": redis_server.url, "JOBS": "jobs", "ROOTS": f"{tmp_path},{tiny_encoder}"}.items():
        monkeypatch.setenv(f"LADING_{name}", value)
    settings = load()
    worker = Worker(
        pools.find(pools.load(), "cpu"), settings, Broker.connect(redis_server.url), Registry(settings.jobs)
    )
    worker.start()
    text = (ROOT / "docs/client.md").read_text().replace("redis://127.0.0.1:6379/0", redis_server.url)
    text = text.replace("BAAI/bge-m3", str(models_outputs.bge_m3(tmp_path / "bge-m3")))
    programs = [
        block for language, block in FENCE.findall(text.replace("MODEL", str(tiny_encoder))) if language == "python"
    ]
    done: list[dict[str, Any]] = []
    for program in programs:
        done.append({})
        exec(program, done[-1])
    waiting, several, asynchronous, ticket, errors, celery = done
    assert waiting["vectors"].shape == (2, 32)
    assert waiting["floats"].shape == (1, 16)
    assert several["found"].dense.shape == (1, 32)
    assert several["found"].sparse[0].values.dtype == np.float32
    assert several["found"].multi_vector[0].shape[1] == 24
    assert asyncio.run(asynchronous["search"]("where?")).shape == (32,)
    assert ticket["rows"] == lancedb.connect("db").open_table("docs").count_rows() == 2
    assert errors["places"] == [1]
    assert [(place, code) for place, code, _ in errors["errors"]] == [(1, "empty-text")]
    assert celery["result"]["vectors"]["shape"] == [1, 32]
    for one in done:
        for closed in (one.get("client"), one.get("app")):
            if closed is not None:
                closed.close()
    worker.stop(30.0, threading.Event())
