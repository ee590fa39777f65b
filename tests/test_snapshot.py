"""Finding what a source names: endings, globs, folders, URLs, and what is refused."""

import os

import lance
import pyarrow as pa
import pytest

from lading.config.errors import SourceChanged, SourceError
from lading.pipelines import snapshot
from lading.pipelines.spec import SourceSpec


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A folder with nested files of several kinds, made the working directory."""
    for name in (
        "b.jsonl",
        "a.jsonl",
        "deep/c.ndjson",
        "notes/x.md",
        "notes/in/y.TXT",
        "notes/pic.png",
        ".hidden/z.md",
        "notes/_skip.md",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*paths, **fields):
    format, ones = snapshot.find(SourceSpec(paths=paths, **fields))
    return format, [os.path.relpath(one.path) for one in ones]


def test_files_globs_and_folders_are_sorted_and_once(corpus):
    """Whatever names a file, and however often, it comes once, under its absolute path, in the order of paths."""
    assert found("b.jsonl", "*.jsonl", "deep", str(corpus / "a.jsonl"), "**/*.ndjson") == (
        "jsonl",
        ["a.jsonl", "b.jsonl", "deep/c.ndjson"],
    )
    _, ones = snapshot.find(SourceSpec(paths=("./deep/../a.jsonl",)))
    state = os.stat("a.jsonl")
    assert [(one.path, one.size, one.stamp) for one in ones] == [
        (str(corpus / "a.jsonl"), state.st_size, str(state.st_mtime_ns))
    ]


def test_a_folder_gives_files_a_format_knows(corpus):
    """Below a folder, other endings and hidden files are left out; text files are named relative to it."""
    assert found("notes") == ("text", ["notes/in/y.TXT", "notes/x.md"])
    assert [one.name for one in snapshot.find(SourceSpec(paths=("notes",)))[1]] == ["in/y.TXT", "x.md"]
    assert [one.name for one in snapshot.find(SourceSpec(paths=("notes/**/*.TXT",)))[1]] == ["in/y.TXT"]
    assert [one.name for one in snapshot.find(SourceSpec(paths=("notes/x.md",)))[1]] == ["x.md"]


def test_mixed_formats_are_refused_unless_one_is_named(corpus):
    """A source has one format; a named one chooses among a folder's files, and forces explicit ones."""
    with pytest.raises(SourceError, match=r"mixes formats: jsonl \(.*a\.jsonl\), text \(.*y\.TXT\)"):
        found(".")
    assert found(".", format="text") == ("text", ["notes/in/y.TXT", "notes/x.md"])
    (corpus / "log").write_text("{}\n")
    assert found("log", format="jsonl") == ("jsonl", ["log"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a.jsnl", r"nothing matches a\.jsnl; in .* there is .*a\.jsonl"),
        ("*.parquet", r"nothing matches \*\.parquet"),
        ("dep/c.ndjson", r"nothing matches dep/c\.ndjson; in .* there is deep"),
        ("notes/pic.png", r"ending '\.png' names no format"),
        ("lance://nowhere", r"nowhere cannot be opened as a Lance table"),
        ("nosuch://x/y.jsonl", r"nosuch://x/y\.jsonl: .*nosuch"),
    ],
)
def test_what_is_not_there_is_refused(corpus, path, message):
    """A path that names nothing usable is refused, with the names that are there."""
    with pytest.raises(SourceError, match=message):
        found(path)


def test_a_folder_without_any_is_refused(corpus):
    """A folder with no file of a known (or the named) format is refused, saying which endings were looked for."""
    with pytest.raises(SourceError, match=r"nothing under notes ends in \.parquet, \.pq$"):
        found("notes", format="parquet")
    (corpus / "empty").mkdir()
    with pytest.raises(SourceError, match=r"nothing under empty ends in \.parquet, .*\.md"):
        found("empty")


@pytest.mark.parametrize("path", ["part.jsonl.gz", "zipped"])
def test_compressed_files_are_refused_not_left_out(corpus, path):
    """A file compressed as a whole cannot be cut; to leave it out of a folder in silence would lose its rows."""
    (corpus / "zipped").mkdir()
    for folder in (corpus, corpus / "zipped"):
        (folder / "part.jsonl.gz").write_bytes(b"")
    with pytest.raises(SourceError, match=r"part\.jsonl\.gz is compressed as a whole"):
        found(path)


def test_an_unknown_format_suggests_the_nearest(corpus):
    """A misspelt format is refused with the right spelling."""
    with pytest.raises(SourceError, match="did you mean 'jsonl'"):
        found("a.jsonl", format="jsnl")


def test_names_with_glob_characters_are_found_as_they_are(corpus):
    """A file whose name holds brackets is itself, not a pattern."""
    (corpus / "a[1].jsonl").write_text("{}\n")
    assert found("a[1].jsonl") == ("jsonl", ["a[1].jsonl"])


def test_lance_tables_are_pinned(corpus):
    """A Lance table is one input at its newest version or the one asked for, however it is named."""
    table = pa.table({"t": ["a"]})
    lance.write_dataset(table, "db/docs.lance")
    lance.write_dataset(table, "db/docs.lance", mode="append")
    for path in ("db/docs.lance", "lance://db/docs.lance", "db", "db/*.lance"):
        format, (one,) = snapshot.find(SourceSpec(paths=(path,)))
        assert (format, one.path, one.size, one.stamp[:2]) == ("lance", str(corpus / "db/docs.lance"), 2, "2-")
    _, (old,) = snapshot.find(SourceSpec(paths=("db/docs.lance",), version=1))
    assert (old.size, old.stamp[:2]) == (1, "1-")
    assert snapshot.table_at(old).count_rows() == 1
    with pytest.raises(SourceError, match="at version 9"):
        found("db/docs.lance", version=9)
    with pytest.raises(SourceError, match="one Lance table only"):
        found("a.jsonl", version=1)


def test_a_file_with_a_name_that_is_not_utf8_is_refused(corpus):
    """A name that no marker could hold is refused, not mangled."""
    with open(os.fsencode(str(corpus)) + b"/notes/\xff.md", "w"):
        pass
    with pytest.raises(SourceError, match="name is not UTF-8"):
        found("notes")


def test_a_link_to_nothing_is_refused(corpus):
    """What a folder lists but cannot be opened is named, not traced back."""
    (corpus / "notes" / "gone.md").symlink_to("nowhere")
    with pytest.raises(SourceError, match=r"gone\.md"):
        found("notes")


def test_a_pipe_is_refused(corpus):
    """What is no file is not waited for."""
    os.mkfifo(corpus / "pipe.jsonl")
    with pytest.raises(SourceError, match=r"pipe\.jsonl is no regular file"):
        found("pipe.jsonl")


def test_verify_tells_change_from_absence(corpus):
    """The same file passes; another size, another time, or no file are said."""
    _, (one,) = snapshot.find(SourceSpec(paths=("a.jsonl",)))
    snapshot.verify(one, "jsonl")
    os.utime("a.jsonl", ns=(1, 1))
    with pytest.raises(SourceChanged, match="changed since"):
        snapshot.verify(one, "jsonl")
    os.remove("a.jsonl")
    with pytest.raises(SourceChanged, match="gone since"):
        snapshot.verify(one, "jsonl")
