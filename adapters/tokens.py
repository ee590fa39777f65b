"""Texts to ragged token arrays, on the CPU. Owns truncation, prompts, and which texts are refused.

Uses the checkpoint's `tokenizer.json` through the `tokenizers` library alone: no torch, no transformers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from tokenizers import Encoding, Tokenizer

from ..config.errors import ModelError
from ..config.outputs import chunk_fields
from ..config.recipe import Recipe
from . import chunking
from .contract import Prepared

Layout = TypeVar("Layout")


@dataclasses.dataclass(frozen=True, slots=True)
class Ragged:
    """The tokens of some items, end to end: item i has tokens `offsets[i]:offsets[i + 1]`."""

    tokens: np.ndarray  # int32 (tokens,)
    offsets: np.ndarray  # int64 (items + 1,)
    types: np.ndarray | None = None  # int32 (tokens,): 0 for the first text of a pair, 1 for the second

    @classmethod
    def of(cls, encodings: Sequence[Encoding], *, types: bool = False) -> Ragged:
        ids = [encoding.ids for encoding in encodings]
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, ids), np.int64, len(ids)), out=offsets[1:])
        return cls(
            _flat(ids, offsets[-1]),
            offsets,
            _flat([encoding.type_ids for encoding in encodings], offsets[-1]) if types else None,
        )

    def take(self, items: np.ndarray) -> Ragged:
        """The given items (int64), in the order given."""
        starts = self.offsets[items]
        lengths = self.offsets[items + 1] - starts
        offsets = np.zeros(len(items) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        index = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.tokens[index], offsets, None if self.types is None else self.types[index])

    @property
    def lengths(self) -> np.ndarray:
        """int64 (items,)."""
        return np.diff(self.offsets)


def concatenate(parts: Sequence[Ragged]) -> Ragged:
    """The items of all parts, one after the other."""
    shifts = np.cumsum([0] + [len(part.tokens) for part in parts])
    offsets = [part.offsets[:-1] + shift for part, shift in zip(parts, shifts, strict=False)]
    types = None if parts[0].types is None else np.concatenate([part.types for part in parts if part.types is not None])
    return Ragged(np.concatenate([part.tokens for part in parts]), np.concatenate([*offsets, shifts[-1:]]), types)


# A beginning of so many characters a token holds the limit several times over in any language (English has 4-5 a token).
CHARACTERS_A_TOKEN = 32
MARGIN_TOKENS = 64


def _beginning(text: str, max_tokens: int) -> str:
    """What comes before a space some way past the limit; the whole text where it is short, or there is no space."""
    limit = max_tokens * CHARACTERS_A_TOKEN
    place = text.rfind(" ", limit // 2, limit) if len(text) > 2 * limit else -1
    return text if place < 0 else text[:place]


NO_TOKENS = ("empty-text", "the tokenizer finds no token in the text")


class TextTokenizer:
    """The tokenizer of one checkpoint under one recipe. Threads may share it."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        """Raises ModelError if the checkpoint has no usable tokenizer.json, or the prompt leaves no room."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{folder} has no tokenizer.json; save one with transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        try:
            self._whole = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for every kind of damage
            raise ModelError(f"{path} cannot be read: {error}") from error
        self._whole.no_padding()
        self._whole.no_truncation()
        self._cut = Tokenizer.from_str(self._whole.to_str())
        self._cut.enable_truncation(recipe.max_tokens)  # longest first, as the reference does
        self.recipe = recipe
        self.prompt_tokens = self._count_prompt(recipe.prompt)
        self.overhead = len(self._whole.encode(self._shape(recipe.prompt)).ids)  # prompt and special tokens
        limit = (recipe.chunk_tokens if recipe.long_text == "chunk" else 0) or recipe.max_tokens
        pair = self._whole.num_special_tokens_to_add(True) + 1 if recipe.task == "score" else 0
        if limit <= max(self.overhead, pair):
            raise ModelError(
                f"{limit} tokens leave no room for a text: prompt and special tokens take {max(self.overhead, pair)}"
            )

    def _count_prompt(self, prompt: str) -> int:
        """Tokens that a prompt puts before a text, a leading special token included (as sentence-transformers counts)."""
        if not prompt:
            return 0
        encoding = self._whole.encode(self._shape(prompt))
        count = len(encoding.ids) - int(bool(encoding.special_tokens_mask) and encoding.special_tokens_mask[-1])
        if count + 1 >= self.recipe.max_tokens:
            raise ModelError(
                f"the prompt takes {count} of {self.recipe.max_tokens} tokens and leaves no room for a text"
            )
        return count

    def _shape(self, text: str) -> str:
        return text.lower() if self.recipe.lower_case else text

    def shape_second(self, text: str) -> str:
        """The second text of a pair as the tokenizer sees it: the prompt is before the first alone."""
        return self._shape(text)

    def shape(self, text: str) -> str:
        """The text as the tokenizer sees it: prompt before it, lower-cased if the checkpoint wants that."""
        return self._shape(self.recipe.prompt + text)

    def encode(self, texts: Sequence[str] | Sequence[tuple[str, str]], *, cut: bool) -> list[Encoding]:
        """Encodings with special tokens, truncated to the recipe's max_tokens if `cut`.

        Of single texts far above the limit only the beginning is looked at, where that gives the same tokens: the rest of
        a book takes seconds to tokenise, and the device would wait for it.
        """
        if not cut:
            return self._whole.encode_batch(texts)
        given = [_beginning(text, self.recipe.max_tokens) if isinstance(text, str) else text for text in texts]
        found = self._cut.encode_batch(given)
        for place, (text, part) in enumerate(zip(texts, given, strict=True)):
            if len(part) < len(text) and not self._reaches_past_the_limit(found[place]):
                found[place] = self._cut.encode(text)
        return found

    def plain(self, texts: Iterable[str], *, beginnings: bool = False) -> dict[str, list[int]]:
        """Token ids of each text as it stands, without special tokens; with `beginnings`, of far too long ones only the first.

        Those are right up to max_tokens, and go on beyond.
        """
        wanted, enough = list(texts), self.recipe.max_tokens + MARGIN_TOKENS
        given = [_beginning(text, self.recipe.max_tokens) for text in wanted] if beginnings else wanted
        found = {}
        encodings = self._whole.encode_batch(given, add_special_tokens=False)
        for text, part, encoding in zip(wanted, given, encodings, strict=True):
            ids = encoding.ids
            if len(part) < len(text) and len(ids) < enough:
                ids = self._whole.encode(text, add_special_tokens=False).ids
            found[text] = ids
        return found

    def pair_layout(self, read: Callable[[Tokenizer], Layout]) -> Layout:
        """What `read` finds in the tokenizer, which neither cuts nor pads."""
        return read(self._whole)

    def _reaches_past_the_limit(self, encoding: Encoding) -> bool:
        """Whether the tokens that were cut off are enough for none of those kept to have seen where the text was cut."""
        return sum(len(more.ids) for more in encoding.overflowing) >= MARGIN_TOKENS

    def starts(self, text: str) -> list[int]:
        """The first character of each token of a text at any length, never falling; no prompt, no special tokens."""
        offsets = self._whole.encode(self._shape(text), add_special_tokens=False).offsets
        return list(itertools.accumulate((start for start, _ in offsets), max))


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """What became of the texts of a batch: kept encodings with their rows, and the refused rows."""

    encodings: list[Encoding]
    rows: np.ndarray  # int32 (encodings,)
    bad: dict[int, tuple[str, str]]
    truncated: int

    def prepared(self, ragged: Ragged, **features: object) -> Prepared:
        return Prepared(self.rows, ragged.lengths, {"ragged": ragged, **features}, self.bad, self.truncated)


def encode_rows(tokenizer: TextTokenizer, columns: Sequence[pa.Array]) -> Encoded:
    """Encode each row's text or pair; null, blank and (under `reject`) too long ones go to `bad`."""
    rows, texts, bad = sound_rows(columns)
    reject = tokenizer.recipe.long_text == "reject"
    if len(columns) == 1:
        given: Any = [tokenizer.shape(text) for (text,) in texts]
    else:
        given = [(tokenizer.shape(first), tokenizer.shape_second(second)) for first, second in texts]
    encodings = tokenizer.encode(given, cut=not reject)
    if not all(encoding.ids for encoding in encodings):  # "\u200b", where no special tokens are added
        bad |= {row: NO_TOKENS for row, encoding in zip(rows, encodings, strict=True) if not encoding.ids}
        rows = [row for row, encoding in zip(rows, encodings, strict=True) if encoding.ids]
        encodings = [encoding for encoding in encodings if encoding.ids]
    if not reject:
        return Encoded(encodings, np.array(rows, np.int32), bad, sum(1 for e in encodings if e.overflowing))
    limit = tokenizer.recipe.max_tokens
    kept = [n for n, encoding in enumerate(encodings) if len(encoding.ids) <= limit]
    for n, encoding in enumerate(encodings):
        if len(encoding.ids) > limit:
            bad[rows[n]] = ("too-long", f"{len(encoding.ids)} tokens, the limit is {limit}")
    return Encoded([encodings[n] for n in kept], np.array([rows[n] for n in kept], np.int32), bad, 0)


def encode_chunks(tokenizer: TextTokenizer, texts: pa.Array) -> Prepared:
    """Cut each text into chunks that fit, one item per chunk; `extra` has the chunk's number, characters and text."""
    recipe = tokenizer.recipe
    limit = recipe.chunk_tokens or recipe.max_tokens
    rows, kept, bad = sound_rows([texts])
    trimmed = [text.strip() for (text,) in kept]
    wholes = tokenizer.encode([tokenizer.shape(text) for text in trimmed], cut=False)
    encodings: list[Encoding] = []
    owners: list[int] = []
    columns: dict[str, list[Any]] = {"chunk": [], "start": [], "end": [], "text": []}
    truncated = 0
    for row, (text,), inner, whole in zip(rows, kept, trimmed, wholes, strict=True):
        if not whole.ids:
            bad[row] = NO_TOKENS
            continue
        if len(whole.ids) <= limit:
            before = len(text) - len(text.lstrip())
            spans = {(before, before + len(inner)): whole}
        else:
            spans = _chunk(tokenizer, text, limit)
        too_long = [span for span, encoding in spans.items() if len(encoding.ids) > recipe.max_tokens]
        for span in too_long:  # a single character of more tokens than the model takes
            spans[span] = tokenizer.encode([tokenizer.shape(text[slice(*span)])], cut=True)[0]
        truncated += bool(too_long)
        for number, ((start, end), encoding) in enumerate(spans.items()):
            encodings.append(encoding)
            owners.append(row)
            for name, value in zip(columns, (number, start, end, text[start:end]), strict=True):
                columns[name].append(value)
    ragged = Ragged.of(encodings)
    schema = pa.schema(chunk_fields("text"))
    extra = pa.RecordBatch.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    return Prepared(np.array(owners, np.int32), ragged.lengths, {"ragged": ragged}, bad, truncated, extra)


def _chunk(tokenizer: TextTokenizer, text: str, limit: int) -> dict[tuple[int, int], Encoding]:
    """Chunks of one text that does not fit: their characters and encodings, in order."""
    made: dict[tuple[int, int], Encoding] = {}

    def excess(start: int, end: int) -> int:
        made[start, end] = tokenizer.encode([tokenizer.shape(text[start:end])], cut=False)[0]
        return len(made[start, end].ids) - limit

    room = limit - tokenizer.overhead
    spans = chunking.cut(text, tokenizer.starts(text), room, min(tokenizer.recipe.chunk_overlap, room // 2), excess)
    return {span: made[span] for span in spans}


def sound_rows(columns: Sequence[pa.Array]) -> tuple[list[int], list[tuple[str, ...]], dict[int, tuple[str, str]]]:
    """Rows whose texts are all there, those texts, and the other rows with the reason."""
    rows: list[int] = []
    texts: list[tuple[str, ...]] = []
    bad: dict[int, tuple[str, str]] = {}
    for row, values in enumerate(zip(*(column.to_pylist() for column in columns), strict=True)):
        if any(value is None for value in values):
            bad[row] = ("null-text", "the text is null")
        elif not all(value.strip() for value in values):
            bad[row] = ("empty-text", "the text is empty or only white space")
        else:
            rows.append(row)
            texts.append(values)
    return rows, texts, bad


def _flat(lists: Iterable[list[int]], total: int) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(lists), np.int32, int(total))
