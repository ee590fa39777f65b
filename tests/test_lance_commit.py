"""What the exact commit leans on in Lance: which commits exclude each other, and what survives them. Fails loudly if a
release changes the rules."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import lancedb.index
import numpy as np
import pyarrow as pa
import pytest
from lance.fragment import write_fragments

from lading.config.errors import OutputError, StopJob
from lading.pipelines import lance_commit
from lading.pipelines.lance_commit import Change, commit, create_table, open_table

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("vector", pa.list_(pa.float32(), 4))])


def rows(start: int, count: int = 5) -> pa.Table:
    ids = [f"id{number}" for number in range(start, start + count)]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(count * 4, dtype=np.float32)), 4)
    return pa.Table.from_arrays([pa.array(ids), vectors], schema=SCHEMA)


def fragments(uri: str, start: int) -> list:
    return write_fragments(rows(start), lance.dataset(uri), schema=SCHEMA)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    place = str(tmp_path / "docs.lance")
    assert create_table(place, SCHEMA.with_metadata({"made": "by us"}))
    lance.write_dataset(rows(0), place, mode="append")
    return place


def ids_of(uri: str) -> list[str]:
    return sorted(lance.dataset(uri).to_table()["id"].to_pylist())


def disturbing(uri: str, added: list, disturb: Callable[[], object]) -> tuple[list[int], int]:
    """Commit `added` while `disturb` happens after the first look; the versions looked at, and the conflicts."""
    seen: list[int] = []

    def propose(table: lance.LanceDataset | None) -> Change:
        assert table is not None
        seen.append(table.version)
        if len(seen) == 1:
            disturb()
        return Change({"ours": str(table.version)}, added)

    return seen, commit(uri, propose)


def table_of(uri: str):
    return lancedb.connect(str(Path(uri).parent)).open_table("docs")


ROW_CHANGES = {
    "append": lambda uri: lance.write_dataset(rows(100), uri, mode="append"),
    "delete": lambda uri: lance.dataset(uri).delete("id = 'id1'"),
    "upsert": lambda uri: (
        table_of(uri).merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows(3))
    ),
    "optimize": lambda uri: (lance.write_dataset(rows(100), uri, mode="append"), table_of(uri).optimize()),
    "add column": lambda uri: lance.dataset(uri).add_columns(pa.field("note", pa.string())),
    "our own commit": lambda uri: commit(uri, _once(fragments(uri, 200))),
}


def _once(added: list) -> Callable[[lance.LanceDataset | None], Change | None]:
    calls = iter([Change({}, added), None])
    return lambda table: next(calls)


@pytest.mark.parametrize("name", ROW_CHANGES)
def test_every_change_of_rows_or_schema_refuses_a_stale_commit(uri: str, name: str) -> None:
    """A commit on an older version than the newest is refused and proposed anew; nobody's rows are lost or doubled."""
    added = fragments(uri, 50)
    seen, conflicts = disturbing(uri, added, lambda: ROW_CHANGES[name](uri))
    assert (len(seen), conflicts) == (2, 1)
    ids = ids_of(uri)
    assert len(ids) == len(set(ids))
    assert set(ids) >= {f"id{number}" for number in range(50, 55)}
    assert lance.dataset(uri).schema.metadata[b"ours"] == str(seen[-1]).encode()
    expected = {"append": 15, "delete": 9, "upsert": 13, "optimize": 15, "add column": 10, "our own commit": 15}
    assert len(ids) == expected[name]


def test_an_index_made_meanwhile_does_not_refuse_a_commit(uri: str) -> None:
    """Creating an index changes no rows: both go through, and the index finds old rows and new."""
    seen, conflicts = disturbing(uri, fragments(uri, 50), lambda: lance.dataset(uri).create_scalar_index("id", "BTREE"))
    assert (len(seen), conflicts) == (1, 0)
    table = lance.dataset(uri)
    assert [index.name for index in table.describe_indices()] == ["id_idx"]
    assert table.count_rows("id = 'id2'") == table.count_rows("id = 'id52'") == 1


def test_a_foreign_append_that_began_before_our_commit_goes_through(uri: str) -> None:
    """Strangers need not try again because of us: their stale append is rebased over our commit."""
    table = lance.dataset(uri)
    foreign = fragments(uri, 300)
    commit(uri, _once(fragments(uri, 50)))
    lance.LanceDataset.commit(uri, lance.LanceOperation.Append(foreign), read_version=table.version)
    assert len(ids_of(uri)) == len(set(ids_of(uri))) == 15


def test_metadata_survives_everybody(uri: str) -> None:
    """What a commit says stays through appends, indexes, deletes, upserts and optimize, and keys of others stay through ours."""
    disturbing(uri, fragments(uri, 50), lambda: None)
    lance.dataset(uri).create_scalar_index("id", "BTREE")
    for name in ("append", "delete", "upsert", "optimize"):
        ROW_CHANGES[name](uri)
    metadata = lance.dataset(uri).schema.metadata
    assert metadata[b"made"] == b"by us"
    assert b"ours" in metadata


def test_fragment_ids_are_never_used_again(uri: str) -> None:
    """An index that still lists a vanished fragment must not hide the rows of a new one with its number."""
    commit(uri, _once(fragments(uri, 50)))
    lance.dataset(uri).create_scalar_index("id", "BTREE")
    lance.dataset(uri).delete("id IN ('id50','id51','id52','id53','id54')")
    commit(uri, _once(fragments(uri, 60)))
    table = lance.dataset(uri)
    assert table.count_rows("id = 'id62'") == 1
    assert sorted(fragment.fragment_id for fragment in table.get_fragments()) == [0, 2]


def test_lancedb_searches_what_was_committed(uri: str) -> None:
    """A plain LanceDB reader finds the rows, also through an index brought up to date after."""
    commit(uri, _once(fragments(uri, 50)))
    found = table_of(uri)
    found.create_index("id", config=lancedb.index.BTree())
    commit(uri, _once(fragments(uri, 60)))
    found = table_of(uri)
    found.optimize()
    assert found.count_rows() == 15
    assert found.search([16.0, 17.0, 18.0, 19.0]).limit(3).to_arrow().num_rows == 3
    assert found.search().where("id = 'id61'").to_arrow().num_rows == 1


def test_a_late_creator_does_not_empty_the_table(uri: str) -> None:
    """Creation loses to any table there is, however stale the look that said there was none."""
    assert not create_table(uri, SCHEMA)
    assert len(ids_of(uri)) == 5


def test_of_racing_creators_one_wins(tmp_path: Path) -> None:
    """Of four that make the same table at once, one is told so, and the table's metadata are the winner's."""
    for round in range(20):
        uri = str(tmp_path / f"t{round}.lance")
        barrier = threading.Barrier(4)

        def create(number: int, uri: str = uri, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return create_table(uri, SCHEMA.with_metadata({"by": str(number)}))

        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(create, range(4)))
        assert sum(won) == 1
        table = lance.dataset(uri)
        assert (table.version, table.schema.metadata[b"by"]) == (1, str(won.index(True)).encode())


def test_no_table_is_none(tmp_path: Path) -> None:
    """A table that is not there is a value; one that cannot be read is an error."""
    assert open_table(str(tmp_path / "none.lance")) is None
    broken = tmp_path / "broken.lance" / "_versions"
    broken.mkdir(parents=True)
    (broken / f"{2**64 - 2:020d}.manifest").write_bytes(b"")
    with pytest.raises(StopJob, match=r"broken\.lance does not open.*power cut"):
        open_table(str(broken.parent))


def test_nothing_to_do_commits_nothing(uri: str) -> None:
    """A proposal may find that it is not needed any more."""
    version = lance.dataset(uri).version
    assert commit(uri, lambda table: None) == 0
    assert lance.dataset(uri).version == version


def test_a_commit_that_cannot_succeed_is_not_tried_again(uri: str) -> None:
    """Only a table that moved on means a conflict; any other refusal is said at once."""
    calls: list[int] = []

    def propose(table: lance.LanceDataset | None) -> Change:
        calls.append(1)
        gone = fragments(uri, 50)
        return Change({}, [*gone, *gone])  # the same fragment twice

    real = lance_commit._number
    try:
        lance_commit._number = lambda table, added: 0  # as a wrong numbering would: id 0 is taken
        with pytest.raises(StopJob):
            commit(uri, propose)
    finally:
        lance_commit._number = real
    assert len(calls) == 1
    assert len(ids_of(uri)) == 5


def test_another_pair_of_releases_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact commits are only made with the Lance that was seen to keep the rules, the one inside this lancedb."""
    lance_commit.check_versions()
    monkeypatch.setattr("importlib.metadata.version", {"lancedb": "0.40.0", "pylance": "14.0.2"}.__getitem__)
    with pytest.raises(OutputError, match=r"pylance 14\.0\.2.*lancedb 0\.40\.0 with pylance 13\.0\.0"):
        lance_commit.check_versions()
