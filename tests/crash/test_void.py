"""Shards whose staged rows are gone before they come into view are done again; `optimize` never is the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lading.cli import main
from lading.pipelines.job import draft
from lading.pipelines.manifest import Manifest
from lading.pipelines.optimize import optimize
from lading.pipelines.spec import JobSpec
from tests.crash.jobs import (
    BATCH_TOKENS,
    KILLED,
    Undisturbed,
    assert_ended,
    assert_same,
    command,
    encode,
    outcome,
)
from tests.zygote import Zygote


def remove_staged(spec: JobSpec) -> list[int]:
    """Remove by hand what is published and not in view yet; the shards that it was."""
    drafted = draft(spec)
    sink, manifest = drafted.sink, Manifest.open(drafted.sink.output, drafted.id)
    waiting = [one for one in manifest.finished() if (one.shard, one.generation) not in sink.folded(drafted.id)]
    for receipt in waiting:
        sink.discard(receipt.files)
    return [receipt.shard for receipt in waiting if receipt.files]


@pytest.mark.parametrize("point", ["publish.linked=kill@2", "fold.read=kill@6"], ids=["shards left", "none left"])
def test_the_command_makes_staged_rows_again_that_are_gone(
    point: str,
    to: str,
    corpus: Path,
    tiny_encoder: Path,
    zygote: Zygote,
    undisturbed: Undisturbed,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed between marker and fold, its staged files removed by hand, with or without other shards left: the same command
    ends with 0, every row once."""
    spec = encode(corpus, tiny_encoder, to)
    assert zygote.start(spec, point, batch_tokens=BATCH_TOKENS).wait() == KILLED
    (lost,) = remove_staged(spec)
    assert main([*command(spec), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert_ended(spec, summary, corpus)
    assert_same(outcome(to), undisturbed(corpus))
    generations = {
        (one.shard, one.generation) for one in Manifest.open(draft(spec).sink.output, summary["job"]).finished()
    }
    assert {generation for shard, generation in generations if shard == lost} == {1}


def test_optimize_leaves_a_running_jobs_staged_rows(
    to: str, corpus: Path, tiny_encoder: Path, zygote: Zygote, undisturbed: Undisturbed
) -> None:
    """An output may be tidied while a shard is published and not in view yet: no generation is void because of it."""
    spec = encode(corpus, tiny_encoder, to)
    child = zygote.start(spec, "publish.linked=stop@2", batch_tokens=BATCH_TOKENS)
    assert child.wait_stopped(), child.log()
    assert any("is not finished" in note for note in optimize(to).notes)
    child.thaw()
    assert child.wait() == 0, child.log()
    assert_ended(spec, child.summary(), corpus)
    assert_same(outcome(to), undisturbed(corpus))
    finished = Manifest.open(draft(spec).sink.output, child.summary()["job"]).finished()
    assert {one.generation for one in finished} == {0}
