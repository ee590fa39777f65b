"""The size of a checkpoint's weights, read from its headers."""

from pathlib import Path

import pytest

from lading.config.errors import ModelError
from lading.config.weights import parameters, weight_bytes


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
