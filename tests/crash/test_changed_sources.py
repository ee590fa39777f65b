"""A source that changes while the job runs, after planning and before its shards are read: failed shards, said, no row lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lading.cli import main
from lading.pipelines.report import status
from tests.crash.jobs import (
    BATCH_TOKENS,
    SHARD_ROWS,
    Undisturbed,
    assert_ended,
    assert_same,
    command,
    encode,
    outcome,
    write_corpus,
)
from tests.zygote import Zygote

SHARDS = 60  # more than are read ahead of the first that is published
HALF = SHARDS // 2 * SHARD_ROWS  # rows of each of the two files


def rewrite(file: Path) -> None:
    pq.write_table(pq.read_table(file).slice(1), file)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "large", shards=SHARDS)


@pytest.mark.parametrize("change", [rewrite, truncate, touch, Path.unlink], ids=lambda change: change.__name__)
@pytest.mark.parametrize("point", ["register.recorded=stop", "publish.linked=stop@1"], ids=["before all", "in between"])
def test_rows_of_a_file_that_changes_are_failed_and_said(
    point: str, change: Callable[[Path], None], to: str, large: Path, tiny_encoder: Path, zygote: Zygote
) -> None:
    """Changed before its first shard is read, a file has all its rows failed, and the other file's are all there: 3, with its name."""
    spec = encode(large, tiny_encoder, to)
    child = zygote.start(spec, point, batch_tokens=BATCH_TOKENS)
    assert child.wait_stopped(), child.log()
    change(large / "b.parquet")
    child.thaw()
    assert child.wait() == 3, child.log()
    summary = child.summary()
    assert summary["state"] == "unfinished"
    assert str(large / "b.parquet") in summary["reason"]
    assert (summary["rows_in"], summary["failed"]) == (2 * HALF, HALF)
    assert summary["rows_done"] + summary["rejected"] == HALF
    found = outcome(to)
    assert found.table.num_rows == summary["rows_done"]
    assert {path for path, *_ in found.rejects} == {str(large / "a.parquet")}
    assert [(one.state, one.failed) for one in status(to)] == [("unfinished", HALF)]


def test_a_file_put_back_lets_the_job_end(
    to: str, tiny_encoder: Path, zygote: Zygote, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """The same command does the failed shards again, and ends as if nothing had been."""
    corpus = write_corpus(tmp_path / "docs", shards=6)
    spec = encode(corpus, tiny_encoder, to)
    child = zygote.start(spec, "register.recorded=stop", batch_tokens=BATCH_TOKENS)
    assert child.wait_stopped(), child.log()
    kept = shutil.copy2(corpus / "b.parquet", tmp_path / "kept.parquet")
    rewrite(corpus / "b.parquet")
    child.thaw()
    assert child.wait() == 3, child.log()
    shutil.copy2(kept, corpus / "b.parquet")
    assert_ended(spec, zygote.finish(spec, batch_tokens=BATCH_TOKENS), corpus)
    assert_same(outcome(to), undisturbed(corpus))


def test_the_changed_source_is_another_job(
    to: str, large: Path, tiny_encoder: Path, zygote: Zygote, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same command on the changed source is refused with 2, since the output is another job's."""
    spec = encode(large, tiny_encoder, to)
    child = zygote.start(spec, "register.recorded=stop", batch_tokens=BATCH_TOKENS)
    assert child.wait_stopped(), child.log()
    rewrite(large / "b.parquet")
    child.thaw()
    assert child.wait() == 3, child.log()
    assert main(command(spec)) == 2
    said = capfd.readouterr().err
    assert "--on-existing append" in said
    assert "Traceback" not in said
