"""Where an output lies: what may not stand in its way, and what is no output but was named as one."""

from __future__ import annotations

from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.cli import main
from lading.pipelines.output import find_output


@pytest.fixture
def encode(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command without --to, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"text": ["a file is opened"]}), "in.parquet")
    return ["encode", "in.parquet", "--model", str(tiny_encoder), "--quiet"]


@pytest.mark.parametrize(
    ("to", "file"),
    [
        ("parquet://out", "out"),
        ("parquet://out", "out.lading"),
        ("parquet://sub/out", "sub"),
        ("lancedb://db/docs", "db"),
        ("lancedb://db/docs", "db/docs.lance"),
        ("lancedb://db/docs", "db/docs.lading"),
    ],
)
def test_a_file_in_the_way_is_named_before_any_work(
    to: str, file: str, encode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a file stands in the place of one of the output's folders, the command exits with 2, names it and leaves all as it was."""
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert main([*encode, "--to", to]) == 2
    assert f"needs a folder at {tmp_path / file}, where there is a file" in capsys.readouterr().err
    assert main([*encode, "--to", to, "--dry-run"]) == 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", [["status"], ["rejects"], ["query"], ["optimize"]], ids=lambda verb: verb[0])
@pytest.mark.parametrize(
    ("to", "folder", "said"),
    [
        (
            ["lancedb://db/docs", "lancedb://db/other"],
            "./db/",
            "holds the tables docs, other: name one, like ./db/docs",
        ),
        (["lancedb://db/docs"], "db", "holds the table docs: name one, like db/docs"),
        (["parquet://vectors/a", "lancedb://vectors/b"], "vectors", "holds the outputs a, b: name one, like vectors/a"),
    ],
    ids=["tables", "table", "outputs"],
)
def test_the_folder_above_outputs_names_them(
    verb: list[str], to: list[str], folder: str, said: str, encode: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every verb that takes an output answers the folder that outputs lie in with 2 and with what there is to name."""
    for one in to:
        assert main([*encode, "--to", one]) == 0
    assert main([*verb, folder, *(["a file"] if verb == ["query"] else [])]) == 2
    assert said in capsys.readouterr().err


def test_an_output_may_be_named_from_inside(
    encode: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`lading status .` in the folder of Parquet files is about these."""
    assert main([*encode, "--to", "parquet://out"]) == 0
    monkeypatch.chdir("out")
    assert find_output(".").kind == "parquet"
    assert main(["status", "."]) == 0
    assert "finished" in capsys.readouterr().out


def test_optimize_keeps_off_folders_that_are_no_output(
    encode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`lading optimize` takes what lading wrote and any LanceDB table; another folder, of Parquet files even, exits with 2."""
    assert main([*encode, "--to", "parquet://out"]) == 0
    lancedb.connect("db").create_table("foreign", pa.table({"number": [1, 2]}))
    assert main(["optimize", "out"]) == main(["optimize", "db/foreign"]) == 0
    Path("lake").mkdir()
    Path("in.parquet").rename("lake/in.parquet")
    Path("empty.lance").mkdir()
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    for folder in ("lake", "parquet://lake"):
        assert main(["optimize", folder]) == 2
        assert f"{folder} is no output of lading's" in capsys.readouterr().err
    assert main(["optimize", "empty"]) == 2
    assert "empty.lance is no LanceDB table" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
