"""Bad input from the shell: whole jobs end with every row in the output or in the rejects, or are refused before any work."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from lading.cli import main
from lading.pipelines.output import output_paths
from lading.pipelines.reading import open_reading
from lading.pipelines.records import REJECT_CODES
from tests.source_tables import jsonl, write

Encode = Callable[..., "Ended"]


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a command left: its exit code, what it said, and for a job that ran its summary, output and rejects."""

    code: int
    said: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    rejects: list[dict[str, Any]]

    def codes(self) -> dict[Any, str]:
        return {one["id"]: one["code"] for one in self.rejects}


both_sinks = pytest.mark.parametrize("to", ["lancedb", "parquet"], indirect=True)


@pytest.fixture
def to(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{getattr(request, 'param', 'parquet')}://{tmp_path}/out/docs"


@pytest.fixture
def encode(tiny_encoder: Path, to: str, capfd: pytest.CaptureFixture[str]) -> Encode:
    """Runs `lading encode` on sources whose texts are in `body` and whose ids are in `key`, three rows to a shard.

    Of every job that ran: no traceback, the counts balance, and `lading rejects` and the output have as many rows as
    the summary says (the output fewer, where a full disk keeps them from coming into view). Of one that was refused:
    exit code 2, nothing on standard output, nothing written.
    """

    def run(*sources: object, model: Path = tiny_encoder, id: str = "key", text: str = "body", more: Any = ()) -> Ended:
        typed = ["--text", text, "--model", str(model), "--to", to, "--shard-rows", "3", "--device", "cpu", *more]
        code = main(["encode", *map(str, sources), *(["--id", id] if id else []), *typed, "--json"])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert "internal error" not in err
        if code == 2:
            assert out == ""
            assert not os.path.exists(output_paths(to).data)
            assert not os.path.exists(output_paths(to).manifest)
            return Ended(code, err, {}, [], [])
        summary = json.loads(out)
        assert summary["exit_code"] == code
        assert summary["rows_in"] == summary["rows_done"] + summary["rejected"] + summary["failed"]
        reading = open_reading(to)
        rows = pa.Table.from_batches(reading.to_batches(columns=reading.schema.names), reading.schema).to_pylist()
        assert len(rows) == summary["rows_out"] or (
            len(rows) < summary["rows_out"] and "free space" in summary["reason"]
        )
        assert main(["rejects", to, "--json"]) == 0
        listed = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        rejects = [one for one in listed if one["code"] in REJECT_CODES]  # rows, whatever else is told there
        assert collections.Counter(one["code"] for one in rejects) == summary["rejects"]
        assert len(rejects) == summary["rejected"]
        return Ended(code, err, summary, sorted(rows, key=lambda row: row["id"]), rejects)

    return run


def ids(ended: Ended) -> list[Any]:
    return [row["id"] for row in ended.rows]


def table(**bodies: str | None) -> pa.Table:
    return pa.table({"key": list(bodies), "body": pa.array(list(bodies.values()), pa.string())})


GOOD = table(a="a cat", b="a dog", c="a house", d="the river")


# -- the corpus


@both_sinks
@pytest.mark.parametrize("format", ["parquet", "jsonl", "blank jsonl", "csv", "headless csv", "lance"])
def test_an_empty_corpus_is_a_finished_job(tmp_path: Path, encode: Encode, format: str) -> None:
    """A source without a row gives an output without a row, with its columns, and exit code 0."""
    if format == "blank jsonl":
        path = jsonl(tmp_path, b"", b"  ", b"")
    elif format == "headless csv":
        path = str(tmp_path / "in.csv")
        Path(path).touch()
    else:
        path = write(tmp_path, format, GOOD.slice(0, 0))
    ended = encode(path)
    assert (ended.code, ended.summary["state"], ended.summary["rows_in"], ended.rows) == (0, "finished", 0, [])


@pytest.mark.parametrize("name", ["", "none.parquet", "*.parquet"])
def test_a_source_that_is_nothing_is_refused(tmp_path: Path, encode: Encode, name: str) -> None:
    """A folder without sources, a path that is not there and a glob that matches nothing are refused by name."""
    place = tmp_path / "source"
    place.mkdir()
    ended = encode(place / name)
    assert ended.code == 2
    assert str(place / name) in ended.said


# -- rows


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "lance"])
def test_texts_without_content_are_rejects(tmp_path: Path, encode: Encode, format: str) -> None:
    """An empty text, one of white space alone and a null are each a reject with its reason; CSV knows no null."""
    bodies: dict[str, str | None] = {"a": "a cat", "b": "", "c": " \t\n ", "d": None, "e": "\u00a0\u2003", "z": "a dog"}
    ended = encode(write(tmp_path, format, table(**bodies)))
    assert (ended.code, ids(ended)) == (0, ["a", "z"])
    null = "empty-text" if format == "csv" else "null-text"
    assert ended.codes() == {"b": "empty-text", "c": "empty-text", "d": null, "e": "empty-text"}


@pytest.mark.parametrize("long_text", ["truncate", "reject"])
def test_a_line_of_ten_megabytes_is_a_row(tmp_path: Path, encode: Encode, long_text: str) -> None:
    """A huge text is truncated as any long one, or a reject where the job says so; cut off in the middle it is no JSON."""
    line = json.dumps({"key": "b", "body": ("x" * 150 + " ") * 70_000}).encode()
    assert len(line) > 10_000_000
    path = jsonl(tmp_path, {"key": "a", "body": "a cat"}, line, line[: len(line) // 2], {"key": "z", "body": "a dog"})
    ended = encode(path, more=["--long-text", long_text])
    rejected = long_text == "reject"
    assert (ended.code, ids(ended)) == (0, ["a", "z"] if rejected else ["a", "b", "z"])
    assert ended.summary["truncated"] == (0 if rejected else 1)
    assert [one["code"] for one in ended.rejects] == (["too-long"] if rejected else []) + ["invalid-json"]


@both_sinks
def test_lines_that_are_no_rows_are_rejects(tmp_path: Path, encode: Encode) -> None:
    """Broken JSON, bytes that are no UTF-8, values of the wrong type and missing keys: each its reason, by position."""
    lines: list[bytes | dict[str, Any]] = [
        {"key": "a", "body": "a cat"},
        b'{"key": "b", "body": "cut off',
        b'{"key": "c", "body": "caf\xe9"}',
        b"[1, 2]",
        b"\x00\x01\x02",
        {"key": "f", "body": 7},
        {"key": "g", "body": ["a", "list"]},
        {"key": "h"},
        {"key": 9, "body": "an id of another type"},
        {"body": "no id"},
        {"key": None, "body": "null id"},
        {"key": "l", "body": "\ud800"},
        {"key": "z", "body": "the end"},
    ]
    ended = encode(jsonl(tmp_path, *lines))
    assert (ended.code, ids(ended), ended.summary["rows_in"]) == (0, ["a", "z"], len(lines))
    starts = np.cumsum([0, *(len(one if isinstance(one, bytes) else json.dumps(one)) + 1 for one in lines)])
    by_position = {one["position"]: one["code"] for one in ended.rejects}
    wanted = "invalid-json invalid-utf8 invalid-row invalid-json invalid-row invalid-row invalid-row invalid-row"
    wanted += " invalid-row null-id invalid-utf8"
    assert [by_position[int(start)] for start in starts[1:-2]] == wanted.split()


def test_bytes_that_are_no_utf8_are_rejects(tmp_path: Path, encode: Encode) -> None:
    """A Parquet string column that holds other bytes loses the rows that do, and no others."""
    raw = pa.array([b"a cat", b"\xff\xfe", b"a dog", "é".encode("latin-1")], pa.binary())
    sloppy = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"key": list("abcd"), "body": sloppy}), tmp_path / "in.parquet")
    ended = encode(tmp_path / "in.parquet")
    assert (ended.code, ids(ended), ended.codes()) == (0, ["a", "c"], {"b": "invalid-utf8", "d": "invalid-utf8"})


def test_a_text_file_that_is_no_utf8_is_a_reject(tmp_path: Path, encode: Encode) -> None:
    """Of a folder of text files the one in another encoding is listed under its path."""
    for name, content in {"a.md": b"a cat", "b.txt": b"caf\xe9", "c.txt": b"", "d.txt": b"a dog"}.items():
        (tmp_path / name).write_bytes(content)
    ended = encode(tmp_path, id="path", text="text")
    assert (ended.code, ids(ended)) == (0, ["a.md", "d.txt"])
    found = {os.path.basename(one["input"]): one["code"] for one in ended.rejects}
    assert found == {"b.txt": "invalid-utf8", "c.txt": "empty-text"}


@both_sinks
@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "lance"])
def test_an_id_that_comes_twice_is_a_row_once(tmp_path: Path, encode: Encode, format: str) -> None:
    """Of equal ids in one shard, across shards and across files the first is the row, the others are listed."""
    first = pa.table({"key": ["a", "a", "b", "c", "a"], "body": ["first a", "second", "first b", "first c", "third"]})
    second = pa.table({"key": ["b", "d", "d"], "body": ["fourth", "first d", "fifth"]})
    ended = encode(write(tmp_path / "1", format, first), write(tmp_path / "2", format, second))
    assert ended.code == 0
    assert [(row["id"], row["body"]) for row in ended.rows] == [(one, f"first {one}") for one in "abcd"]
    assert sorted(one["id"] for one in ended.rejects) == ["a", "a", "b", "d"]
    assert ended.summary["rejects"] == {"duplicate-id": 4}


# -- files


@pytest.mark.parametrize("wrong", ["text", "id", "keep"])
@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv", "lance"])
def test_a_missing_column_is_refused(tmp_path: Path, encode: Encode, format: str, wrong: str) -> None:
    """A column that the source does not have is refused by name, whatever it was asked for."""
    path = write(tmp_path, format, GOOD)
    ended = encode(path, **{wrong: "bodi"}) if wrong != "keep" else encode(path, more=["--keep", "bodi"])
    assert ended.code == 2
    assert "no column 'bodi'" in ended.said
    assert path in ended.said


def test_a_column_of_the_wrong_type_is_refused(tmp_path: Path, encode: Encode) -> None:
    """Where the format knows its types, a text column that is no text is refused, not rejected row by row."""
    pq.write_table(pa.table({"key": ["a"], "body": [1]}), tmp_path / "in.parquet")
    ended = encode(tmp_path / "in.parquet")
    assert ended.code == 2
    assert "column 'body' is int64; a text column must be string" in ended.said


@pytest.mark.parametrize("keep", [0, 3, 300])
def test_a_truncated_parquet_file_among_good_ones_is_refused(tmp_path: Path, encode: Encode, keep: int) -> None:
    """A file without its footer is named before any work: its rows cannot even be counted."""
    good, bad = write(tmp_path / "1", "parquet", GOOD), write(tmp_path / "2", "parquet", GOOD)
    os.truncate(bad, keep)
    ended = encode(good, bad)
    assert ended.code == 2
    assert f"{bad} is not a whole Parquet file" in ended.said


@both_sinks
@pytest.mark.parametrize("more", [[], ["--no-check-ids"]], ids=["ids checked", "ids not checked"])
def test_a_damaged_parquet_file_among_good_ones_fails_its_shards(
    tmp_path: Path, encode: Encode, more: list[str]
) -> None:
    """A page that is damaged inside loses no row in silence: its shards have failed, and the job says so with 3."""
    pq.write_table(GOOD, tmp_path / "1.parquet")
    damaged = tmp_path / "2.parquet"
    later = table(e="a stone", f="the light", g="green paper", h="some music")
    pq.write_table(later, damaged, write_page_checksum=True, use_dictionary=False, compression="none")
    place = pq.read_metadata(damaged).row_group(0).column(1).data_page_offset
    with open(damaged, "r+b") as file:
        file.seek(place + 40)
        file.write(b"\0\0\0\0\0\0\0\0")
    ended = encode(tmp_path / "*.parquet", more=more)
    assert (ended.code, ended.summary["state"], ids(ended)) == (3, "unfinished", ["a", "b", "c", "d"])
    assert (ended.summary["rows_in"], ended.summary["failed"]) == (8, 4)
    assert "2.parquet" in ended.summary["reason"]
    assert encode(tmp_path / "*.parquet", more=more).summary["failed"] == 4  # tried again, and still said


# -- models


def copy_of(model: Path, place: Path) -> Path:
    shutil.copytree(model, place)
    return place


@both_sinks
def test_a_vector_that_is_no_number_is_a_reject(tmp_path: Path, tiny_encoder: Path, encode: Encode) -> None:
    """A model that gives NaN for one word loses the rows with that word, and no others."""
    broken = copy_of(tiny_encoder, tmp_path / "broken")
    token = Tokenizer.from_file(str(broken / "tokenizer.json")).encode("file", add_special_tokens=False).ids[0]
    weights = load_file(broken / "model.safetensors")
    name = next(key for key in weights if key.endswith("word_embeddings.weight"))
    weights[name][token] = np.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    ended = encode(write(tmp_path, "parquet", table(a="one two", b="the file", c="three", d="file")), model=broken)
    assert (ended.code, ids(ended), ended.codes()) == (0, ["a", "c"], {"b": "not-finite", "d": "not-finite"})


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def setting(name: str, **keys: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **keys}))


UNSAFE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (without("tokenizer.json"), "no tokenizer.json"),
    "no weights": (without("model.safetensors"), "no weights"),
    "no config": (without("config.json"), "no config.json"),
    "bin only": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pytorch_model.bin",
    ),
    "code for the model": (
        setting("config.json", auto_map={"AutoModel": "modeling.Mine"}),
        "config.json: has `auto_map`",
    ),
    "code for the tokenizer": (
        setting("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokens.Mine", None]}),
        "tokenizer_config.json: has `auto_map`",
    ),
    "code for a module": (
        lambda folder: (folder / "modules.json").write_text(
            json.dumps([{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}])
        ),
        "custom_st.Transformer",
    ),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_a_model_that_is_not_whole_or_not_safe_is_refused(
    tmp_path: Path, tiny_encoder: Path, encode: Encode, case: str
) -> None:
    """Without tokenizer or weights, with weights that can run code, or with code of its own: refused, and none of it runs."""
    spoil, said = UNSAFE[case]
    model = copy_of(tiny_encoder, tmp_path / "model")
    trap = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"
    for name in ("modeling.py", "tokens.py", "custom_st.py"):
        (model / name).write_text(trap)
    spoil(model)
    ended = encode(write(tmp_path, "parquet", GOOD), model=model)
    assert ended.code == 2
    assert said in ended.said
    assert str(model) in ended.said
    assert not (model / "ran").exists()


# -- disks


@pytest.fixture
def small_disk(disk: Callable[[str, str], Path]) -> Path:
    return disk("out", "1m")


@both_sinks
def test_a_full_disk_stops_the_job_and_space_lets_it_go_on(tmp_path: Path, encode: Encode, small_disk: Path) -> None:
    """A disk that has no room for the output: 3, the remedy, whole rows only; with room, the same command ends with 0."""
    noise = np.random.default_rng(0)
    bodies = {f"k{n:03d}": noise.bytes(12_000).hex() for n in range(200)}  # zstd makes 2.4 MB of it
    path = write(tmp_path, "parquet", table(**bodies))
    ended = encode(path, more=["--keep", "body"])
    assert (ended.code, ended.summary["state"]) == (3, "stopped")
    assert "free space and run the same command again" in ended.summary["reason"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = encode(path, more=["--keep", "body"])
    assert (again.code, ids(again), again.summary["rejected"]) == (0, list(bodies), 0)
