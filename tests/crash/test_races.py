"""Several processes on one job, frozen ones and strangers among them, do it exactly once."""

from __future__ import annotations

from pathlib import Path

from lading.pipelines.job import draft
from lading.pipelines.manifest import Manifest
from lading.pipelines.optimize import optimize
from lading.pipelines.output import output_paths
from tests.crash.jobs import (
    BATCH_TOKENS,
    Undisturbed,
    add_foreign,
    assert_ended,
    assert_same,
    encode,
    expected_foreign,
    foreign_ids,
    outcome,
)
from tests.zygote import Zygote


def test_four_processes_one_frozen_before_its_fold_and_strangers_end_right(
    to: str, corpus: Path, tiny_encoder: Path, zygote: Zygote, undisturbed: Undisturbed
) -> None:
    """Four processes on one job, one thawed after the others ended, a foreign writer and optimize in between: every row
    once, the foreign rows kept."""
    spec = encode(corpus, tiny_encoder, to)
    racers = [zygote.start(spec, "publish.before=stop", batch_tokens=BATCH_TOKENS) for _ in range(3)]
    assert all(racer.wait_stopped() for racer in racers)  # each holds an attempt of its own at the first shard
    frozen = zygote.start(spec, "fold.before-commit=stop", batch_tokens=BATCH_TOKENS)
    assert frozen.wait_stopped()
    manifest = Manifest.open(output_paths(to), draft(spec).id)
    assert [receipt.shard for receipt in manifest.receipts()] == [0]  # and has lost it to the frozen one
    for racer in racers:
        racer.thaw()
    numbers = range(3) if to.startswith("lancedb") else range(0)
    for number in numbers:
        add_foreign(to, number)
        optimize(to)
    optimize(to)
    assert [racer.wait() for racer in racers] == [0, 0, 0], [racer.log() for racer in racers]
    assert manifest.closed() is not None
    if numbers:
        assert foreign_ids(to) == expected_foreign(*numbers)
    frozen.thaw()
    assert frozen.wait() == 0, frozen.log()
    assert_ended(spec, zygote.finish(spec), corpus)
    assert_same(outcome(to), undisturbed(corpus))
    if numbers:
        assert foreign_ids(to) == expected_foreign(*numbers)
