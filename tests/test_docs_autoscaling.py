"""What docs/autoscaling.md says can be typed, and its tables have the numbers of the code."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lading.cli.worker import autoscale
from lading.pipelines.pace import MOST_ROWS
from lading.schedulers import pools
from lading.schedulers.autoscale import Behaviour, triggers
from tests.redis_server import RedisServer
from tests.test_docs import ROOT, typed
from tests.test_docs_queue import Machine, section, until

TEXT = (ROOT / "docs/autoscaling.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The cells of its first table, without its head."""
    lines = [line for line in section(TEXT, heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture
def machine(
    tmp_path: Path, tiny_encoder: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    one = Machine(tmp_path, tiny_encoder, redis_server, monkeypatch)
    yield one
    one.abandon()


def test_its_commands_run(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Typed from top to bottom: the job that is submitted at the end is done, and what runs on stops with 0."""
    said = [machine.type(line, capsys) for line in typed(TEXT)]
    assert "submitted: job" in said[-1]
    assert machine.type("lading watch JOB", capsys).startswith("finished: 40 of 40 rows")
    assert len(machine.running) == 2
    until(lambda: machine.broker.workers("cpu") == 2)  # one was started by hand
    for one in machine.running:
        one.send_signal(signal.SIGTERM)
    assert [one.wait(60) for one in machine.running] == [0, 0]


def test_its_options_have_these_defaults() -> None:
    """Every option of its own is there, and each number is the command's own."""
    options = {option.opts[0]: option.default for option in autoscale.params}
    rows = [(re.findall(r"`(--[a-z-]+)", name)[0], default) for name, default, _ in table("On one machine")]
    assert {name.replace("without", "with") for name, _ in rows} == {*options} - {
        "--allow",
        "--metrics-port",
        "--metrics-bind",
    }  # told elsewhere
    for name, default in rows:
        if re.fullmatch(r"\d+", default):
            assert options[name] == float(default), name


def test_its_numbers_are_those_of_the_code() -> None:
    """Triggers with their keys and shares, the behaviour that the cluster is told, and the largest shard."""
    pool = pools.load()["gpu"]
    fields = {"pull_shards": pool.pull_shards, "pull_requests": pool.pull_requests}
    rows = [(name.replace(" in flight", "-inflight"), key, share) for name, key, share in table("How many")]
    told = [(name, key.strip("`").replace("POOL", pool.name), fields[share.strip("`")]) for name, key, share in rows]
    assert told == [(one.name, one.key, one.per_worker) for one in triggers(pool)]
    behaviour = Behaviour(most=pool.max_workers)
    values = {name: value for _, name, value in table("With KEDA")}
    assert values["`pollingInterval` (and 15 s of the cluster's own)"] == f"{behaviour.polling_s:g}"
    assert behaviour.sync_s == 15.0
    assert values["`cooldownPeriod`"] == f"{behaviour.cooldown_s:g}"
    assert values["`scaleDown.stabilizationWindowSeconds`"] == f"{behaviour.settling_s:g}"
    policy = f"`{{type: Pods, value: {behaviour.down_workers}, periodSeconds: {behaviour.down_period_s:g}}}`"
    assert values["`scaleDown.policies`"] == policy
    assert f"{MOST_ROWS:,} rows" in TEXT
