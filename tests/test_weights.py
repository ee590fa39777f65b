"""The size of a checkpoint's weights, read from its headers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lading.config.errors import ModelError
from lading.config.weights import parameters, token_rows, weight_bytes
from tests import models, models_outputs


def test_the_count_is_that_of_the_loaded_model(tiny_encoder: Path) -> None:
    """As many numbers as transformers loads, and as many bytes as the precision gives them."""
    import transformers

    model = transformers.AutoModel.from_pretrained(tiny_encoder)
    assert parameters(tiny_encoder) == sum(one.numel() for one in model.parameters())
    assert weight_bytes(tiny_encoder, "bfloat16") * 2 == weight_bytes(tiny_encoder, "float32")


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]", b'\x09\0\0\0\0\0\0\0{"a": {}}'])
def test_what_is_no_safetensors_file_is_said(tmp_path: Path, content: bytes) -> None:
    """Named, in words, and not by a traceback."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is not a safetensors file"):
        parameters(tmp_path)


@pytest.mark.parametrize(
    "architecture",
    [
        "bert",
        "roberta",
        "distilbert",
        "electra",
        "albert",
        "modernbert",
        "deberta-v2",
        "mpnet",
        "t5",
        "qwen3",
        "gpt2",
        "gte",
    ],
)
def test_the_rows_are_those_of_the_stored_table(tmp_path: Path, architecture: str) -> None:
    """Whatever a family calls its table of tokens, its rows count, and not what config.json says."""
    folder = models.tiny_encoder(tmp_path / "m", architecture)
    config = json.loads((folder / "config.json").read_text())
    rows = config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    assert token_rows(folder) == rows


@pytest.mark.parametrize(
    ("config", "rows"),
    [({"vocab_size": 9}, 9), ({"text_config": {"vocab_size": 8}}, 8), ({"text_config": None}, None), (None, None)],
)
def test_without_such_a_table_the_config_says(tmp_path: Path, config: dict | None, rows: int | None) -> None:
    """vocab_size, of the model or of its text part; where nothing says it, nobody knows."""
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert token_rows(tmp_path) == rows


def test_the_table_of_a_sharded_model_is_found(tmp_path: Path) -> None:
    """In whichever of the files that the index names it lies."""
    save_file({"layer.weight": np.zeros((2, 2), np.float32)}, tmp_path / "a.safetensors")
    save_file({"model.embed_tokens.weight": np.zeros((6, 2), np.float32)}, tmp_path / "b.safetensors")
    index = {"weight_map": {"layer.weight": "a.safetensors", "model.embed_tokens.weight": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert token_rows(tmp_path) == 6


@pytest.mark.parametrize("build", [models_outputs.splade, models_outputs.stanford_colbert, models_outputs.bge_m3])
def test_heads_beside_the_table_do_not_matter(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    """Of models with more in their files than a transformer, the table is the transformer's."""
    assert token_rows(build(tmp_path / "m")) == models.VOCABULARY
