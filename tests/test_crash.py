"""Whole jobs, model included, that are killed, frozen, raced and starved of disk end as an undisturbed run does."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lading.config.failpoints import COMMIT_POINTS
from lading.pipelines.job import draft
from lading.pipelines.ledger import Ledger
from lading.pipelines.manifest import Manifest
from lading.pipelines.optimize import optimize
from lading.pipelines.output import metadata_of, output_paths
from lading.pipelines.reading import open_reading
from lading.pipelines.report import rejects
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
    """`to` read as any pyarrow user would, a stranger's rows left out; the rejects of `job`, or of all."""
    reading = open_reading(to)
    table = pa.Table.from_batches(reading.to_batches(columns=reading.schema.names), reading.schema).sort_by("id")
    table = table.filter(pc.invert(pc.starts_with(table["id"], FOREIGN)))
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    listed = sorted((one.input, one.position, one.code, one.id) for one in rejects(to, job))
    return Outcome(table.drop(["vector"]).replace_schema_metadata(), vectors, listed)


def assert_same(ours: Outcome, undisturbed: Outcome) -> None:
    """Row for row: ids and carried columns exactly, vectors within 1e-6, the rejects with their places and reasons."""
    assert ours.table["id"].to_pylist() == undisturbed.table["id"].to_pylist()
    assert ours.table.equals(undisturbed.table)
    np.testing.assert_allclose(ours.vectors, undisturbed.vectors, rtol=0, atol=1e-6)
    assert ours.rejects == undisturbed.rejects


def assert_ended(spec: JobSpec, summary: dict[str, Any], corpus: Path) -> None:
    """Every row of the corpus is accounted for, the job is closed and has left the table's ledger."""
    rows = sum(pq.read_metadata(file).num_rows for file in corpus.iterdir())
    assert summary["rows_in"] == rows == summary["rows_done"] + summary["rejected"]
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


def kill_at_random(
    zygote: Zygote,
    spec_to: Callable[[int], JobSpec],
    check: Callable[[JobSpec, dict[str, Any]], None],
    kills: int,
    choose: random.Random,
) -> int:
    """Kill runs at random moments, up to three times an output, then let one finish it and `check` it; how many outputs.

    `spec_to(n)` is the job into the nth output. A moment after the end does not count: what is drawn from then on lies
    before it, so that the wanted number is reached however fast the machine is.
    """
    spec, output = spec_to(0), 0
    began = time.monotonic()
    summary = zygote.finish(spec, batch_tokens=BATCH_TOKENS)
    longest_s = time.monotonic() - began
    check(spec, summary)
    while kills > 0:
        output += 1
        spec = spec_to(output)
        for _ in range(min(kills, choose.randint(1, 3))):
            child = zygote.start(spec, batch_tokens=BATCH_TOKENS)
            moment_s = choose.uniform(0, longest_s)
            time.sleep(moment_s)
            if child.kill() != KILLED:
                longest_s = moment_s
                break  # this output is finished: nothing is left to be killed
            kills -= 1
        check(spec, zygote.finish(spec, batch_tokens=BATCH_TOKENS))
    return output


def test_kills_at_random_moments_lose_and_double_nothing(
    to: str, corpus: Path, tiny_encoder: Path, zygote: Zygote, undisturbed: Undisturbed
) -> None:
    """kill -9 where nobody thought of it: rows, vectors and rejects of an undisturbed run."""

    whole = undisturbed(corpus)

    def check(spec: JobSpec, summary: dict[str, Any]) -> None:
        assert_ended(spec, summary, corpus)
        assert_same(outcome(spec.sink.to), whole)

    kill_at_random(zygote, lambda n: encode(corpus, tiny_encoder, f"{to}{n}"), check, 5, random.Random(to[:4]))


class Replacing:
    """Jobs that replace what an earlier job wrote, in tables that have a stranger's rows as well."""

    def __init__(
        self, zygote: Zygote, before: Path, after: Path, model: Path, undisturbed: Undisturbed, place: Path
    ) -> None:
        self._zygote, self._before, self._after, self._model = zygote, before, after, model
        self._undisturbed, self._place = undisturbed, place
        self._tables: set[str] = set()

    def spec(self, number: int) -> JobSpec:
        """The replacing job into the nth table, which is made with its old rows when first asked for."""
        to = f"lancedb://{self._place}/t{number}"
        if to not in self._tables:
            self._zygote.finish(encode(self._before, self._model, to), batch_tokens=BATCH_TOKENS)
            add_foreign(to, 0)
            self._tables.add(to)
        return encode(self._after, self._model, to, on_existing="replace")

    def check(self, spec: JobSpec, summary: dict[str, Any]) -> None:
        assert_ended(spec, summary, self._after)
        assert_same(outcome(spec.sink.to, summary["job"]), self._undisturbed(self._after))
        assert foreign_ids(spec.sink.to) == expected_foreign(0)


@pytest.fixture
def replacing(corpus: Path, tiny_encoder: Path, zygote: Zygote, undisturbed: Undisturbed, tmp_path: Path) -> Replacing:
    after = write_corpus(tmp_path / "after", shards=6, generation=1)
    assert outcome_differs(undisturbed(corpus), undisturbed(after))
    return Replacing(zygote, corpus, after, tiny_encoder, undisturbed, tmp_path)


def outcome_differs(one: Outcome, other: Outcome) -> bool:
    """Whether the same ids have other texts."""
    return one.table["id"].equals(other.table["id"]) and not one.table["body"].equals(other.table["body"])


def test_a_killed_replacement_leaves_each_id_once_and_new(zygote: Zygote, replacing: Replacing) -> None:
    """A replace job killed at random moments: every id once with its new row, no old row of a reject, strangers kept."""
    kill_at_random(zygote, replacing.spec, replacing.check, 3, random.Random(3))


# -- races


def add_foreign(to: str, number: int) -> None:
    """What another application does with the same table: it opens it with plain lancedb and adds seven rows."""
    folder, _, name = output_paths(to).data.removesuffix(".lance").rpartition("/")
    table = lancedb.connect(folder).open_table(name)
    table.add([{"id": f"{FOREIGN}{number}-{n}", "year": n, "body": "strange", "vector": [0.5] * 32} for n in range(7)])


def foreign_ids(to: str) -> list[str]:
    table = lance.dataset(output_paths(to).data).to_table(columns=["id"], filter=f"starts_with(id, '{FOREIGN}')")
    return sorted(table["id"].to_pylist())


def expected_foreign(*numbers: int) -> list[str]:
    return sorted(f"{FOREIGN}{number}-{n}" for number in numbers for n in range(7))


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


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


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
