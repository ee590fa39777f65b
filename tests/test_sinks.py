"""The contract of a sink, over every kind: invisible until folded, folded once, readable by anyone, refusals that say why."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import lance
import lancedb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from lading.config.errors import OutputError, StopJob, TableChanged
from lading.pipelines.folder import open_folder
from lading.pipelines.optimize import optimize
from lading.pipelines.output import Output, find_output, output_paths
from lading.pipelines.provenance import RECIPES
from lading.pipelines.reading import open_reading
from lading.pipelines.records import Receipt
from lading.pipelines.sinks import Sink, open_sink

WIDTH = 8
VECTOR = pa.list_(pa.field("item", pa.float32(), nullable=False), WIDTH)


def recipes(hash: str = "aaaa", column: str = "vector") -> dict[str, str]:
    return {RECIPES: json.dumps({column: {"hash": hash, "text": ["text"]}})}


SCHEMA = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("vector", VECTOR), pa.field("text", pa.string())],
    metadata={**recipes(), "embedding_functions": "[]"},
)


def rows(ids: list[str], value: float = 1.0, schema: pa.Schema = SCHEMA) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.full(len(ids) * WIDTH, value, np.float32)), type=VECTOR)
    return pa.Table.from_arrays([pa.array(ids, pa.string()), vectors, pa.array(ids, pa.string())], schema=schema)


def staged(
    sink: Sink, shard: int, ids: list[str], *, job: str = "job", generation: int = 0, value: float = 1.0, **kwargs: Any
) -> Receipt:
    """A receipt whose files lie where no reader sees them."""
    files = sink.stage(job, shard, generation, uuid.uuid4().hex, rows(ids, value), **kwargs)
    return Receipt(
        job=job,
        shard=shard,
        generation=generation,
        attempt="a",
        rows_in=len(ids),
        rows_done=len(ids),
        rows_out=len(ids),
        files=files,
    )


def read(output: Output) -> pa.Table:
    if output.kind == "lancedb":
        return lance.dataset(output.data).to_table()
    return pyarrow.dataset.dataset(output.data).to_table()


def ids_in(sink: Sink) -> list[str]:
    return sorted(read(sink.output)["id"].to_pylist())


def close(sink: Sink, job: str = "job") -> None:
    sink.output.job(job).put("closed.json", b'{"version":1,"job":"job","report":{}}')
    sink.unregister(job)


@pytest.fixture(params=["lancedb", "parquet", "lancedb-s3", "parquet-s3"])
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Sink:
    kind, _, store = request.param.partition("-")
    return open_sink(f"{kind}://{request.getfixturevalue('s3') if store else tmp_path}/db/docs")


@pytest.fixture
def table(tmp_path: Path) -> Sink:
    return open_sink(f"lancedb://{tmp_path}/db/docs")


# -- what readers see


def test_an_output_without_rows_shows_its_schema(sink: Sink) -> None:
    """Readers find the columns, and the provenance, before the first row."""
    sink.register("job", SCHEMA, on_existing="refuse")
    found = read(sink.output)
    assert (found.num_rows, found.schema.names) == (0, SCHEMA.names)
    assert found.schema.metadata[RECIPES.encode()] == recipes()[RECIPES].encode()
    assert found.schema.metadata[b"embedding_functions"] == b"[]"


def test_staged_rows_are_invisible_until_folded(sink: Sink) -> None:
    """Rows come into view with the fold and not before, each with its values."""
    sink.register("job", SCHEMA, on_existing="refuse")
    receipt = staged(sink, 0, ["a", "b"], value=0.25)
    assert ids_in(sink) == []
    assert sink.fold("job", [receipt]).shards == 1
    found = read(sink.output).sort_by("id")
    assert found["id"].to_pylist() == ["a", "b"]
    assert found["vector"].to_pylist() == [[0.25] * WIDTH] * 2
    assert sink.folded("job") == {(0, 0)}


def test_folding_again_changes_nothing(sink: Sink) -> None:
    """A fold is idempotent, in the same process and in another."""
    sink.register("job", SCHEMA, on_existing="refuse")
    receipts = [staged(sink, shard, [f"{shard}-{one}" for one in range(3)]) for shard in range(3)]
    assert sink.fold("job", receipts[:2]).shards == 2
    other = open_sink(sink.output)
    other.register("job", SCHEMA, on_existing="refuse")
    assert other.fold("job", receipts).shards == 1
    assert sink.fold("job", receipts).shards == 0
    assert len(ids_in(sink)) == len(set(ids_in(sink))) == 9


def test_a_shard_without_rows_is_folded_too(sink: Sink) -> None:
    """A shard of rejects only has nothing to show, and counts as in view."""
    sink.register("job", SCHEMA, on_existing="refuse")
    sink.fold("job", [staged(sink, 0, [])])
    assert (ids_in(sink), sink.folded("job")) == ([], {(0, 0)})


def test_failed_receipts_are_not_folded(sink: Sink) -> None:
    """Only finished shards come into view."""
    sink.register("job", SCHEMA, on_existing="refuse")
    sink.fold("job", [Receipt(job="job", shard=0, generation=0, attempt="a", status="failed")])
    assert sink.folded("job") == set()


def test_discarded_files_are_gone(sink: Sink) -> None:
    """An attempt that lost leaves nothing behind; folding such files is said to be void, and stays void."""
    sink.register("job", SCHEMA, on_existing="refuse")
    receipt = staged(sink, 3, ["a"])
    sink.discard(receipt.files)
    sink.discard(receipt.files)
    assert sink.fold("job", [receipt]).void == ((3, 0),)
    assert open_sink(sink.output).void("job") == {(3, 0)}
    assert sink.fold("job", [receipt]).void == ((3, 0),)
    assert (ids_in(sink), sink.folded("job")) == ([], set())


def test_a_part_that_a_user_removed_does_not_come_back(tmp_path: Path) -> None:
    """Once in view is once for all: what was deleted after is not folded a second time."""
    sink = open_sink(f"parquet://{tmp_path}/docs")
    sink.register("job", SCHEMA, on_existing="refuse")
    receipt = staged(sink, 0, ["a"])
    sink.fold("job", [receipt])
    os.unlink(tmp_path / "docs" / "part-job-0.0.parquet")
    other = open_sink(sink.output)
    other.register("job", SCHEMA, on_existing="refuse")
    other.fold("job", [receipt])
    assert ids_in(sink) == []
    close(sink)
    assert "1 parts of job job are gone" in sink.changed("job")


def test_plain_tools_read_the_output(sink: Sink) -> None:
    """lancedb, DuckDB, Polars and pyarrow read it as it is, also while a job runs and has staged files."""
    sink.register("job", SCHEMA, on_existing="refuse")
    sink.fold("job", [staged(sink, 0, ["a", "b"])])
    staged(sink, 1, ["c"])
    place = sink.output.data
    if sink.output.kind == "lancedb":
        found = lancedb.connect(os.path.dirname(place)).open_table("docs")
        assert found.search([1.0] * WIDTH).limit(5).to_arrow().num_rows == 2
    else:
        if "://" in place:  # DuckDB's own client of S3 is an extension to be downloaded
            duckdb.register_filesystem(fsspec.filesystem("s3", use_listings_cache=False))
        assert duckdb.sql(f"select count(*) from '{place}/*.parquet'").fetchall() == [(2,)]
        assert polars.scan_parquet(f"{place}/").collect().height == 2
        assert pyarrow.dataset.dataset(place).count_rows() == 2


def test_parquet_vectors_are_stored_plain(tmp_path: Path) -> None:
    """Float vectors are neither compressed nor nullable inside; text is compressed; row groups stay small."""
    sink = open_sink(f"parquet://{tmp_path}/docs")
    sink.register("job", SCHEMA, on_existing="refuse")
    sink.fold("job", [staged(sink, 0, [str(one) for one in range(25_000)])])
    footer = pq.read_metadata(tmp_path / "docs" / "part-job-0.0.parquet")
    assert [footer.row_group(one).num_rows for one in range(footer.num_row_groups)] == [10_000, 10_000, 5_000]
    codecs = {
        footer.row_group(0).column(one).path_in_schema: footer.row_group(0).column(one).compression for one in range(3)
    }
    assert codecs == {"id": "ZSTD", "vector.list.element": "UNCOMPRESSED", "text": "ZSTD"}
    assert read(sink.output).schema.field("vector").type == VECTOR


@pytest.mark.parametrize("kind", ["parquet", "parquet-store"])
def test_a_strangers_file_does_not_hide_by_which_recipe_rows_were_made(kind: str, tmp_path: Path) -> None:
    """A Parquet file without metadata of ours may come first in the folder: schema and recipes are those of a job's part."""
    place = str(tmp_path) if kind == "parquet" else f"memory://{uuid.uuid4().hex}"
    with open_folder(f"{place}/docs").stream("a.parquet") as file:
        pq.write_table(rows(["own"]).select(["text", "id", "vector"]).replace_schema_metadata(), file)
    sink = open_sink(f"parquet://{place}/docs")
    sink.register("job", SCHEMA, on_existing="append")
    sink.fold("job", [staged(sink, 0, ["a"])])
    reading = open_reading(sink.output.url)
    assert (reading.schema.names, reading.schema.metadata) == (SCHEMA.names, SCHEMA.metadata)
    found = pa.Table.from_batches(reading.to_batches(columns=["id", "vector"])).to_pylist()
    assert {row["id"]: row["vector"] for row in found} == {"own": [1.0] * WIDTH, "a": [1.0] * WIDTH}
    assert sorted(reading.take([0, 1])["id"].to_pylist()) == ["a", "own"]


# -- several jobs, and outputs that do not fit


def test_another_job_is_refused_unless_asked_for(sink: Sink) -> None:
    """Rows of another job are neither mixed in nor lost by default; append adds to them."""
    sink.register("job", SCHEMA, on_existing="refuse")
    sink.fold("job", [staged(sink, 0, ["a"])])
    second = open_sink(sink.output)
    for act in (second.check, second.register):
        with pytest.raises(OutputError, match="--on-existing append"):
            act("second", SCHEMA, on_existing="refuse")
    second.register("second", SCHEMA, on_existing="append")
    second.fold("second", [staged(second, 0, ["b"], job="second")])
    assert ids_in(sink) == ["a", "b"]
    assert sink.folded("job") == second.folded("second") == {(0, 0)}


def test_checking_writes_nothing(sink: Sink) -> None:
    """A plan may be looked at without leaving an output behind."""
    sink.check("job", SCHEMA, on_existing="refuse")
    assert not open_folder(sink.output.data).exists("")
    assert not open_folder(sink.output.manifest).exists("")


DIFFERENT = {
    "128": ("vector", SCHEMA.set(1, pa.field("vector", pa.list_(pa.field("item", pa.float32(), nullable=False), 128)))),
    "'extra' is missing there": ("extra", SCHEMA.append(pa.field("extra", pa.int64()))),
    "'text' is only there": ("text", SCHEMA.remove(2)),
    "int64 in this job": ("id", SCHEMA.set(0, pa.field("id", pa.int64(), nullable=False))),
}


@pytest.mark.parametrize("words", DIFFERENT)
def test_another_schema_is_refused_with_the_difference(sink: Sink, words: str) -> None:
    """Columns, types and dimensions must agree; the message names the column and both types."""
    sink.register("job", SCHEMA, on_existing="refuse")
    column, schema = DIFFERENT[words]
    with pytest.raises(OutputError, match=words) as caught:
        open_sink(sink.output).register("second", schema, on_existing="append")
    assert repr(column) in str(caught.value)


def test_another_recipe_for_a_column_is_refused_with_both_hashes(sink: Sink) -> None:
    """Vectors of two models do not go into one column."""
    sink.register("job", SCHEMA, on_existing="refuse")
    other = SCHEMA.with_metadata(recipes("bbbb"))
    with pytest.raises(OutputError, match=r"'vector'.*aaaa.*bbbb"):
        open_sink(sink.output).register("second", other, on_existing="append")


def test_registering_again_is_no_other_job(sink: Sink) -> None:
    """A job that resumes finds itself, whatever it says of existing outputs."""
    for _ in range(3):
        open_sink(sink.output).register("job", SCHEMA, on_existing="refuse")
    sink.register("job", SCHEMA, on_existing="refuse")
    sink.fold("job", [staged(sink, 0, ["a"])])
    sink.register("job", SCHEMA, on_existing="refuse")
    assert ids_in(sink) == ["a"]


def test_parquet_refuses_to_replace_and_to_mix_with_strangers(tmp_path: Path) -> None:
    """Replacing needs a table; a folder with other things in it would break its readers."""
    sink = open_sink(f"parquet://{tmp_path}/docs")
    with pytest.raises(OutputError, match="LanceDB"):
        sink.register("job", SCHEMA, on_existing="replace")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "notes.txt").write_text("mine")
    for policy in ("refuse", "append"):
        with pytest.raises(OutputError, match=r"notes\.txt"):
            sink.register("job", SCHEMA, on_existing=policy)


def test_a_file_that_is_no_parquet_is_an_output_error(tmp_path: Path) -> None:
    """A broken part of somebody's is named."""
    sink = open_sink(f"parquet://{tmp_path}/docs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"x\.parquet cannot be read"):
        sink.register("job", SCHEMA, on_existing="append")


def test_appending_to_a_table_of_ones_own_keeps_its_metadata(table: Sink) -> None:
    """A table that plain lancedb made takes a job under append; what its owner wrote into the metadata stays."""
    place = table.output.data
    lancedb.connect(os.path.dirname(place)).create_table(
        "docs", data=rows(["own"], schema=SCHEMA.with_metadata({"owner": "me"}))
    )
    with pytest.raises(OutputError, match="1 rows"):
        table.register("job", SCHEMA, on_existing="refuse")
    table.register("job", SCHEMA, on_existing="append")
    table.fold("job", [staged(table, 0, ["a"])])
    metadata = lance.dataset(place).schema.metadata
    assert metadata[b"owner"] == b"me"
    assert json.loads(metadata[RECIPES.encode()])["vector"]["hash"] == "aaaa"
    assert ids_in(table) == ["a", "own"]


# -- replacing rows


def test_replacing_is_one_step_that_takes_rejected_rows_and_old_chunks_along(table: Sink) -> None:
    """All rows of the input's ids go, new ones come, in one version; strangers' rows stay, as do indexes."""
    table.register("job", SCHEMA, on_existing="refuse")
    table.fold(
        "job",
        [staged(table, 0, [f"x{one}" for one in range(6)]), staged(table, 1, ["it's", 'q"', "back\\slash", "ü\n"])],
    )
    close(table)
    dataset = lance.dataset(table.output.data)
    dataset.create_scalar_index("id", "BTREE")
    second = open_sink(table.output)
    second.register("second", SCHEMA, on_existing="replace")
    awkward = ["it's", 'q"', "back\\slash", "ü\n"]
    receipts = [
        staged(second, 0, ["x1", "x2"], job="second", value=2.0, replaces=pa.array(["x1", "x2", "x3"])),
        staged(second, 1, awkward, job="second", value=3.0, replaces=pa.array(awkward)),
    ]
    before = lance.dataset(table.output.data).version
    second.fold("second", receipts)
    after = lance.dataset(table.output.data)
    assert after.version == before + 1
    values = {row["id"]: row["vector"][0] for row in after.to_table().to_pylist()}
    assert values == {"x0": 1, "x4": 1, "x5": 1, "x1": 2, "x2": 2, **dict.fromkeys(awkward, 3)}
    assert after.count_rows("id = 'x3'") == 0
    assert [row["id"] for row in after.to_table(filter="id = 'it''s'").to_pylist()] == ["it's"]
    after.validate()
    optimize(str(table.output))
    assert len(ids_in(table)) == len(set(ids_in(table))) == 9


def test_replacing_by_the_documents_id_takes_all_its_chunks(table: Sink) -> None:
    """With chunks the rows to go are named by `doc_id`, here held in the text column's place."""
    table.register("job", SCHEMA, on_existing="refuse")
    table.fold("job", [staged(table, 0, ["a", "b"])])
    second = open_sink(table.output)
    second.register("second", SCHEMA, on_existing="replace", key="text")
    second.fold("second", [staged(second, 0, ["a2"], job="second", replaces=pa.array(["a"]))])
    assert ids_in(second) == ["a2", "b"]


def test_replacing_twice_hits_rows_already_partly_deleted(table: Sink) -> None:
    """Deletions add up over folds, down to a fragment that loses its last row, with integers as keys, too."""
    schema = SCHEMA.set(0, pa.field("id", pa.int64(), nullable=False))

    def numbered(sink: Sink, job: str, shard: int, ids: list[int], value: float) -> Receipt:
        data = rows([str(one) for one in ids], value).set_column(0, schema.field("id"), pa.array(ids, pa.int64()))
        files = sink.stage(job, shard, 0, "a", data.cast(schema), replaces=pa.array(ids))
        return Receipt(job=job, shard=shard, generation=0, attempt="a", files=files)

    for round, shards in enumerate([[[0, 1, 2, 3], [4, 5]], [[1, 2]], [[0, 3, 4], [5]], [[0, 1, 2, 3, 4, 5]]]):
        sink = open_sink(table.output)
        sink.register(f"job{round}", schema, on_existing="replace")
        sink.fold(
            f"job{round}", [numbered(sink, f"job{round}", number, ids, round) for number, ids in enumerate(shards)]
        )
        close(sink, f"job{round}")
    found = {row["id"]: row["vector"][0] for row in read(table.output).to_pylist()}
    assert found == dict.fromkeys(range(6), 3.0)


ODD_IDS = {
    "integers": [-(2**63), 1 - 2**63, -7, 0, 2**53 + 1, 2**63 - 1],
    "strings": [
        *("it's", "''", "' OR true OR '", 'q"', "back\\slash", "\\'", "a\nb", "\r\n", "\t", "nul\0", "\0", "`t`"),
        *("", " ", " a", "a ", "%", "_", "--", "/*", "${x}", "ü", "u\u0308", "☃𝄞", "\u202e", "\ufeff", "long" * 25_000),
    ],
}


@pytest.mark.parametrize("indexed", [False, True], ids=["scanned", "indexed"])
@pytest.mark.parametrize("kind", ODD_IDS)
def test_rows_are_replaced_whatever_their_id_is(table: Sink, kind: str, indexed: bool) -> None:
    """No value that an id can have is too large, too long or too strange to name the row that goes, and that row alone."""
    odd, type_ = ODD_IDS[kind], pa.int64() if kind == "integers" else pa.string()
    near: list[Any] = [4, -(2**53)] if kind == "integers" else ["it", "'", "nul", "back", "OR true", "u", "long"]
    schema = SCHEMA.set(0, pa.field("id", type_, nullable=False))

    def valued(ids: list[Any], value: float) -> pa.Table:
        return rows(["x"] * len(ids), value).set_column(0, schema.field("id"), pa.array(ids, type_)).cast(schema)

    lancedb.connect(os.path.dirname(table.output.data)).create_table("docs", data=valued([*odd, *near], 1.0))
    if indexed:
        lance.dataset(table.output.data).create_scalar_index("id", "BTREE")
    table.register("job", schema, on_existing="replace")
    files = table.stage("job", 0, 0, "a", valued(odd, 2.0), replaces=pa.array(odd, type_))
    table.fold("job", [Receipt(job="job", shard=0, generation=0, attempt="a", files=files)])
    found = sorted((row["id"], row["vector"][0]) for row in read(table.output).to_pylist())
    assert found == sorted([*((id, 2.0) for id in odd), *((id, 1.0) for id in near)])


def test_one_replacing_job_at_a_time(table: Sink) -> None:
    """Two open jobs that replace rows of one table could undo each other; the second is refused by name of the first."""
    table.register("job", SCHEMA, on_existing="replace")
    with pytest.raises(OutputError, match="job job is still replacing"):
        open_sink(table.output).register("second", SCHEMA, on_existing="replace")
    close(table)
    open_sink(table.output).register("second", SCHEMA, on_existing="replace")


# -- tables that change under a job


def _drop(place: str) -> None:
    shutil.rmtree(place)


def _remake(place: str) -> None:
    lancedb.connect(os.path.dirname(place)).create_table("docs", data=rows(["new"]), mode="overwrite")


def _restore(place: str) -> None:
    dataset = lance.dataset(place, version=1)
    dataset.restore()


def _drop_column(place: str) -> None:
    lance.dataset(place).drop_columns(["text"])


def _force_column(place: str) -> None:
    lance.dataset(place).add_columns({"forced": "cast(1 as int)"})


@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (_drop, "dropped"),
        (_remake, "made anew"),
        (_restore, "restored"),
        (_drop_column, "'text'"),
        (_force_column, "'forced'"),
    ],
)
def test_a_table_that_changed_under_a_job_is_said(table: Sink, disturb: Any, words: str) -> None:
    """Nothing is guessed: neither fold nor a later start writes to a table that is not the one the job entered."""
    lancedb.connect(os.path.dirname(table.output.data)).create_table("docs", schema=SCHEMA)
    table.register("job", SCHEMA, on_existing="append")
    receipt = staged(table, 0, ["a"])
    disturb(table.output.data)
    with pytest.raises(TableChanged, match=words):
        table.fold("job", [receipt])
    with pytest.raises(TableChanged, match=words):
        open_sink(table.output).register("job", SCHEMA, on_existing="append")


def test_a_table_restored_in_mid_job_is_said_once_and_then_completed(table: Sink) -> None:
    """The ledger goes back with the rows, so a second run brings back exactly the shards that went."""
    table.register("job", SCHEMA, on_existing="refuse")
    receipts = [staged(table, shard, [str(shard)]) for shard in range(3)]
    table.fold("job", receipts[:1])
    version = lance.dataset(table.output.data).version
    table.fold("job", receipts[:2])
    table.fold("job", receipts)
    lance.dataset(table.output.data, version=version).restore()
    with pytest.raises(TableChanged, match="restored to an older version"):
        table.fold("job", receipts)
    again = open_sink(table.output)
    again.register("job", SCHEMA, on_existing="refuse")
    again.fold("job", receipts)
    assert ids_in(again) == ["0", "1", "2"]


def test_a_column_dropped_before_a_job_does_no_harm(table: Sink) -> None:
    """Field ids are kept through our commits, so a table with a history of columns takes jobs as any other."""
    wide = rows(["own"]).append_column("gone", pa.array([1])).append_column("later", pa.array([2]))
    place = table.output.data
    lancedb.connect(os.path.dirname(place)).create_table("docs", data=wide)
    lance.dataset(place).drop_columns(["gone"])
    schema = SCHEMA.append(pa.field("later", pa.int64()))
    table.register("job", schema, on_existing="append")
    files = table.stage("job", 0, 0, "a", rows(["a"]).append_column("later", pa.array([3])))
    table.fold("job", [Receipt(job="job", shard=0, generation=0, attempt="a", files=files)])
    assert {row["id"]: row["later"] for row in read(table.output).to_pylist()} == {"own": 2, "a": 3}


def test_a_nullable_column_added_in_mid_job_is_null_in_new_rows(table: Sink) -> None:
    """Others may widen the table while a job runs."""
    table.register("job", SCHEMA, on_existing="refuse")
    receipts = [staged(table, 0, ["a"])]
    table.fold("job", receipts)
    late = staged(table, 1, ["b"])
    lance.dataset(table.output.data).add_columns(pa.field("note", pa.string()))
    table.fold("job", [*receipts, late, staged(table, 2, ["c"])])
    assert sorted((row["id"], row["note"]) for row in read(table.output).to_pylist()) == [
        ("a", None),
        ("b", None),
        ("c", None),
    ]


@pytest.mark.parametrize(("disturb", "words"), [(_drop, "was dropped"), (_remake, "made anew"), (_restore, "restored")])
def test_a_finished_jobs_table_is_looked_at(table: Sink, disturb: Any, words: str) -> None:
    """`nothing to do` is only true while the table is the one that the job left."""
    table.register("job", SCHEMA, on_existing="refuse")
    table.fold("job", [staged(table, 0, ["a"])])
    close(table)
    assert table.changed("job") == ""
    lance.write_dataset(rows(["more"]), table.output.data, mode="append")
    assert table.changed("job") == ""
    disturb(table.output.data)
    assert words in table.changed("job")


def test_the_ledger_stays_small(table: Sink) -> None:
    """Closed jobs leave the ledger, and open ones are kept as ranges."""
    table.register("job", SCHEMA, on_existing="refuse")
    for shard in range(20):
        table.fold("job", [staged(table, shard, [str(shard)])])
    stored = lance.dataset(table.output.data).schema.metadata[b"lading.jobs"]
    assert b"0-19" in stored
    assert len(stored) < 100
    close(table)
    assert json.loads(lance.dataset(table.output.data).schema.metadata[b"lading.jobs"])["jobs"] == {}


# -- full disks


@pytest.fixture
def small_disk(disk: Callable[[str, str], Path]) -> Path:
    return disk("small", "1m")


@pytest.mark.parametrize("kind", ["lancedb", "parquet"])
def test_a_full_disk_stops_the_job_and_freeing_space_resumes_it(kind: str, small_disk: Path) -> None:
    """No space while staging or folding is StopJob with the remedy; what was published is folded once there is space."""
    sink = open_sink(f"{kind}://{small_disk}/db/docs")
    sink.register("job", SCHEMA, on_existing="refuse")
    receipt = staged(sink, 0, ["a"])
    with pytest.raises(StopJob, match="free space and run the same command again"):
        staged(sink, 1, [uuid.uuid4().hex for _ in range(100_000)])
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 512)
    with pytest.raises(StopJob, match="free space and run the same command again"):
        sink.fold("job", [receipt])
    filler.unlink()
    again = open_sink(sink.output)
    again.register("job", SCHEMA, on_existing="refuse")
    again.fold("job", [receipt])
    assert ids_in(again) == ["a"]


# -- names


def test_urls_name_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and manifest lie side by side; local paths become absolute; a store's URL stays one."""
    monkeypatch.chdir(tmp_path)
    table = output_paths("lancedb://./db/docs")
    assert (table.data, table.manifest) == (f"{tmp_path}/db/docs.lance", f"{tmp_path}/db/docs.lading")
    assert str(table) == f"{tmp_path}/db/docs"
    assert output_paths("lancedb://./db/docs.lance") == table
    folder = output_paths("parquet://s3://bucket/out/")
    assert (folder.data, folder.manifest) == ("s3://bucket/out", "s3://bucket/out.lading")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("lance://x/y", "did you mean 'lancedb'"),
        ("./db", "write lancedb://"),
        ("parquet://", "names no place"),
        ("parquet://s3://bucket", "whole bucket"),
    ],
)
def test_a_url_of_no_sink_is_refused_with_the_right_form(url: str, words: str) -> None:
    """What to write instead is in the message."""
    with pytest.raises(OutputError, match=words):
        output_paths(url)


def test_an_output_is_found_by_bare_path(sink: Sink, tmp_path: Path) -> None:
    """`lading status ./db/docs` needs no scheme; nothing there, or two things there, is said."""
    sink.register("job", SCHEMA, on_existing="refuse")
    bare = str(sink.output)
    assert find_output(bare) == find_output(sink.output.url) == sink.output
    if sink.output.kind == "lancedb":
        assert find_output(bare + ".lance") == sink.output
        open_folder(bare).overwrite("part.parquet", b"somebody's")
        with pytest.raises(OutputError, match="both"):
            find_output(bare)
    with pytest.raises(OutputError, match="no output at"):
        find_output(str(tmp_path / "nowhere"))


# -- optimize


def test_optimize_compacts_indexes_and_keeps_an_open_jobs_files(table: Sink) -> None:
    """Text, id and (from some thousand rows) vectors are indexed, fragments merged; a running job's staged rows survive."""
    table.output.job("job").put("plan.json", b"{}")  # what a job writes first of all
    table.register("job", SCHEMA, on_existing="refuse")
    for shard in range(4):
        data = rows([f"{shard}-{one}" for one in range(2600)])
        values = np.random.default_rng(shard).standard_normal(2600 * WIDTH, dtype=np.float32)
        data = data.set_column(1, SCHEMA.field(1), pa.FixedSizeListArray.from_arrays(pa.array(values), type=VECTOR))
        files = table.stage("job", shard, 0, "a", data)
        table.fold("job", [Receipt(job="job", shard=shard, generation=0, attempt="a", files=files)])
    late = staged(table, 4, ["late"])
    done = optimize(str(table.output))
    assert (done.fragments_before, done.fragments_after) == (4, 1)
    assert done.indexes == ["id (BTREE)", "vector (IVF_FLAT)", "text (INVERTED)"]
    assert 0.9 <= done.recall["vector"] <= 1.0
    assert any("job job is not finished" in line for line in done.lines())
    table.fold("job", [late])
    assert (
        lancedb.connect(os.path.dirname(table.output.data))
        .open_table("docs")
        .search("late", query_type="fts")
        .to_arrow()
        .num_rows
        == 1
    )
    optimize(str(table.output))
    assert len(ids_in(table)) == 4 * 2600 + 1


def test_optimize_says_what_cannot_be_indexed(table: Sink) -> None:
    """int8 vectors are stored, not searched, and small tables need no index: both are said."""
    small = SCHEMA.append(pa.field("packed", pa.list_(pa.field("item", pa.int8(), nullable=False), WIDTH)))
    table.register("job", small, on_existing="refuse")
    data = rows([str(one) for one in range(10_000)])
    packed = pa.FixedSizeListArray.from_arrays(
        pa.array(np.zeros(10_000 * WIDTH, np.int8)), type=small.field("packed").type
    )
    files = table.stage("job", 0, 0, "a", data.append_column(small.field("packed"), packed))
    assert any("is exact" in note for note in optimize(str(table.output)).notes)
    table.fold("job", [Receipt(job="job", shard=0, generation=0, attempt="a", files=files)])
    assert any("int8" in note for note in optimize(str(table.output)).notes)
