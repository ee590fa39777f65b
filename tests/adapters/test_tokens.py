"""The tokenizer under a recipe: limits that leave no room are refused before any row is read."""

import dataclasses

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lading.adapters.tokens import TextTokenizer, encode_chunks, encode_rows
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from tests import models


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


@pytest.fixture(params=["bert", "roberta", "xlm-roberta"])
def tokenizer(request, tmp_path):
    """WordPiece, byte-level BPE and Unigram, under a limit of 32 tokens."""
    folder = models.tiny_encoder(tmp_path / request.param, request.param)
    recipe = resolve(locate(str(folder)), task="encode", max_tokens=32)
    return TextTokenizer(folder, recipe)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=12), times=st.integers(50, 400))
def test_of_a_book_the_beginning_gives_the_same_tokens(tokenizer, words, times):
    """A text far above the limit is encoded as it would be as a whole, and counted as truncated as before."""
    text = " ".join(words * times)
    (found,) = tokenizer.encode([text], cut=True)
    whole = tokenizer._cut.encode(text)
    assert (found.ids, found.offsets) == (whole.ids, whole.offsets)
    assert bool(found.overflowing) == bool(whole.overflowing)


@pytest.mark.parametrize(
    "text",
    [
        "a cat " + " " * 100_000 + "a dog on the mat " * 40,
        "cat" * 50_000,
        "a dog \u200b" + "\u200b" * 9_000 + " cat " * 900,
    ],
)
def test_a_beginning_that_does_not_reach_the_limit_is_not_taken_for_the_text(tokenizer, text):
    """Where the first characters hold few tokens, or no space to cut at, all of the text is looked at."""
    (found,) = tokenizer.encode([text], cut=True)
    assert found.ids == tokenizer._cut.encode(text).ids


def test_only_the_beginning_of_a_book_is_tokenised(tokenizer):
    """What is cut off is a small part of what there is: a book costs what its first pages cost."""
    (found,) = tokenizer.encode(["the cat looked at the dog " * 100_000], cut=True)
    assert 64 <= sum(len(more.ids) for more in found.overflowing) < 5_000
