"""The engine against an adapter whose results are known: every item once, failures kept to their row, stable batches."""

import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.adapters.contract import Outputs, Prepared
from lading.config.errors import ShardError, StopJob
from lading.pipelines.manifest import Work
from lading.pipelines.records import Receipt, Reject, Rows, Shard
from lading.workers.engine import Engine
from lading.workers.parts import finish

SCHEMA = pa.schema(
    [pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string()), pa.field("value", pa.float32())]
)


class Lengths:
    """A text's result is its number of words, its cost too. Texts with `poison` make their whole batch fail, `nan` only
    their own result; `a/b` is a document of two chunks."""

    inputs = 1
    kernel = "words"
    weights = "words"
    device = "cpu"

    def __init__(self, streams: int = 1) -> None:
        self.streams = streams
        self.fields = [pa.field("value", pa.float32())]
        self.batches: list[list[str]] = []

    def prepare(self, columns):
        texts = columns[0].to_pylist()
        bad = {row: ("empty-text", "") for row, text in enumerate(texts) if not text}
        rows, pieces = [], []
        for row, text in enumerate(texts):
            for piece in text.split("/") if text else []:
                rows.append(row)
                pieces.append(piece)
        costs = np.array([len(piece.split()) for piece in pieces], np.int64)
        return Prepared(np.array(rows, np.int32), costs, {"texts": pieces}, bad, np.zeros(len(rows), bool))

    def run(self, parts):
        texts = [prepared.features["texts"][item] for prepared, items in parts for item in items]
        self.batches.append(texts)
        if any("poison" in text for text in texts):
            raise RuntimeError("poisoned")
        values = pa.array([float(len(text.split())) for text in texts], pa.float32())
        bad = {place: "not finite" for place, text in enumerate(texts) if "nan" in text}
        return Outputs(pa.record_batch([values], names=["value"]), bad)


def rows_of(texts, first=0, bad=()):
    ids = pa.array(range(first, first + len(texts)), pa.int64())
    ordinals = np.arange(first, first + len(texts), dtype=np.int64)
    batch = pa.record_batch([ids, pa.array(texts, pa.string())], names=["id", "text"])
    return Rows(batch, ordinals, ordinals, "in.jsonl", list(bad))


class Task:
    """A shard of the rows that `read` gives for its work."""

    texts = ["text"]  # noqa: RUF012
    at_hand = True

    def __init__(self, number, adapter, read):
        self.work, self.adapter = Work(Shard(number, 0, 0, 0), 0, None), adapter
        self.read = lambda: read(self.work)
        self.begin = lambda: None


def run_engine(shards, *, budget=16, window=64, stop=None, adapter=None):
    """`shards`: per shard its list of Rows, or an exception in their midst. Returns (finished by number, engine)."""

    def read(work):
        for rows in shards[work.shard.number]:
            if isinstance(rows, Exception):
                raise rows
            yield rows

    adapter = adapter or Lengths()
    tasks = [Task(number, adapter, read) for number in range(len(shards))]
    engine = Engine(adapter.streams, budget, window, stop or threading.Event())
    return {shard.work.shard.number: shard for shard in engine.shards(tasks)}, engine


def result(shard):
    return finish(
        shard, Receipt("job", shard.work.shard.number, 0, "attempt"), keep=["text"], text="text", schema=SCHEMA
    )


words = st.lists(
    st.sampled_from(["a", "b c", "d e f", "", "poison", "nan", "x/y z", "x/poison", "p q r s t u v w"]), max_size=30
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(words, max_size=3), max_size=4), st.integers(1, 40), st.integers(1, 100), st.integers(1, 3))
def test_every_row_is_a_result_or_a_reject(texts, budget, window, streams):
    """Whatever the batches: rows in == rows done + rejects, in order, each result the row's own."""
    shards = []
    for parts in texts:
        starts = np.cumsum([0, *(len(part) for part in parts)])
        shards.append([rows_of(part, int(first)) for part, first in zip(parts, starts, strict=False)])
    total = sum(len(part) for parts in texts for part in parts)
    try:
        finished, _ = run_engine(shards, budget=budget, window=window, adapter=Lengths(streams))
    except StopJob:  # a batch of poison alone: the model, not the rows, is to blame
        assert sum("poison" in text for parts in texts for part in parts for text in part) >= 8
        return
    assert sorted(finished) == list(range(len(shards)))
    rows_in = 0
    for number, parts in enumerate(texts):
        flat = [text for part in parts for text in part]
        table, rejects, receipt = result(finished[number])
        good = [n for n, text in enumerate(flat) if text and "poison" not in text and "nan" not in text]
        wanted = [(n, float(len(piece.split()))) for n in good for piece in flat[n].split("/")]
        assert list(zip(table["id"].to_pylist(), table["value"].to_pylist(), strict=True)) == wanted
        assert [reject.ordinal for reject in rejects] == [n for n in range(len(flat)) if n not in good]
        assert receipt.rows_in == receipt.rows_done + receipt.rejected == len(flat)
        rows_in += receipt.rows_in
    assert rows_in == total


def test_a_failing_batch_is_halved_down_to_the_row():
    """The neighbours of a row that makes the model raise have their results; the row carries the model's words."""
    finished, _ = run_engine([[rows_of(["a", "b c", "poison", "d"])]])
    table, rejects, _ = result(finished[0])
    assert table["id"].to_pylist() == [0, 1, 3]
    assert [(reject.id, reject.code, reject.detail) for reject in rejects] == [(2, "failed", "RuntimeError: poisoned")]


def test_a_document_whose_one_chunk_fails_is_rejected_as_a_whole():
    """No part of a document is in the result when a part of it is not."""
    finished, _ = run_engine([[rows_of(["x/y", "x/nan/z", "w"])]])
    table, rejects, _ = result(finished[0])
    assert table["id"].to_pylist() == [0, 0, 2]
    assert [(reject.id, reject.code) for reject in rejects] == [(1, "not-finite")]


def test_a_model_that_fails_on_everything_stops_the_job():
    """When all rows of a batch fail alone, the job stops with the model's words instead of rejecting the corpus."""
    with pytest.raises(StopJob, match=r"every one of 12 rows in a row: RuntimeError: poisoned"):
        run_engine([[rows_of(["poison"] * 12)]])


def test_a_model_that_fails_on_everything_stops_the_job_in_small_batches_too():
    """Batches of one row do not hide that nothing succeeds."""
    with pytest.raises(StopJob, match=r"every one of 8 rows in a row"):
        run_engine([[rows_of(["poison"] * 12)]], budget=1)


def test_a_model_without_one_finite_result_stops_the_job():
    """NaN for every row is the model's fault and not the rows': the corpus is not rejected row by row."""
    with pytest.raises(StopJob, match=r"no result of 1,\d\d\d rows in a row can be used: not finite"):
        run_engine([[rows_of(["nan"] * 2000)]])
    with pytest.raises(StopJob, match=r"1,024 rows in a row can be used: RuntimeError: poisoned"):
        run_engine([[rows_of(["nan nan"] * 1023 + ["poison"])]], budget=2, window=5000)
    finished, _ = run_engine([[rows_of(["nan"] * 1000 + ["a"] + ["nan"] * 1000)]])
    assert result(finished[0])[2].rows_done == 1


def test_batches_run_side_by_side_and_are_handed_out_in_order():
    """As many batches run at once as the adapter has streams, and what comes out does not show which was faster."""
    together = threading.Barrier(2)  # passes when two batches run at the same time, or breaks

    class Slow(Lengths):
        def run(self, parts):
            together.wait(60)
            return super().run(parts)

    shards = [[rows_of(["a b", "c d e", "f"])] for _ in range(8)]
    finished, engine = run_engine(shards, budget=6, window=12, adapter=Slow(2))
    alone, _ = run_engine(shards, budget=6, window=12)
    assert list(finished) == list(alone) == list(range(8))
    assert [result(one)[0] for one in finished.values()] == [result(one)[0] for one in alone.values()]
    assert engine.gauges.batches == 8
    assert 0 < engine.gauges.busy <= 1


def test_what_a_failing_shard_had_ready_does_not_depend_on_timing():
    """A shard that fails in the window it began in puts nothing into a batch, however far ahead it was read."""
    shards = [[rows_of(["a"])], [rows_of(["b"]), ShardError("page is corrupt")], [rows_of(["c"])]]
    for _ in range(20):
        adapter = Lengths()
        run_engine(shards, adapter=adapter)
        assert adapter.batches == [["a", "c"]]


def test_rows_without_cost_do_not_gather_without_end():
    """Blank rows are handed out as rejects while the source is still being read."""
    read: list[int] = []

    def shards():
        for number in range(400):
            read.append(number)
            yield Task(number, adapter, lambda _: iter([rows_of([""] * 3)]))

    adapter = Lengths()
    engine = Engine(adapter.streams, 16, 64, threading.Event())
    finished = engine.shards(shards())
    next(finished)
    assert len(read) < 200
    finished.close()


def test_rows_that_could_not_be_read_are_rejects():
    """What the source reports as bad is counted and kept in its place."""
    bad = Reject(0, 1, "in.jsonl", 10, None, "invalid-json", "no object")
    rows = rows_of(["a", "b"])
    rows = Rows(rows.batch, np.array([0, 2]), rows.positions, rows.paths, [bad])
    finished, _ = run_engine([[rows]])
    _, rejects, receipt = result(finished[0])
    assert rejects == [bad]
    assert (receipt.rows_in, receipt.rows_done, receipt.rejected) == (3, 2, 1)


def test_a_shard_that_cannot_be_read_fails_alone():
    """A ShardError of the source marks its shard; the others finish."""
    finished, _ = run_engine([[rows_of(["a"])], [rows_of(["b"]), ShardError("page is corrupt")], [rows_of(["c"])]])
    assert finished[1].failure == "page is corrupt"
    assert [number for number, shard in finished.items() if not shard.failure] == [0, 2]


def test_batches_form_across_shards_and_do_not_depend_on_timing():
    """Small shards share a batch, and a second run forms the same batches."""
    shards = [[rows_of(["a", "b c"])] for _ in range(6)]
    seen = []
    for _ in range(2):
        adapter = Lengths()
        run_engine(shards, budget=9, window=18, adapter=adapter)
        seen.append(adapter.batches)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 3


def test_stopping_finishes_what_is_begun_and_nothing_else():
    """After `stop`, the shard on the device is completed; shards only read ahead are left."""
    stop = threading.Event()
    shards = [[rows_of(["a b c d"] * 4), rows_of(["a b c d"] * 4, 4)] for _ in range(5)]

    class Stopping(Lengths):
        def run(self, parts):
            stop.set()
            return super().run(parts)

    finished, _ = run_engine(shards, budget=16, window=16, stop=stop, adapter=Stopping())
    assert list(finished) == [0]
    assert result(finished[0])[2].rows_done == 8


def test_the_fill_ratio_is_the_used_share_of_the_budget():
    """Two batches of 12 and 4 words under a budget of 12 are 16 of 24."""
    _, engine = run_engine([[rows_of(["a b c d"] * 4)]], budget=12)
    assert engine.gauges.fill == pytest.approx(16 / 24)
    assert engine.gauges.batches == 2
