"""The registry: what was submitted is found by its id, open until it is closed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lading.config.errors import LadingError, UsageError
from lading.pipelines.registry import Entry, Registry


def entry(job: str, created: float = 1.0, priority: int = 0) -> Entry:
    return Entry(job=job, output="parquet:///out", pool="cpu", recipe="r", priority=priority, shards=1, created=created)


@pytest.fixture(params=["local", "s3"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    place = request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path)
    return Registry(f"{place}/jobs")


def test_a_job_is_found_by_its_id(registry: Registry):
    """What was added is found as it was, by any process."""
    registry.add(entry("abc"))
    assert Registry(registry.root).find("abc") == entry("abc")
    assert registry.find("abc").place.url == "parquet:///out"
    assert registry.is_open("abc")


def test_closing_moves_the_entry(registry: Registry):
    """A closed job is still found, but open no more; closing it again, or a stranger, changes nothing."""
    for job, created in (("b", 2.0), ("a", 1.0)):
        registry.add(entry(job, created))
    registry.close("a")
    registry.close("a")
    registry.close("stranger")
    assert registry.find("a") == entry("a", 1.0)
    assert [one.job for one in registry.list_open()] == ["b"]
    assert [one.job for one in registry.list_closed()] == ["a"]
    assert not registry.is_open("a")


def test_adding_again_opens_again(registry: Registry):
    """A job that is submitted again is open, with the pool and priority that were named last."""
    registry.add(entry("a"))
    registry.close("a")
    registry.add(entry("a", priority=3))
    assert registry.list_open() == [entry("a", priority=3)]
    assert registry.list_closed() == []


def test_known_entries_are_not_read_again(registry: Registry):
    """Listing asks for names, and reads what is new."""
    registry.add(entry("a"))
    known = {"a": entry("a", priority=9)}
    assert registry.list_open(known) == [entry("a", priority=9)]


def test_an_unknown_job_is_refused_with_the_nearest(registry: Registry):
    """The message names the root, where it comes from, and the nearest id or the jobs there are."""
    with pytest.raises(UsageError, match=r"no job abd is registered in .*jobs \(LADING_JOBS\); its jobs: none"):
        registry.find("abd")
    registry.add(entry("abcdef123456"))
    with pytest.raises(UsageError, match="did you mean 'abcdef123456'"):
        registry.find("abcdef12345")


@pytest.mark.parametrize("name", ["../closed/a", "./a", "", "a/b", "s3://a"])
def test_a_path_is_no_job(tmp_path: Path, name: str):
    """What is no id is never looked up as a file."""
    registry = Registry(str(tmp_path))
    registry.add(entry("a"))
    registry.close("a")
    assert registry.get(name) is None


def test_a_damaged_entry_is_named(tmp_path: Path):
    """An entry that cannot be read says which file it is, one of another version both versions; others are listed without it."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open/a.json").write_text("{")
    with pytest.raises(LadingError, match=r"open/a\.json is no job's entry"):
        Registry(str(tmp_path)).find("a")
    assert Registry(str(tmp_path)).list_open() == []
    (tmp_path / "open/a.json").write_text(json.dumps({"version": 2}))
    with pytest.raises(LadingError, match="has format version 2, this release reads version 1"):
        Registry(str(tmp_path)).find("a")
