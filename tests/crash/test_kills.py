"""Whole jobs, model included, killed at commit points and at random moments end as an undisturbed run does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from lading.config.failpoints import COMMIT_POINTS
from lading.pipelines.job import draft
from lading.pipelines.manifest import Manifest
from lading.pipelines.output import output_paths
from lading.pipelines.spec import JobSpec
from tests.crash.jobs import (
    AFTER_CLOSE,
    BATCH_TOKENS,
    KILLED,
    PER_SHARD,
    REJECTED,
    SHARD_ROWS,
    Replacing,
    Undisturbed,
    assert_ended,
    assert_same,
    encode,
    kill_at_random,
    outcome,
)
from tests.zygote import Zygote


def test_the_corpus_has_every_kind_of_row(corpus: Path, undisturbed: Undisturbed) -> None:
    """The outcome that the others are compared with has rows and each kind of reject in it."""
    whole = undisturbed(corpus)
    assert whole.table.num_rows == 6 * SHARD_ROWS - REJECTED
    assert {code for _, _, code, _ in whole.rejects} == {"null-text", "empty-text", "duplicate-id"}
    assert len(whole.rejects) == REJECTED


@pytest.mark.parametrize("point", COMMIT_POINTS)
def test_a_job_killed_at_a_commit_point_is_finished_by_the_same_command(
    point: str, to: str, corpus: Path, tiny_encoder: Path, zygote: Zygote, undisturbed: Undisturbed
) -> None:
    """kill -9 at a commit point, the same command again: rows, vectors and rejects of an undisturbed run."""
    spec = encode(corpus, tiny_encoder, to)
    nth = 2 if point in PER_SHARD else 1
    child = zygote.start(spec, f"{point}=kill@{nth}", batch_tokens=BATCH_TOKENS)
    assert child.wait() == KILLED, child.log()
    manifest = Manifest.open(output_paths(to), draft(spec).id)
    assert (manifest.closed() is not None) == (point in AFTER_CLOSE)
    if point in PER_SHARD:
        published = sum(manifest.published(shard.number, 0) for shard in manifest.plan.shards)
        assert 0 < published < len(manifest.plan.shards)
    summary = zygote.finish(spec, batch_tokens=BATCH_TOKENS)
    assert summary["state"] == ("nothing to do" if point in AFTER_CLOSE else "finished")
    assert (summary["rows_run"] > 0) == (not point.startswith(("close", "unregister")))
    assert_ended(spec, summary, corpus)
    assert_same(outcome(to), undisturbed(corpus))


def test_kills_at_random_moments_lose_and_double_nothing(
    to: str, corpus: Path, tiny_encoder: Path, zygote: Zygote, undisturbed: Undisturbed
) -> None:
    """kill -9 where nobody thought of it: rows, vectors and rejects of an undisturbed run."""

    whole = undisturbed(corpus)

    def check(spec: JobSpec, summary: dict[str, Any]) -> None:
        assert_ended(spec, summary, corpus)
        assert_same(outcome(spec.sink.to), whole)

    kill_at_random(zygote, lambda n: encode(corpus, tiny_encoder, f"{to}{n}"), check, 3, random.Random(to[:4]))


def test_a_killed_replacement_leaves_each_id_once_and_new(zygote: Zygote, replacing: Replacing) -> None:
    """A replace job killed at random moments: every id once with its new row, no old row of a reject, strangers kept."""
    kill_at_random(zygote, replacing.spec, replacing.check, 3, random.Random(3))
