"""Whole jobs on a disk without space stop with words, harm nothing, and go on when there is some."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lading.pipelines.manifest import Manifest
from lading.pipelines.output import output_paths
from tests.crash.jobs import (
    BATCH_TOKENS,
    KILLED,
    PER_SHARD,
    SINKS,
    Undisturbed,
    assert_ended,
    assert_same,
    encode,
    outcome,
)
from tests.zygote import Zygote


@pytest.fixture
def small_disk(disk: Callable[[str, str], Path]) -> Path:
    return disk("small", "2m")


def fill(disk: Path) -> Path:
    """Take every byte that is left; the file that has them."""
    with open(disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return disk / "filler"


@pytest.mark.parametrize("point", ["stage.written", "publish.before", "fold.before-commit", "close.before"])
@pytest.mark.parametrize("kind", SINKS)
def test_a_disk_that_fills_up_stops_the_job_which_says_what_to_do(
    kind: str, point: str, small_disk: Path, corpus: Path, tiny_encoder: Path, zygote: Zygote, undisturbed: Undisturbed
) -> None:
    """A disk that fills up just before a commit: "stopped", exit code 3, the remedy; with space again, every row once."""
    spec = encode(corpus, tiny_encoder, f"{kind}://{small_disk}/out/docs")
    nth = 2 if point in PER_SHARD else 1
    child = zygote.start(spec, f"{point}=stop@{nth}", batch_tokens=BATCH_TOKENS)
    assert child.wait_stopped(), child.log()
    filler = fill(small_disk)
    child.thaw()
    assert child.wait() == 3, child.log()
    assert child.summary()["state"] == "stopped"
    assert "free space and run the same command again" in child.summary()["reason"]
    assert Manifest.open(output_paths(spec.sink.to), child.summary()["job"]).closed() is None
    seen = outcome(spec.sink.to).table["id"].to_pylist()
    assert len(set(seen)) == len(seen)
    filler.unlink()
    assert_ended(spec, zygote.finish(spec, batch_tokens=BATCH_TOKENS), corpus)
    assert_same(outcome(spec.sink.to), undisturbed(corpus))


@pytest.mark.parametrize("kind", SINKS)
def test_a_job_goes_on_with_each_bit_of_space(
    kind: str, small_disk: Path, corpus: Path, tiny_encoder: Path, zygote: Zygote, undisturbed: Undisturbed
) -> None:
    """Run again and again on a disk with a little more space each time, a job gets further without harm and ends right."""
    spec = encode(corpus, tiny_encoder, f"{kind}://{small_disk}/out/docs")
    whole = undisturbed(corpus)
    assert zygote.start(spec, "register.recorded=kill").wait() == KILLED
    filler = fill(small_disk)
    rows: list[int] = []
    while (code := (child := zygote.start(spec, batch_tokens=BATCH_TOKENS)).wait()) != 0:
        assert code == 3, child.log()
        said = child.summary()["reason"] if child.result.exists() else child.log()
        assert "free space and run the same command again" in said
        seen = outcome(spec.sink.to).table["id"].to_pylist()
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(whole.table["id"].to_pylist())
        rows.append(len(seen))
        os.truncate(filler, filler.stat().st_size - 24 * 1024)
    assert rows[0] == 0
    assert rows == sorted(rows)
    assert any(0 < count < whole.table.num_rows for count in rows)  # some stops came in the middle
    assert_ended(spec, child.summary(), corpus)
    assert_same(outcome(spec.sink.to), whole)
