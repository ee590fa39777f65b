"""Whole jobs, model included, that are killed, frozen, raced and starved of disk end as an undisturbed run does."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.config.failpoints import COMMIT_POINTS
from lading.pipelines.job import draft
from lading.pipelines.ledger import Ledger
from lading.pipelines.manifest import Manifest
from lading.pipelines.reading import open_reading
from lading.pipelines.report import rejects
from lading.pipelines.output import metadata_of, output_paths
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
from tests.zygote import Zygote

SINKS = ("lancedb", "parquet")
KILLED = -9
WORDS = [
    "cat",
    "dog",
    "house",
    "river",
    "stone",
    "light",
    "green",
    "paper",
    "music",
    "seven",
    "run",
    "walk",
    "open",
    "file",
    "read",
    "write",
]
SHARD_ROWS = 8
BATCH_TOKENS = 64  # and as large a window: a shard of these texts is about one of them
FOREIGN = "foreign-"
# Points that each shard passes, so that one can die at the second time, with work done and work left.
PER_SHARD = ("stage.written", "rejects.written", "publish.before", "publish.linked", "fold.read")
PER_SHARD += ("fold.before-commit", "fold.committed")
AFTER_CLOSE = ("close.written", "unregister.committed")


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    folder = tmp_path_factory.mktemp("zygote")
    zygote = Zygote(
        folder,
        LADING_WINDOW_TOKENS=str(BATCH_TOKENS),
        LADING_FOLD_INTERVAL_S="0",
        LADING_CACHE_DIR=str(folder / "cache"),
    )
    yield zygote
    zygote.close()


def write_corpus(folder: Path, shards: int, seed: int = 0, generation: int = 0) -> Path:
    """Two Parquet files of `shards` shards in all, with null, blank and twice-used ids' rows, and one shard of rejects only.

    Another `generation` has other texts for the same ids.
    """
    rng = np.random.default_rng([seed, generation])
    folder.mkdir(parents=True)
    rows = shards * SHARD_ROWS
    keys = [f"k{n:05d}" for n in range(rows)]
    bodies: list[str | None] = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(rows)]
    bodies[3], bodies[SHARD_ROWS + 5], bodies[-2] = None, "   ", ""
    bodies[2 * SHARD_ROWS : 3 * SHARD_ROWS] = [None] * SHARD_ROWS
    keys[5], keys[-1] = keys[4], keys[0]  # duplicates within a shard and across files
    table = pa.table({"key": keys, "body": bodies, "year": pa.array(range(rows), pa.int32())})
    cut = shards // 2 * SHARD_ROWS
    pq.write_table(table.slice(0, cut), folder / "a.parquet")
    pq.write_table(table.slice(cut), folder / "b.parquet")
    return folder


def encode(corpus: Path, model: Path, to: str, on_existing: str = "refuse") -> JobSpec:
    return JobSpec(
        source=SourceSpec(paths=(f"{corpus}/*.parquet",), id="key", keep=("year", "body")),
        steps=(StepSpec(verb="encode", model=str(model), text=("body",)),),
        sink=SinkSpec(to=to, on_existing=on_existing),
        policy=PolicySpec(shard_rows=SHARD_ROWS),
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All that a job leaves for its users."""

    table: pa.Table  # by id, the vector apart
    vectors: np.ndarray
    rejects: list[tuple[str, int, str, str | None]]


def outcome(to: str, job: str | None = None) -> Outcome:
    reading = open_reading(to)
    table = pa.Table.from_batches(reading.to_batches(columns=reading.schema.names)).sort_by("id")
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    listed = sorted((one.input, one.position, one.code, one.id) for one in rejects(to, job))
    return Outcome(table.drop(["vector"]).replace_schema_metadata(), vectors, listed)


def assert_same(ours: Outcome, undisturbed: Outcome) -> None:
    """Row for row: ids and carried columns exactly, vectors within 1e-6, the rejects with their places and reasons."""
    assert ours.table["id"].to_pylist() == undisturbed.table["id"].to_pylist()
    assert ours.table.equals(undisturbed.table)
    np.testing.assert_allclose(ours.vectors, undisturbed.vectors, rtol=0, atol=1e-6)
    assert ours.rejects == undisturbed.rejects


def assert_ended(spec: JobSpec, summary: dict[str, object], corpus: Path) -> None:
    """Every row of the corpus is accounted for, the job is closed and has left the table's ledger."""
    rows = sum(pq.read_metadata(file).num_rows for file in corpus.iterdir())
    assert summary["rows_in"] == rows == summary["rows_done"] + summary["rejected"]  # pyright: ignore[reportOperatorIssue]
    output = output_paths(spec.sink.to)
    manifest = Manifest.open(output, str(summary["job"]))
    totals = manifest.totals()
    assert (totals.rows_in, totals.done + totals.rejected, totals.failed) == (rows, rows, 0)
    assert manifest.closed() is not None
    if output.kind == "lancedb":
        assert summary["job"] not in Ledger.read(metadata_of(lance.dataset(output.data).schema), output.data).jobs


Undisturbed = Callable[[Path], Outcome]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "docs", shards=6)


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What one run that nobody disturbs makes of a corpus; the same for both sinks."""
    known: dict[Path, Outcome] = {}

    def run(corpus: Path) -> Outcome:
        if corpus not in known:
            place = tmp_path_factory.mktemp("undisturbed")
            outcomes = []
            for kind in SINKS:
                spec = encode(corpus, tiny_encoder, f"{kind}://{place}/{kind}")
                assert_ended(spec, zygote.finish(spec, batch_tokens=BATCH_TOKENS), corpus)
                outcomes.append(outcome(spec.sink.to))
            assert_same(*outcomes)
            known[corpus] = outcomes[0]
        return known[corpus]

    return run


@pytest.fixture(params=SINKS)
def to(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}://{tmp_path}/out/docs"


# -- kills


def test_the_corpus_has_every_kind_of_row(corpus: Path, undisturbed: Undisturbed) -> None:
    """The outcome that the others are compared with has rows and each kind of reject in it."""
    whole = undisturbed(corpus)
    assert whole.table.num_rows == 48 - 13
    assert {code for _, _, code, _ in whole.rejects} == {"null-text", "empty-text", "duplicate-id"}
    assert len(whole.rejects) == 13


@pytest.mark.parametrize("point", COMMIT_POINTS)
def test_a_job_killed_at_a_commit_point_is_finished_by_the_same_command(
    point: str, to: str, corpus: Path, tiny_encoder: Path, zygote: Zygote, undisturbed: Undisturbed
) -> None:
    """kill -9 at a commit point, the same command again: rows, vectors and rejects of an undisturbed run."""
    spec = encode(corpus, tiny_encoder, to)
    nth = 2 if point in PER_SHARD else 1
    child = zygote.start(spec, f"{point}=kill@{nth}", batch_tokens=BATCH_TOKENS)
    assert child.wait() == KILLED, child.log()
    (manifest,) = (Manifest.find(output_paths(to), draft(spec).id),)
    assert manifest is not None
    assert (manifest.closed() is not None) == (point in AFTER_CLOSE)
    if point in PER_SHARD:
        published = sum(manifest.published(shard.number, 0) for shard in manifest.plan.shards)
        assert 0 < published < len(manifest.plan.shards)
    summary = zygote.finish(spec, batch_tokens=BATCH_TOKENS)
    assert summary["state"] == ("nothing to do" if point in AFTER_CLOSE else "finished")
    assert (summary["rows_run"] > 0) == (not point.startswith(("close", "unregister")))
    assert_ended(spec, summary, corpus)
    assert_same(outcome(to), undisturbed(corpus))


def kill_at_random(
    zygote: Zygote, spec: JobSpec, kills: int, longest_s: float, choose: random.Random
) -> dict[str, object]:
    """Start the job again and again and kill it at random moments; the summary of the run that is left alone.

    A moment after the end does not count: what is drawn next lies before it, so the wanted number is reached
    however fast the machine is. Each later run begins where the killed one was; a job that got through begins nothing.
    """
    while kills:
        child = zygote.start(spec, batch_tokens=BATCH_TOKENS)
        delay_s = choose.uniform(0, longest_s)
        time.sleep(delay_s)
        if child.kill() == KILLED:
            kills -= 1
        else:
            longest_s = delay_s
    return zygote.finish(spec, batch_tokens=BATCH_TOKENS)


def seconds_of(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


@pytest.mark.parametrize("seed", [1, 2])
def test_kills_at_random_moments_lose_and_double_nothing(
    seed: int, to: str, corpus: Path, tiny_encoder: Path, zygote: Zygote, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """kill -9 where nobody thought of it, three times to a job: rows, vectors and rejects of an undisturbed run."""
    plain = encode(corpus, tiny_encoder, to.replace("/out/", "/plain/"))
    whole_s = seconds_of(lambda: zygote.finish(plain, batch_tokens=BATCH_TOKENS))
    spec = encode(corpus, tiny_encoder, to)
    summary = kill_at_random(zygote, spec, 3, whole_s, random.Random(seed))
    assert_ended(spec, summary, corpus)
    assert_same(outcome(to), undisturbed(corpus))
