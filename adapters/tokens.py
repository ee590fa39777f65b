"""Rows of texts to items of tokens, on the CPU: whole or in chunks, and which rows are refused. No torch, no transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..config.outputs import chunk_fields
from . import chunking
from .contract import Prepared
from .ragged import Ragged
from .tokenizer import TextTokenizer, Tokenised

Bad = dict[int, tuple[str, str]]  # row -> (reject code, detail)


def too_long(tokens: int, limit: int) -> tuple[str, str]:
    return "too-long", f"{tokens} tokens, the limit is {limit}"


def sound_rows(columns: Sequence[pa.Array]) -> tuple[list[int], list[tuple[str, ...]], Bad]:
    """Rows whose texts are all there, those texts, and the other rows with the reason."""
    rows: list[int] = []
    texts: list[tuple[str, ...]] = []
    bad: Bad = {}
    for row, values in enumerate(zip(*(column.to_pylist() for column in columns), strict=True)):
        if any(value is None for value in values):
            bad[row] = ("null-text", "the text is null")
        elif not all(value.strip() for value in values):
            bad[row] = ("empty-text", "the text is empty or only white space")
        else:
            rows.append(row)
            texts.append(values)
    return rows, texts, bad


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """What became of the texts of a batch: kept encodings with their rows, and the refused rows."""

    encodings: Sequence[Tokenised]
    rows: np.ndarray  # int32 (encodings,)
    bad: Bad

    def prepared(self, ragged: Ragged, **features: object) -> Prepared:
        cut = np.fromiter((bool(encoding.overflowing) for encoding in self.encodings), bool, len(self.encodings))
        return Prepared(self.rows, ragged.lengths, {"ragged": ragged, **features}, self.bad, cut)


def encode_rows(tokenizer: TextTokenizer, columns: Sequence[pa.Array]) -> Encoded:
    """Encode each row's text or pair; null, blank and (under `reject`) too long ones go to `bad`."""
    rows, texts, bad = sound_rows(columns)
    limit, reject = tokenizer.recipe.max_tokens, tokenizer.recipe.long_text == "reject"
    given: list[Any] = [tokenizer.shape(first) for first, *_ in texts]
    if len(columns) == 2:
        given = [(first, tokenizer.shape(second, second=True)) for first, (_, second) in zip(given, texts, strict=True)]
    kept: list[tuple[int, Tokenised]] = []
    for row, encoding in zip(rows, tokenizer.encode(given, cut=not reject), strict=True):
        if reason := tokenizer.refusal(encoding.ids):
            bad[row] = reason
        elif reject and len(encoding) > limit:
            bad[row] = too_long(len(encoding), limit)
        else:
            kept.append((row, encoding))
    return Encoded([encoding for _, encoding in kept], np.array([row for row, _ in kept], np.int32), bad)


def encode_chunks(tokenizer: TextTokenizer, texts: pa.Array) -> Prepared:
    """Cut each text into chunks that fit, one item per chunk; `extra` has the chunk's number, characters and text."""
    recipe = tokenizer.recipe
    limit = recipe.chunk_tokens or recipe.max_tokens
    rows, kept, bad = sound_rows([texts])
    trimmed = [text.strip() for (text,) in kept]
    wholes = tokenizer.encode([tokenizer.shape(text) for text in trimmed], cut=False)
    encodings: list[Tokenised] = []
    owners: list[int] = []
    cut: list[bool] = []
    found: list[dict[str, Any]] = []
    for row, (text,), inner, whole in zip(rows, kept, trimmed, wholes, strict=True):
        if reason := tokenizer.refusal(whole.ids):
            bad[row] = reason
            continue
        if len(whole) <= limit:
            before = len(text) - len(text.lstrip())
            spans: dict[tuple[int, int], Tokenised] = {(before, before + len(inner)): whole}
        else:
            spans = _chunk(tokenizer, text, limit)
        if reason := next(filter(None, (tokenizer.refusal(one.ids) for one in spans.values() if one.ids)), None):
            bad[row] = reason
            continue
        for number, ((start, end), encoding) in enumerate(spans.items()):
            inside = text[start:end]
            cut.append(len(encoding) > recipe.max_tokens)
            if cut[-1]:  # a single character of more tokens than the model takes
                encoding = tokenizer.encode([tokenizer.shape(inside)], cut=True)[0]
            encodings.append(encoding)
            owners.append(row)
            found.append({"chunk": number, "start": start, "end": end, "text": inside})
    ragged = Ragged.of(encodings)
    extra = pa.RecordBatch.from_pylist(found, schema=pa.schema(chunk_fields("text")))
    return Prepared(np.array(owners, np.int32), ragged.lengths, {"ragged": ragged}, bad, np.array(cut, bool), extra)


def _chunk(tokenizer: TextTokenizer, text: str, limit: int) -> dict[tuple[int, int], Tokenised]:
    """Chunks of one text that does not fit: their characters and encodings, in order."""
    made: dict[tuple[int, int], Tokenised] = {}

    def excess(start: int, end: int) -> int:
        made[start, end] = tokenizer.encode([tokenizer.shape(text[start:end])], cut=False)[0]
        return len(made[start, end]) - limit

    room = limit - tokenizer.overhead
    spans = chunking.cut(text, tokenizer.starts(text), room, min(tokenizer.recipe.chunk_overlap, room // 2), excess)
    return {span: made[span] for span in spans}
