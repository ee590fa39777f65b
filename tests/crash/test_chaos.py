"""The long form of the crash tests, for `make chaos`: many kills, freezes and races. LADING_CHAOS_SEED gives others."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from lading.pipelines.spec import JobSpec
from tests.crash.jobs import (
    SINKS,
    Replacing,
    Storm,
    Undisturbed,
    assert_ended,
    assert_same,
    encode,
    expected_foreign,
    foreign_ids,
    kill_at_random,
    outcome,
    write_corpus,
)
from tests.zygote import Zygote

SEED = int(os.environ.get("LADING_CHAOS_SEED", "0"))


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("long") / "docs", shards=60, seed=SEED)


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Past pytest's capture: the figures are what the long form is run for."""
    with capsys.disabled():
        print(f"\n  {text}", flush=True)


@pytest.mark.chaos
def test_chaos_kills(
    to: str,
    long_corpus: Path,
    tiny_encoder: Path,
    zygote: Zygote,
    undisturbed: Undisturbed,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Forty kills at random moments of jobs of forty shards."""
    whole = undisturbed(long_corpus)
    rows = 0

    def check(spec: JobSpec, summary: dict[str, Any]) -> None:
        nonlocal rows
        assert_ended(spec, summary, long_corpus)
        assert_same(outcome(spec.sink.to), whole)
        rows += summary["rows_in"]

    outputs = kill_at_random(
        zygote, lambda n: encode(long_corpus, tiny_encoder, f"{to}{n}"), check, 40, random.Random(SEED)
    )
    tell(capsys, f"{to[:7]}: 40 kills in {outputs} outputs, {rows} input rows: each there once")


@pytest.mark.chaos
def test_chaos_replacing(zygote: Zygote, replacing: Replacing, capsys: pytest.CaptureFixture[str]) -> None:
    """Thirty kills at random moments of jobs that replace another job's rows."""
    outputs = kill_at_random(zygote, replacing.spec, replacing.check, 30, random.Random(SEED))
    tell(capsys, f"replace: 30 kills in {outputs} tables: each id there once, with its new row")


@pytest.mark.chaos
@pytest.mark.parametrize("kind", SINKS)
def test_chaos_races(
    kind: str,
    tmp_path: Path,
    long_corpus: Path,
    tiny_encoder: Path,
    zygote: Zygote,
    undisturbed: Undisturbed,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Four processes on one job, killed, frozen and thawed at random moments, with foreign rows and optimize in between."""
    whole = undisturbed(long_corpus)
    storm = Storm(zygote, random.Random(SEED))
    rows = double = lost = 0
    while (
        storm.kills < 50
        or storm.freezes < 30
        or storm.optimized < 5
        or (kind == "lancedb" and storm.foreign_added < 20)
    ):
        spec = encode(long_corpus, tiny_encoder, f"{kind}://{tmp_path}/race{storm.races}")
        added = storm.blow(spec)
        found = outcome(spec.sink.to)
        ids = found.table["id"].to_pylist()
        rows, double = rows + len(ids), double + len(ids) - len(set(ids))
        lost += len(set(whole.table["id"].to_pylist()) - set(ids))
        assert_ended(spec, zygote.finish(spec), long_corpus)
        assert_same(found, whole)
        if kind == "lancedb":
            assert foreign_ids(spec.sink.to) == expected_foreign(*added)
    tell(
        capsys,
        f"{kind}: {storm.races} races of four processes, {storm.kills} kills, {storm.freezes} freezes, {storm.optimized} times "
        f"optimized, {storm.foreign_added} foreign appends of {storm.foreign_tried}: {rows} rows, {double} double, {lost} lost",
    )
