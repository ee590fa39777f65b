"""What is done and what is left, told from plan, markers and openings alone."""

from __future__ import annotations

import dataclasses
import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.config.errors import LadingError, OutputError
from lading.pipelines.ledger import Entry, Ledger, from_ranges, to_ranges
from lading.pipelines.manifest import Manifest, jobs
from lading.pipelines.output import Output, output_paths
from lading.pipelines.plan import Plan
from lading.pipelines.records import Input, Receipt, Reject, Shard

ROWS = 10


def plan(shards: int = 3, **changes) -> Plan:
    fields = {
        "job": "job",
        "spec": {"a": [1]},
        "format": "jsonl",
        "inputs": [Input("/data/a.jsonl", 100, "7")],
        "shards": [Shard(number, 0, number * 50, number * 50 + 50, ROWS) for number in range(shards)],
        "duplicates": {1: np.array([3, 4])},
        "on_existing": "refuse",
        "recipe": {"task": "encode"},
        "model": {"name": "m"},
        "source": "",
        "schema": "",
        "created": 1.5,
    }
    return Plan(**{**fields, **changes})


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return output_paths(f"parquet://{tmp_path}/out")


@pytest.fixture
def manifest(output: Output) -> Manifest:
    return Manifest.create(output, plan())


def receipt(
    shard: int,
    generation: int = 0,
    attempt: str = "a",
    rejects: dict[str, int] | None = None,
    rows: int = ROWS,
    **changes,
) -> Receipt:
    rejects = rejects or {}
    rejected = sum(rejects.values())
    fields = {
        "rows_in": rows,
        "rows_done": rows - rejected,
        "rows_out": rows - rejected,
        "rejected": rejected,
        "rejects": rejects,
    }
    return Receipt(job="job", shard=shard, generation=generation, attempt=attempt, **{**fields, **changes})


def reject(shard: int, ordinal: int, code: str = "failed") -> Reject:
    return Reject(shard, ordinal, "/data/a.jsonl", ordinal, f"id-{ordinal}", code, "why")


def left(manifest: Manifest) -> list[tuple[int, int, list[int] | None]]:
    return [
        (work.shard.number, work.generation, None if work.ordinals is None else work.ordinals.tolist())
        for work in manifest.work()
    ]


def test_a_plan_comes_back_as_it_was(output: Output, manifest: Manifest) -> None:
    """Whoever opens the job later sees the same spec, snapshot, shards, duplicates and schema."""
    again = Manifest.open(output, "job").plan
    assert dataclasses.replace(again, duplicates={}) == dataclasses.replace(plan(), duplicates={})
    assert {shard: places.tolist() for shard, places in again.duplicates.items()} == {1: [3, 4]}
    schema = pa.schema([pa.field("id", pa.string(), nullable=False)], metadata={"k": "v"})
    import base64

    assert plan(schema=base64.b64encode(schema.serialize().to_pybytes()).decode()).output_schema.equals(
        schema, check_metadata=True
    )


def test_the_first_plan_of_a_job_stands(output: Output, manifest: Manifest) -> None:
    """A second start of the same job goes by the first one's plan."""
    assert Manifest.create(output, plan(shards=9)).plan.created == 1.5
    assert len(Manifest.create(output, plan(shards=9)).plan.shards) == 3


def test_an_unknown_plan_version_is_refused_with_both_versions(output: Output, manifest: Manifest) -> None:
    """Formats carry a version; an unknown one is not guessed at."""
    place = Path(manifest.folder.url) / "plan.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "version": 99}))
    with pytest.raises(OutputError, match=r"version 99.*version 2"):
        Manifest.open(output, "job")


def test_an_unknown_job_is_said_with_those_there_are(output: Output, manifest: Manifest) -> None:
    """Naming a job that does not exist lists the ones that do."""
    assert jobs(output) == ["job"]
    assert Manifest.find(output, "other") is None
    with pytest.raises(OutputError, match="its jobs: job"):
        Manifest.open(output, "other")


def test_work_is_what_has_no_marker(output: Output, manifest: Manifest) -> None:
    """A published shard is never handed out again, to whatever process asks."""
    assert left(manifest) == [(0, 0, None), (1, 0, None), (2, 0, None)]
    manifest.publish(receipt(1))
    assert left(manifest) == left(Manifest.open(output, "job")) == [(0, 0, None), (2, 0, None)]
    assert manifest.published(1, 0)
    assert not manifest.published(0, 0)


def test_the_first_attempt_wins(manifest: Manifest) -> None:
    """A second attempt at a shard is told the winner's receipt, and does not count."""
    manifest.publish(receipt(0, attempt="first", rejects={"failed": 2}))
    assert manifest.publish(receipt(0, attempt="second")).attempt == "first"
    assert [one.attempt for one in manifest.receipts()] == ["first"]
    assert manifest.totals().rejected == 2


def test_publishing_the_same_receipt_twice_is_one_publication(manifest: Manifest) -> None:
    """A put whose answer was lost is tried again and found to be ours."""
    assert (
        manifest.publish(receipt(0, attempt="mine")).attempt
        == manifest.publish(receipt(0, attempt="mine")).attempt
        == "mine"
    )


def test_a_failed_shard_is_work_again_only_when_reopened(manifest: Manifest) -> None:
    """Within a run a failed shard stays failed; the next run opens one more generation, however many start it."""
    manifest.publish(receipt(0, status="failed", reason="boom", rows_done=0, rows_out=0))
    assert 0 not in [shard for shard, _, _ in left(manifest)]
    totals = manifest.totals()
    assert (totals.failed, totals.rows_in, totals.shards_failed, totals.failure) == (ROWS, ROWS, 1, "shard 0: boom")
    assert manifest.finished() == []
    assert manifest.reopen_failed() == 1
    assert manifest.reopen_failed() == 0
    assert left(manifest)[0] == (0, 1, None)
    manifest.publish(receipt(0, 1))
    totals = manifest.totals()
    assert (totals.failed, totals.done, totals.rows_in, totals.shards_done) == (0, ROWS, ROWS, 1)


def test_reopened_rejects_are_counted_once(output: Output, manifest: Manifest) -> None:
    """Rows of a later generation leave the rejects of the one before, whether they succeed, fail or are rejected again."""
    rejects = [reject(0, 2), reject(0, 5, "empty-text"), reject(0, 7, "not-finite")]
    name = manifest.write_rejects(0, 0, "a", rejects)
    manifest.publish(receipt(0, rejects={"failed": 1, "empty-text": 1, "not-finite": 1}, rejects_file=name))
    assert list(manifest.rejects()) == rejects
    assert manifest.reopen_rejects() == 2
    assert left(manifest)[0] == (0, 1, [2, 7])
    totals = manifest.totals()
    assert (totals.rows_in, totals.done, totals.rejected, totals.remaining) == (8, 7, 1, 2 + 2 * ROWS)
    name = manifest.write_rejects(0, 1, "b", [reject(0, 7)])
    manifest.publish(receipt(0, 1, rows=2, rejects={"failed": 1}, rejects_file=name))
    again = Manifest.open(output, "job")
    totals = again.totals()
    assert (totals.rows_in, totals.done, totals.rejected, totals.rejects) == (
        ROWS,
        8,
        2,
        {"empty-text": 1, "failed": 1},
    )
    assert [(one.ordinal, one.code) for one in again.rejects()] == [(5, "empty-text"), (7, "failed")]
    assert [(one.shard, one.generation) for one in again.finished()] == [(0, 0), (0, 1)]


@pytest.mark.parametrize(
    ("code", "rows"), [("failed", 1), ("out-of-memory", 1), ("not-finite", 1), ("killed", 1), ("too-long", 0)]
)
def test_what_may_pass_is_tried_again(manifest: Manifest, code: str, rows: int) -> None:
    """A device may have memory tomorrow; a text stays too long."""
    name = manifest.write_rejects(0, 0, "a", [reject(0, 2, code)])
    manifest.publish(receipt(0, rejects={code: 1}, rejects_file=name))
    assert manifest.reopen_rejects() == rows


def test_a_void_generation_is_done_again(manifest: Manifest) -> None:
    """Where the staged files of a finished generation are gone, another takes its place, for the same rows."""
    manifest.publish(receipt(1))
    assert manifest.reopen_void([(1, 0)]) == 1
    assert manifest.reopen_void([(1, 0)]) == 0
    assert (1, 1, None) in left(manifest)
    assert manifest.totals().done == 0
    manifest.publish(receipt(1, 1))
    assert [(one.shard, one.generation) for one in manifest.finished()] == [(1, 1)]


@pytest.mark.parametrize("changes", [{"rows_done": 9}, {"rejected": 1, "rows_done": 9}])
def test_a_receipt_that_does_not_balance_is_an_error(manifest: Manifest, changes: dict[str, int]) -> None:
    """No row may be unaccounted for: the receipt is named, not summed up."""
    manifest.publish(receipt(2, **changes))
    with pytest.raises(LadingError, match="shard 2, generation 0"):
        manifest.totals()


def test_a_job_closes_only_when_all_of_it_is_in_view(output: Output, manifest: Manifest) -> None:
    """closed.json is the last word; it is refused while a shard is missing, failed or not folded."""
    for shard in range(3):
        with pytest.raises(LadingError, match="not complete"):
            manifest.close({})
        manifest.publish(receipt(shard))
    with pytest.raises(LadingError, match="1 of them not in the output yet"):
        manifest.close({}, folded={(0, 0), (1, 0)})
    assert manifest.closed() is None
    manifest.close({"rows": 30}, folded={(0, 0), (1, 0), (2, 0)})
    manifest.close({"rows": 31}, folded=set())
    assert Manifest.open(output, "job").closed() == {"rows": 30}
    with pytest.raises(OutputError, match="finished"):
        manifest.reopen_rejects()


def test_markers_are_read_once(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking again costs a listing and the new markers, not all of them."""
    other = Manifest(manifest.folder, manifest.plan)
    manifest.publish(receipt(0))
    manifest.publish(receipt(1))
    read: list[str] = []
    real = manifest.folder.read
    monkeypatch.setattr(other.folder, "read", lambda name: read.append(name) or real(name))
    other.totals()
    manifest.publish(receipt(2))
    other.totals()
    other.work()
    assert sorted(read) == ["markers/0.0.json", "markers/1.0.json", "markers/2.0.json"]


def test_a_lost_rejects_file_is_said(manifest: Manifest) -> None:
    """Rejects that cannot be listed are an error, not an empty list."""
    manifest.publish(receipt(0, rejects={"failed": 1}, rejects_file="rejects/gone.jsonl"))
    with pytest.raises(LadingError, match=r"gone\.jsonl is gone"):
        list(manifest.rejects())


def test_a_void_generation_whose_rejects_were_taken_over_is_done_again_without_them(manifest: Manifest) -> None:
    """What stands in for a void generation covers its rows but for those that a later generation has."""
    rejects = [reject(0, 2), reject(0, 5, "empty-text")]
    name = manifest.write_rejects(0, 0, "a", rejects)
    manifest.publish(receipt(0, rejects={"failed": 1, "empty-text": 1}, rejects_file=name))
    assert manifest.reopen_rejects() == 1
    assert manifest.reopen_void([(0, 0)]) == 1
    assert manifest.reopen_void([(0, 0)]) == 0
    others = [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert left(manifest)[:2] == [(0, 1, [2]), (0, 2, others)]
    manifest.publish(receipt(0, 1, rows=1))
    assert left(manifest)[0] == (0, 2, others)
    assert manifest.totals().shards_done == 0
    manifest.publish(receipt(0, 2, rows=9, rejects={"empty-text": 1}))
    totals = manifest.totals()
    assert (totals.rows_in, totals.done, totals.rejects, totals.shards_done) == (ROWS, 9, {"empty-text": 1}, 1)
    assert [(one.shard, one.generation) for one in manifest.finished()] == [(0, 1), (0, 2)]


def test_openings_of_two_processes_build_on_each_other(output: Output, manifest: Manifest) -> None:
    """A process whose place in a shard's openings is taken looks again before it opens anything."""
    name = manifest.write_rejects(0, 0, "a", [reject(0, 2)])
    manifest.publish(receipt(0, rejects={"failed": 1}, rejects_file=name))
    other, first = Manifest.open(output, "job"), manifest.folder.put

    def slow(name: str, data: bytes) -> bytes:
        other.reopen_rejects()  # between what the slow process saw and what it writes
        return first(name, data)

    manifest.folder.put = slow
    assert manifest.reopen_void([(0, 0)]) == 1
    for one in (manifest, other, Manifest.open(output, "job")):
        assert left(one)[:2] == [(0, 1, [2]), (0, 2, [0, 1, 3, 4, 5, 6, 7, 8, 9])]


class Model:
    """A job of one shard in two processes, and an output that remembers which rows each fold brought into view."""

    def __init__(self, data: st.DataObject, rows: int) -> None:
        self.draw, self.rows = data.draw, rows
        output = output_paths(f"parquet://memory://{uuid.uuid4().hex}/out")
        one = dataclasses.replace(plan(), shards=[Shard(0, 0, 0, rows, rows)])
        self.processes = [Manifest.create(output, one) for _ in range(2)]
        self.covered: dict[int, list[int]] = {}  # generation -> rows that were staged
        self.view: list[int] = []
        self.void: set[tuple[int, int]] = set()
        self.folded: set[tuple[int, int]] = set()

    @property
    def manifest(self) -> Manifest:
        return self.draw(st.sampled_from(self.processes))

    def do(self, *, well: bool = False) -> None:
        """Publish every open generation; `well`: without failures, and without rejects that another attempt may save."""
        manifest = self.manifest
        for work in manifest.work():
            scope = list(range(self.rows)) if work.ordinals is None else work.ordinals.tolist()
            if not well and self.draw(st.integers(0, 3)) == 0:
                outcome = receipt(0, work.generation, rows=len(scope), status="failed", rows_done=0, rows_out=0)
            else:
                codes = ["", "empty-text"] if well else ["", "empty-text", "failed", "not-finite"]
                coded = {row: self.draw(st.sampled_from(codes)) for row in scope}
                bad = [reject(0, row, code) for row, code in coded.items() if code]
                self.covered[work.generation] = [row for row, code in coded.items() if not code]
                name = manifest.write_rejects(0, work.generation, "a", bad)
                counts = {code: n for code in codes[1:] if (n := sum(one.code == code for one in bad))}
                outcome = receipt(0, work.generation, rows=len(scope), rejects=counts, rejects_file=name)
            manifest.publish(outcome)

    def fold(self, *, well: bool = False) -> None:
        """As a sink does: each finished generation comes into view once, or is void for ever."""
        for one in self.manifest.finished():
            pair = (0, one.generation)
            if pair not in self.folded | self.void:
                lost = not well and self.draw(st.booleans())
                (self.void if lost else self.folded).add(pair)
                self.view += [] if lost else self.covered[one.generation]

    def reopen(self) -> None:
        event = self.draw(st.sampled_from(["rejects", "void", "failed"]))
        acts = {
            "void": lambda: self.manifest.reopen_void(self.void),
            "failed": self.manifest.reopen_failed,
            "rejects": self.manifest.reopen_rejects,
        }
        acts[event]()

    def check(self) -> None:
        assert sorted(set(self.view)) == sorted(self.view), "a row came into view twice"
        totals = self.manifest.totals()
        assert totals.rows_in == totals.done + totals.rejected + totals.failed
        assert totals.rows_in + totals.remaining == self.rows


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 6))
def test_every_row_ends_in_exactly_one_place(data: st.DataObject, rows: int) -> None:
    """Whatever fails, is void or is reopened, in any order and by any process: in the end each row is in view or listed, once."""
    model = Model(data, rows)
    for event in data.draw(st.lists(st.sampled_from([model.do, model.reopen, model.fold]), min_size=3, max_size=16)):
        event()
        model.check()
    model.manifest.reopen_failed()
    model.manifest.reopen_void(model.void)
    model.do(well=True)
    model.fold(well=True)
    model.check()
    listed = [one.ordinal for one in model.manifest.rejects()]
    assert sorted(model.view + listed) == list(range(rows))
    totals = model.manifest.totals()
    assert (totals.done, totals.rejected, totals.failed, totals.remaining) == (len(model.view), len(listed), 0, 0)
    assert (totals.shards_done, sum(totals.rejects.values())) == (1, len(listed))


@given(st.sets(st.integers(0, 300)))
def test_ranges_come_back(numbers: set[int]) -> None:
    """A set of shards written as ranges is the same set when read."""
    assert from_ranges(to_ranges(numbers)) == numbers


def test_ranges_are_compact() -> None:
    """Ten thousand shards in a row take a few bytes."""
    assert to_ranges(range(10_000)) == "0-9999"
    assert to_ranges([0, 1, 5]) == "0-1,5"


def test_a_ledger_comes_back_and_counts_its_commits() -> None:
    """What one commit writes, the next one reads; each writes a higher sequence."""
    entry = Entry("doc_id", frozenset({(0, 0), (1, 0), (1, 1)}), frozenset({(2, 0)}))
    ledger = Ledger("abc", 4, {}).with_job("job", entry)
    again = Ledger.read(ledger.metadata(), "here")
    assert (again.table_id, again.sequence, again.jobs) == ("abc", 5, {"job": entry})
    assert again.without("job").jobs == {}


def test_an_unknown_ledger_version_is_refused_with_both_versions() -> None:
    """A table written by a later release is not touched."""
    with pytest.raises(OutputError, match=r"db/docs.*version 2.*version 1"):
        Ledger.read({"lading.jobs": '{"version":2,"jobs":{}}'}, "db/docs")
