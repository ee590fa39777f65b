"""What the crash tests run and compare: a corpus with every kind of row, a job over it, its outcome, and ways to disturb it."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lading.config.failpoints import COMMIT_POINTS
from lading.pipelines.job import draft
from lading.pipelines.manifest import Manifest
from lading.pipelines.optimize import optimize
from lading.pipelines.output import output_paths
from lading.pipelines.reading import open_reading
from lading.pipelines.report import rejects
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
from tests.zygote import Child, Zygote

SINKS = ("lancedb", "parquet")
KILLED = -9
WORDS = (
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
)
SHARD_ROWS = 8
BATCH_TOKENS = 64  # and as large a window: a shard of these texts is about one of them
FOREIGN = "foreign-"
# Points that each shard passes, so that one can die at the second time, with work done and work left.
PER_SHARD = ("stage.written", "rejects.written", "publish.before", "publish.linked", "fold.read")
PER_SHARD += ("fold.before-commit", "fold.committed")
AFTER_CLOSE = ("close.written", "unregister.committed")
REJECTED = 5 + SHARD_ROWS  # of every corpus

Undisturbed = Callable[[Path], "Outcome"]
Check = Callable[[JobSpec, dict[str, Any]], None]


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


def command(spec: JobSpec) -> list[str]:
    """What a user types for a job that `encode` made."""
    options = {"id": spec.source.id, "text": spec.steps[0].text[0], "model": spec.steps[0].model, "to": spec.sink.to}
    typed = [word for name, value in options.items() for word in (f"--{name}", value)]
    kept = [word for name in spec.source.keep or () for word in ("--keep", name)]
    return ["encode", *spec.source.paths, *typed, *kept, "--shard-rows", str(spec.policy.shard_rows)]


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
        assert summary["job"] not in json.loads(lance.dataset(output.data).schema.metadata[b"lading.jobs"])["jobs"]


# -- disturbances


def kill_at_random(
    zygote: Zygote,
    spec_to: Callable[[int], JobSpec],
    check: Check,
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


class Storm:
    """Four processes on one job until it is closed, killed, frozen and thawed, with strangers at work in between."""

    def __init__(self, zygote: Zygote, choose: random.Random) -> None:
        self._zygote, self._choose = zygote, choose
        self._running: list[Child] = []
        self._frozen: list[Child] = []
        self.races = self.kills = self.freezes = self.optimized = self.foreign_tried = self.foreign_added = 0

    def blow(self, spec: JobSpec) -> list[int]:
        """Run the job to its end; the numbers of what strangers added to its table."""
        output, job = output_paths(spec.sink.to), draft(spec).id
        added: list[int] = []
        while (manifest := Manifest.find(output, job)) is None or manifest.closed() is None:
            while len(self._running) < 4:
                self._start(spec)
            time.sleep(self._choose.uniform(0, 0.2))
            event = self._choose.choice(["kill", "kill", "freeze", "freeze", "thaw", "optimize", "add", "add"])
            if event == "kill":
                self.kills += self._any(self._running).kill() == KILLED
            elif event == "freeze" and (child := self._any(self._running)).freeze():
                self.freezes += 1
                self._frozen.append(child)
            elif event == "thaw" and self._frozen:
                self._thaw()
            elif event == "optimize" and manifest is not None and os.path.exists(output.data):
                optimize(spec.sink.to)
                self.optimized += 1
            elif event == "add" and os.path.exists(f"{output.data}/_versions"):
                added += self._add(spec.sink.to)
        while self._frozen:
            self._thaw()
        while self._running:
            child = self._any(self._running)
            code = child.wait()
            assert code in (0, KILLED), child.log()
            self.kills += code == KILLED
        self.races += 1
        return added

    def _any(self, children: list[Child]) -> Child:
        return children.pop(self._choose.randrange(len(children)))

    def _start(self, spec: JobSpec) -> None:
        """Half of them die by themselves at some commit point; the others from outside, if at all."""
        point = f"{self._choose.choice(COMMIT_POINTS)}=kill@{self._choose.randint(1, 20)}"
        point = point if self._choose.random() < 0.5 else ""
        self._running.append(self._zygote.start(spec, point, batch_tokens=BATCH_TOKENS))

    def _thaw(self) -> None:
        child = self._any(self._frozen)
        child.thaw()
        self._running.append(child)

    def _add(self, to: str) -> list[int]:
        """The number of what was added. An append that loses again and again gives up, having written nothing."""
        self.foreign_tried += 1
        try:
            add_foreign(to, self.foreign_tried)
        except RuntimeError:
            return []
        self.foreign_added += 1
        return [self.foreign_tried]
