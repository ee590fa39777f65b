"""Pairs put together from their two texts, against the tokenizers library's own encoding of the pair."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from benchmarks.corpus import docstrings, texts_of_lengths
from lading.adapters.pairs import PairTexts, cut_longest, layout_of
from lading.config.recipe import Recipe
from tests import models, models_rerank

POST: dict[str, Any] = {
    "roberta": processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False),
    "bert": processors.BertProcessing(("[SEP]", 2), ("[CLS]", 0)),
    "sequence": processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", special_tokens=[("<s>", 0)]),
        ]
    ),
    "backwards": processors.TemplateProcessing("$A", "$B $A", special_tokens=[]),
}
# WordPiece, byte-level BPE with RoBERTa's two </s>, Unigram, byte-level BPE without special tokens; then other post-processors.
CASES = ["bert", "roberta", "xlm-roberta", "qwen3", "post-roberta", "post-bert", "post-sequence"]
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60) | st.sampled_from(
    ["[SEP]", "</s><s>", " two\n\nwords ", "a" * 300, *texts_of_lengths([1, 7, 30])]
)


@functools.cache
def tokenizer_of(case: str) -> Tokenizer:
    kind, _, post = case.partition("post-")
    if kind == "qwen3":
        return models_rerank._trained("qwen3")
    name = {"roberta": "roberta", "bert": "bert", "sequence": "roberta", "backwards": "roberta"}[post] if post else kind
    found = Tokenizer.from_str(models._tokenizer(name).backend_tokenizer.to_str())
    if post:
        found.post_processor = POST[post]
    found.no_truncation()
    return found


@functools.cache
def folder_of(case: str, root: Path) -> Path:
    folder = root / case
    folder.mkdir()
    tokenizer_of(case).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


def pairs_of(case: str, root: Path, limit: int, **fields: Any) -> PairTexts:
    recipe = Recipe(task="score", content="", architecture="", max_tokens=limit, activation="identity", **fields)
    return PairTexts(folder_of(case, root), recipe, types=True)


@functools.cache
def cached(case: str, root: Path, limit: int) -> PairTexts:
    return pairs_of(case, root, limit)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), limit=st.integers(8, 70))
def test_a_pair_is_what_the_tokenizer_makes_of_it(case: str, root: Path, pairs: list[tuple[str, str]], limit: int):
    """Ids and types equal `encode(pair)` truncated by the library, at any limit, repeated texts or not."""
    made = cached(case, root, limit)
    assert made.layout is not None
    given = [(*pair, pairs[0][1]) for pair in pairs]
    given = [(first, second) for first, one, other in given for second in (one, other)]
    whole = Tokenizer.from_str(tokenizer_of(case).to_str())
    whole.enable_truncation(limit)
    prepared = made.prepare([pa.array(column, pa.string()) for column in zip(*given, strict=True)])
    sound = [pair for pair in given if all(text.strip() for text in pair)]
    encodings = [encoding for encoding in whole.encode_batch(sound) if encoding.ids]
    ragged = prepared.features["ragged"]
    assert ragged.lengths.tolist() == [len(encoding.ids) for encoding in encodings]
    assert ragged.tokens.tolist() == [id for encoding in encodings for id in encoding.ids]
    assert ragged.types.tolist() == [kind for encoding in encodings for kind in encoding.type_ids]
    assert prepared.truncated == sum(bool(encoding.overflowing) for encoding in encodings)


@given(first=st.integers(0, 40), second=st.integers(0, 40), room=st.integers(1, 50))
def test_the_longer_text_is_cut_first(first: int, second: int, room: int):
    """What is left fits, fills the room if anything was cut, and never makes the longer text the shorter by more than one."""
    one, two = cut_longest(first, second, room)
    assert one <= first
    assert two <= second
    assert one + two == min(room, first + second)
    if one < first and two < second:
        assert abs(one - two) <= 1


def test_far_too_long_texts(root: Path):
    """Of a book only the beginning is tokenised, with the tokens that the whole would give, whichever side is the book."""
    book = " ".join(itertools.islice(docstrings(), 100))
    pairs = [
        ("a query", book),
        (book, "short"),
        (book, book + " and more"),
        (book + " and more", book),
        ("a" * 9999, book),
    ]
    made = cached("bert", root, 65)
    prepared = made.prepare([pa.array(column) for column in zip(*pairs, strict=True)])
    whole = Tokenizer.from_str(tokenizer_of("bert").to_str())
    whole.enable_truncation(65)
    assert prepared.features["ragged"].tokens.tolist() == [id for pair in pairs for id in whole.encode(*pair).ids]


def test_each_query_is_tokenised_once(root: Path):
    """One query with a hundred documents, some of them twice, is tokenised once, and so is each document."""
    made = pairs_of("bert", root, 64)
    tokenizer: Any = made._tokenizer
    asked: list[str] = []
    plain = tokenizer.plain
    tokenizer.plain = lambda texts, **how: asked.extend(texts := list(texts)) or plain(texts, **how)
    documents = [*texts_of_lengths([5] * 80), *texts_of_lengths([5] * 20)]
    prepared = made.prepare([pa.array(["what is it"] * 100), pa.array(documents)])
    assert len(prepared.costs) == 100
    assert sorted(asked) == sorted({"what is it", *documents})


def test_another_kind_of_pair_is_encoded_whole(root: Path, caplog: pytest.LogCaptureFixture):
    """Where the tokenizer puts the second text first, pairs are given to it as they are, and the log says so."""
    assert layout_of(tokenizer_of("post-backwards")) is None
    made = pairs_of("post-backwards", root, 30)
    assert "pairs not shared" in caplog.text
    prepared = made.prepare([pa.array(["first text"]), pa.array(["second"])])
    whole = tokenizer_of("post-backwards").encode("first text", "second")
    assert prepared.features["ragged"].tokens.tolist() == whole.ids
    np.testing.assert_array_equal(prepared.features["ragged"].types, whole.type_ids)


def test_pairs_too_long_are_rejected_with_their_length(root: Path):
    """Under `reject` the pair's whole length is said, special tokens included."""
    made = pairs_of("bert", root, 16, long_text="reject")
    document = texts_of_lengths([40])[0]
    prepared = made.prepare([pa.array(["q", "q"]), pa.array([document, "d"])])
    length = len(tokenizer_of("bert").encode("q", document).ids)
    assert prepared.bad == {0: ("too-long", f"{length} tokens, the limit is 16")}
    assert prepared.rows.tolist() == [1]
