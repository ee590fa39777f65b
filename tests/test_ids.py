"""Row ids made by hash, and the scan that finds ids which come twice."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.pipelines import ids
from lading.pipelines.records import Shard

STRINGS = st.text(max_size=8)
NUMBERS = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None)
@given(st.lists(STRINGS, max_size=40), st.integers(0, 10), st.integers(0, 10))
def test_a_hash_depends_on_the_string_alone(strings, before, after):
    """A string's hash is the same wherever its array begins in Arrow's buffers, and other strings have others."""
    whole = pa.array(strings, pa.string())
    part = whole.slice(before, max(len(strings) - before - after, 0))
    together = ids.id_hashes(whole)
    assert np.array_equal(ids.id_hashes(part), together[before : before + len(part)])
    alone = [ids.id_hashes(pa.array([string]))[0] for string in strings]
    assert together.tolist() == alone
    assert len(set(alone)) == len(set(strings))


def test_similar_ids_do_not_collide():
    """Counters, swapped letters, zeros and repeated bytes give no two equal hashes among 400,000 ids."""
    made = [f"doc-{n:08d}" for n in range(300_000)] + [f"{n:x}" for n in range(50_000)] + ["\0" * n for n in range(200)]
    made += [f"{a}{b}{'x' * 64}{b}{a}" for a in "abcdefghij" for b in range(5000)]
    assert len(np.unique(ids.id_hashes(pa.array(made)))) == len(set(made))


def expected(shards):
    """The plain way: remember every id."""
    seen, losers = set(), {}
    for number, rows in enumerate(shards):
        for ordinal, id in enumerate(rows):
            if id in seen:
                losers.setdefault(number, []).append(ordinal)
            seen.add(id)
    return losers


def scan(shards, type, batch_rows=3):
    def read(shard):
        rows = shards[shard.number]
        for start in range(0, len(rows), batch_rows):
            some = rows[start : start + batch_rows]
            yield pa.array(some, type), np.arange(start, start + len(some))

    found = ids.find_duplicates([Shard(number, 0, 0, 0) for number in range(len(shards))], read)
    return {number: ordinals.tolist() for number, ordinals in found.items()}


@settings(deadline=None)
@given(st.lists(st.lists(st.one_of(STRINGS, st.sampled_from("abc")), max_size=12), max_size=6))
def test_duplicate_strings_are_those_a_dict_finds(shards):
    """In one shard and across shards, every later row of an id is found and the first one is not."""
    assert scan(shards, pa.string()) == expected(shards)


@settings(deadline=None)
@given(st.lists(st.lists(st.one_of(NUMBERS, st.integers(-2, 2)), max_size=12), max_size=6))
def test_duplicate_numbers_are_those_a_dict_finds(shards):
    """The same for int64 ids, the smallest and the largest among them."""
    assert scan(shards, pa.int64()) == expected(shards)


def test_equal_hashes_of_other_ids_are_not_duplicates(monkeypatch):
    """Hashes only say where to look: ids are compared exactly."""
    monkeypatch.setattr(ids, "id_hashes", lambda array: np.zeros(len(array), np.uint64))
    shards = [["a", "b"], ["c", "a"], ["d"]]
    assert scan(shards, pa.string()) == {1: [1]}


def test_only_suspect_shards_are_read_again():
    """The second reading is of shards that hold an id whose hash comes twice, not of the whole source."""
    shards = [["a", "b"], ["c", "d"], ["e", "a"]]
    reads = []

    def read(shard):
        reads.append(shard.number)
        yield pa.array(shards[shard.number]), np.arange(2)

    ids.find_duplicates([Shard(number, 0, 0, 0) for number in range(3)], read)
    assert reads == [0, 1, 2, 0, 2]


def made(path="/a", position=0, *texts):
    return ids.row_ids(path, np.array([position]), [pa.array([text], pa.string()) for text in texts])[0].as_py()


@pytest.mark.parametrize(
    "other",
    [
        ("/b", 0, "ab", "c"),
        ("/a", 1, "ab", "c"),
        ("/a", 0, "a", "bc"),
        ("/a", 0, "ab", None),
        ("/a", 0, "ab", ""),
        ("/a", 0, "abc"),
    ],
)
def test_path_position_and_every_text_make_the_id(other):
    """An id changes with the path, the position, each text, and where one text ends and the next begins."""
    assert made("/a", 0, "ab", "c") != made(*other)


def test_made_ids_never_change():
    """The bytes that are hashed are a stored format: tables written earlier hold these ids."""
    assert made("/corpus/a.parquet", 7, "text", None) == "7c4c3fa8a676e8b09cc4c6c5569493a7"
    together = ids.row_ids(["/x", "/y"], np.array([0, 0]), [pa.array(["same", "same"])]).to_pylist()
    assert together == [made("/x", 0, "same"), made("/y", 0, "same")]
