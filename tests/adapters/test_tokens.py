"""The tokenizer under a recipe: limits that leave no room are refused before any row is read."""

import dataclasses

import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from lading.adapters.tokens import TextTokenizer, encode_chunks, encode_rows
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError


@pytest.fixture
def recipe(tiny_encoder):
    return resolve(locate(str(tiny_encoder)), task="encode")


@pytest.mark.parametrize("limit", [{"max_tokens": 1}, {"max_tokens": 2}, {"long_text": "chunk", "chunk_tokens": 2}])
def test_a_limit_without_room_for_a_text_is_refused(tiny_encoder, recipe, limit):
    """Special tokens alone must not fill the limit: every text would get the same vector."""
    with pytest.raises(ModelError, match="no room"):
        TextTokenizer(tiny_encoder, dataclasses.replace(recipe, **limit))


@pytest.mark.parametrize("encode", ["rows", "chunks"])
def test_a_text_without_tokens_is_a_reject(tiny_encoder, recipe, tmp_path, encode):
    """Where no special tokens are added, a text that normalises to nothing has no item, and its neighbours keep theirs."""
    bare = Tokenizer.from_file(str(tiny_encoder / "tokenizer.json"))
    bare.post_processor = None
    bare.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path, recipe)
    texts = pa.array(["a cat", "\u0000", "a dog"])
    found = encode_rows(tokenizer, [texts]) if encode == "rows" else encode_chunks(tokenizer, texts)
    assert found.rows.tolist() == [0, 2]
    assert found.bad[1][0] == "empty-text"
