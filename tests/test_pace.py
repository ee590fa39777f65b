"""Shards of so many seconds: as many rows as earlier jobs of the recipe did in that time on that pool."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import yaml

from lading.cli import main
from lading.pipelines.job import Draft, draft
from lading.pipelines.pace import MOST_ROWS, rows_per_s, shard_rows
from lading.pipelines.records import Receipt
from lading.pipelines.spec import JobSpec, to_dict
from lading.pipelines.submit import Queues, submit
from tests.queued import ROWS, job_spec, queues
from tests.redis_server import RedisServer

SHARDS = 40


@pytest.fixture
def at(redis_server: RedisServer, tmp_path: Path) -> Queues:
    return queues(redis_server.url, tmp_path)


def timed(folder: Path, model: Path, name: str, seconds: float, **step: int) -> JobSpec:
    spec = job_spec(folder, model, name, SHARDS)
    policy = dataclasses.replace(spec.policy, shard_seconds=seconds)
    return dataclasses.replace(spec, policy=policy, steps=(dataclasses.replace(spec.steps[0], **step),))


def drafted(at: Queues, spec: JobSpec) -> Draft:
    return draft(spec, at.measured(spec))


def done(at: Queues, job: str, shards: range, device_s: float = 0.5) -> None:
    """Shards of the job, that took half a second each: its device was the slowest, one of four streams. 0: they ran alone, untimed."""
    opened = at.registry.find(job).open()
    for number in shards:
        work = opened.manifest.pending(number, 0)
        assert work is not None
        seconds = {"read": 0.1, "prepare": 0.2, "run": 2.0, "device": device_s, "stage": 9.0}
        opened.manifest.publish(Receipt(*opened.attempt(work), rows_in=ROWS, rows_done=ROWS, seconds=seconds))


def test_shards_take_as_long_as_they_are_told(
    at: Queues, tmp_path: Path, tiny_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a second of work was measured, for the same recipe on the same pool; until then they have `shard_rows`, and it is said."""
    with caplog.at_level(logging.WARNING):
        first = drafted(at, timed(tmp_path, tiny_encoder, "first", 5.0))
    assert len(first.shards) == SHARDS
    assert f"pace unknown: recipe={first.recipe.hash} shard_rows=2" in caplog.text
    submit(first, at)
    done(at, first.id, range(1))
    assert rows_per_s(at.registry, "cpu", first.recipe.hash) is None  # half a second
    done(at, first.id, range(1, 4))
    assert rows_per_s(at.registry, "cpu", first.recipe.hash) == pytest.approx(ROWS / 0.5)
    assert rows_per_s(at.registry, "gpu", first.recipe.hash) is None
    done(at, first.id, range(4, 8), device_s=0.0)
    assert rows_per_s(at.registry, "cpu", first.recipe.hash) == pytest.approx(ROWS / 0.5)

    second = drafted(at, timed(tmp_path, tiny_encoder, "second", 5.0))
    assert [shard.rows for shard in second.shards] == [20] * (SHARDS * ROWS // 20)
    other = drafted(at, timed(tmp_path, tiny_encoder, "third", 5.0, max_tokens=16))
    assert len(other.shards) == SHARDS
    again = drafted(at, timed(tmp_path, tiny_encoder, "first", 5.0))
    assert (again.id, again.shards) == (first.id, first.shards)
    assert len(drafted(at, job_spec(tmp_path, tiny_encoder, "second", SHARDS)).shards) == SHARDS


def test_the_plan_has_the_shards_that_it_would_be_cut_into(
    at: Queues, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`lading plan` and `lading submit` ask the same jobs."""
    monkeypatch.setenv("LADING_JOBS", at.registry.root)
    monkeypatch.setenv("LADING_BROKER_URL", at.broker.url)
    first = drafted(at, timed(tmp_path, tiny_encoder, "first", 5.0))
    submit(first, at)
    done(at, first.id, range(4))
    file = tmp_path / "second.yaml"
    file.write_text(yaml.safe_dump(to_dict(timed(tmp_path, tiny_encoder, "second", 10.0))))
    for verb in ("plan", "submit"):
        assert main([verb, str(file), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["shards"] == SHARDS * ROWS // 40


def test_a_shard_has_at_least_a_row_and_fits_into_memory() -> None:
    """However fast or slow."""
    assert shard_rows(60.0, 100.0) == 6000
    assert shard_rows(1.0, 0.001) == 1
    assert shard_rows(3600.0, 1e6) == MOST_ROWS
