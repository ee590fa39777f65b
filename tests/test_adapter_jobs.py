"""A whole command with a LoRA adapter: its vectors are those of sentence-transformers with PEFT, and the output knows its adapter."""

from __future__ import annotations

import json
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.cli import main
from lading.pipelines.provenance import RECIPES
from tests.models_lora import tiny_adapter

TEXTS = [f"the file number {n} is {'opened and ' * (n % 7)}read" for n in range(20)]


def test_encode_with_an_adapter(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--adapter`, given relative to the working folder, changes the vectors as PEFT does; `query` finds the adapter again from
    another folder, and refuses another one in its place; the same table takes no rows of the base alone."""
    from sentence_transformers import SentenceTransformer

    adapter = tiny_adapter(tmp_path / "adapter", tiny_encoder)
    pq.write_table(pa.table({"id": [str(n) for n in range(len(TEXTS))], "text": TEXTS}), tmp_path / "in.parquet")
    encode = [
        "encode",
        f"{tmp_path}/in.parquet",
        "--id",
        "id",
        "--model",
        str(tiny_encoder),
        "--quiet",
        "--device",
        "cpu",
    ]
    encode += ["--to", f"lancedb://{tmp_path}/db/docs", "--prompt", "none"]
    monkeypatch.chdir(tmp_path)
    assert main([*encode, "--adapter", "adapter"]) == 0
    table = lancedb.connect(tmp_path / "db").open_table("docs").to_arrow()
    found = dict(zip(table["id"].to_pylist(), table["vector"].to_pylist(), strict=True))
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    plain = model.encode(TEXTS)
    model.load_adapter(str(adapter))
    expected = model.encode(TEXTS)
    for number, vector in enumerate(expected):
        np.testing.assert_allclose(found[str(number)], vector, atol=1e-5)
    assert np.abs(plain - expected).max() > 0.01
    metadata = table.schema.metadata
    assert json.loads(metadata[RECIPES.encode()])["vector"]["adapter"] == str(adapter)
    assert b"embedding_functions" not in metadata, "plain LanceDB would embed queries without the adapter"
    monkeypatch.chdir("/")
    capsys.readouterr()
    ask = ["query", f"{tmp_path}/db/docs.lance", TEXTS[3], "--json", "--device", "cpu"]
    assert main(ask) == 0
    hit = json.loads(capsys.readouterr().out)[0]
    assert (hit["id"], round(hit["score"], 4)) == ("3", 1.0)
    assert main([*encode, "--on-existing", "append"]) != 0
    assert "recipe" in capsys.readouterr().err
    adapter.rename(tmp_path / "old")
    tiny_adapter(adapter, tiny_encoder, seed=5)
    assert main(ask) != 0
    assert "is not the adapter" in capsys.readouterr().err
