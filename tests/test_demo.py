"""The demo: what its texts are, and that its retrieval is the reference library's."""

from __future__ import annotations

import importlib
import sysconfig
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from lading.cli import main

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TEXTS = 250


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """examples/stdlib_docs.py and examples/demo.py, imported as the script does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("stdlib_docs"), importlib.import_module("demo")


def test_names_become_words(examples: tuple[ModuleType, ModuleType]) -> None:
    """A dotted name is split where a reader would split it."""
    docs, _ = examples
    assert docs.words("json.JSONEncoder.iter_encode") == "json JSON Encoder iter encode"


def test_the_texts_are_public_distinct_and_in_order(examples: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    """Thousands of documented public names, ordered by id, no id and no body twice, and the same file every time."""
    docs, demo = examples
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    found = docs.collect(stdlib)
    ids = [doc.id for doc in found]
    assert len(found) >= demo.TEXTS
    assert ids == sorted(set(ids))
    assert len({doc.body for doc in found}) == len(found)
    assert "json.load" in ids
    assert not any(part.startswith("_") for id in ids for part in id.split("."))
    for name in ("a.parquet", "b.parquet"):
        assert docs.write(tmp_path / name, TEXTS) == TEXTS
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_recall_equals_the_reference_library(
    examples: tuple[ModuleType, ModuleType], minilm: Path, tmp_path: Path
) -> None:
    """Each docstring's own name finds it as often as with sentence-transformers on the same rows."""
    from sentence_transformers import SentenceTransformer

    docs, demo = examples
    path, output = tmp_path / "docs.parquet", f"lancedb://{tmp_path}/db/docs"
    docs.write(path, TEXTS)
    command = ["encode", str(path), "--id", "id", "--text", "body", "--model", str(minilm), "--to", output]
    assert main([*command, "--quiet"]) == 0
    rows = pq.read_table(path).to_pydict()
    reference = SentenceTransformer(str(minilm), device="cpu")
    bodies, names = (reference.encode(rows[column], normalize_embeddings=True) for column in ("body", "name"))
    expected = float(((names @ bodies.T).argmax(axis=1) == range(TEXTS)).mean())
    assert 0.1 < expected < 1.0  # a measure that could tell two models apart
    assert demo.recall_at_1(path, output) == pytest.approx(expected)
