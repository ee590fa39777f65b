"""Chunks of long texts: bounded, at good borders, with nothing lost."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lading.adapters.chunking import cut
from lading.adapters.tokens import TextTokenizer, encode_chunks
from lading.config.errors import ModelError
from lading.config.recipe import Recipe
from tests import models


def tokens_of(text: str) -> list[int]:
    """Starts of the tokens of a toy tokenizer: words in pieces of three characters; control characters are dropped."""
    return [word.start() + n for word in re.finditer(r"[^\s\x00-\x1f]+", text) for n in range(0, len(word[0]), 3)]


def chunks(text: str, limit: int, overlap: int = 0) -> list[tuple[int, int]]:
    return cut(text, tokens_of(text), limit, overlap, lambda start, end: len(tokens_of(text[start:end])) - limit)


def check(text: str, spans: list[tuple[int, int]]) -> None:
    """Spans rise, have no white space at their ends, and cover everything else."""
    covered = 0
    for n, (start, end) in enumerate(spans):
        assert start < end
        assert text[start:end] == text[start:end].strip()
        assert not text[covered:start].strip()
        if n:
            assert start > spans[n - 1][0]
            assert end > spans[n - 1][1]
        covered = max(covered, end)
    assert not text[covered:].strip()


@given(
    st.lists(
        st.sampled_from(["a", "bcd", "efghij", "x" * 40, " ", "  ", ". ", "\n", "\n\n", "\x01", "é", "🙂"]),
        max_size=120,
    ).map("".join),
    st.integers(1, 12),
    st.integers(0, 6),
)
def test_nothing_is_lost_and_nothing_is_too_long(text: str, limit: int, overlap: int):
    """For any text: chunks fit when encoded alone, rise, and cover all but white space."""
    spans = chunks(text, limit, min(overlap, limit // 2))
    check(text, spans)
    assert all(len(tokens_of(text[start:end])) <= limit for start, end in spans)


@given(st.integers(1, 8), st.integers(0, 3), st.text("ab .\n", max_size=200))
def test_a_count_that_grows_alone_is_respected(limit: int, more: int, text: str):
    """Where a span has more tokens alone than in the text, it is shortened until it fits or is one token's characters."""

    def excess(start: int, end: int) -> int:
        return len(tokens_of(text[start:end])) + more - limit

    spans = cut(text, tokens_of(text), limit, 0, excess)
    check(text, spans)
    assert all(excess(*span) <= 0 or len(tokens_of(text[slice(*span)])) <= 1 for span in spans)


def test_borders_are_chosen_by_rank():
    """A paragraph's end is preferred to a sentence's, that to a space, that to the middle of a word."""
    one, two, three = "aa bb cc. dd ee\n\nff gg hh ii jj", "aa bb cc. dd ee ff gg", "aaabbbcccddd eeefff"
    assert [one[a:b] for a, b in chunks(one, 6)] == ["aa bb cc. dd ee", "ff gg hh ii jj"]
    assert [two[a:b] for a, b in chunks(two, 5)] == ["aa bb cc.", "dd ee ff gg"]
    assert [three[a:b] for a, b in chunks(three, 5)] == ["aaabbbcccddd", "eeefff"]
    assert [len("x" * 40), *(b - a for a, b in chunks("x" * 40, 5))] == [40, 15, 15, 10]


def test_neighbours_overlap_at_a_border():
    """With an overlap, a chunk begins at a word within the last `overlap` tokens of the one before."""
    text = " ".join(f"w{n}" for n in range(40))
    spans = chunks(text, 10, 3)
    shared = [len(tokens_of(text[start:end])) for (_, end), (start, _) in itertools.pairwise(spans)]
    assert shared == [3] * (len(spans) - 1)
    check(text, spans)


def test_bad_limits_are_programming_errors():
    """An overlap above half the limit could stand still, and is refused."""
    with pytest.raises(ValueError, match="overlap"):
        cut("a b", [0, 2], 4, 3, lambda start, end: 0)


# -- with real tokenizers


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """WordPiece, byte-level BPE and Unigram, with a prompt."""
    folder = models.tiny_encoder(tmp_path_factory.mktemp("chunk") / request.param, request.param)
    return TextTokenizer(folder, recipe_of(request.param))


def recipe_of(architecture: str, **fields) -> Recipe:
    known = {"max_tokens": 24, "long_text": "chunk", "chunk_tokens": 20, "chunk_overlap": 4, "prompt": "document: "}
    return Recipe(**({"task": "encode", "content": "", "architecture": architecture} | known | fields))


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("abcdefg étß東京🙂.!?\n\t\u0301\u200b\ufdfa "), min_size=1, max_size=400))
def test_every_chunk_fits_when_encoded_alone(tokenizer: TextTokenizer, text: str):
    """Chunks of any text are the document's own characters, within the limit with prompt and special tokens."""
    prepared = encode_chunks(tokenizer, pa.array([text]))
    if not text.strip():
        assert prepared.bad == {0: ("empty-text", "the text is empty or only white space")}
        return
    extra = prepared.extra.to_pylist()
    spans = [(one["start"], one["end"]) for one in extra]
    check(text, spans)
    assert [one["text"] for one in extra] == [text[a:b] for a, b in spans]
    assert [one["chunk"] for one in extra] == list(range(len(extra)))
    alone = [len(tokenizer.encode([tokenizer.shape(text[a:b])], cut=False)[0].ids) for a, b in spans]
    assert all(count <= 20 or b - a == 1 for count, (a, b) in zip(alone, spans, strict=True))
    assert prepared.costs.tolist() == [min(count, 24) for count in alone]


def test_short_texts_are_one_chunk(tokenizer: TextTokenizer):
    """A text that fits is a single chunk, trimmed; rows keep their number among bad ones."""
    prepared = encode_chunks(tokenizer, pa.array([None, "  one two ", "word " * 60]))
    assert prepared.rows[0] == 1
    assert set(prepared.rows[1:].tolist()) == {2}
    assert prepared.extra.slice(0, 1).to_pylist() == [{"chunk": 0, "start": 2, "end": 9, "text": "one two"}]
    assert list(prepared.bad) == [0]
    assert prepared.rows.dtype == np.int32


def test_a_long_text_without_a_space_ends(tokenizer: TextTokenizer):
    """300 kB without any border are cut in a time that grows with the text's length, not its square."""
    counted = 0
    text = "abcdefghij" * 30_000
    starts = list(range(0, len(text), 2))

    def excess(start: int, end: int) -> int:
        nonlocal counted
        counted += end - start
        return 0

    spans = cut(text, starts, 200, 20, excess)
    check(text, spans)
    assert counted < 3 * len(text)
    assert encode_chunks(tokenizer, pa.array([text])).extra.num_rows >= 1


def test_a_prompt_must_leave_room(tmp_path: Path):
    """A prompt that fills the model is refused at load."""
    folder = models.tiny_encoder(tmp_path / "m")
    with pytest.raises(ModelError, match="no room"):
        TextTokenizer(folder, recipe_of("bert", prompt="many words " * 10))
