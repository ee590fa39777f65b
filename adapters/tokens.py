"""Texts to ragged token arrays, on the CPU. Owns truncation, prompts, and which texts are refused.

Uses the checkpoint's `tokenizer.json` through the `tokenizers` library alone: no torch, no transformers.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from tokenizers import AddedToken, Encoding, Tokenizer

from ..config.errors import ModelError
from ..config.outputs import chunk_fields
from ..config.recipe import Recipe
from ..config.templates import DOCUMENT, QUERY
from ..config.weights import token_rows
from . import chunking
from .contract import Prepared

Layout = TypeVar("Layout")


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """A text that lost its beginning, with the fields of an Encoding that are read here."""

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]
    overflowing: list[list[int]]  # ids that were cut off, as far as they were looked at


Tokenised = Encoding | Ending


@dataclasses.dataclass(frozen=True, slots=True)
class Ragged:
    """The tokens of some items, end to end: item i has tokens `offsets[i]:offsets[i + 1]`."""

    tokens: np.ndarray  # int32 (tokens,)
    offsets: np.ndarray  # int64 (items + 1,)
    types: np.ndarray | None = None  # int32 (tokens,): 0 for the first text of a pair, 1 for the second

    @classmethod
    def of(cls, encodings: Sequence[Tokenised], *, types: bool = False) -> Ragged:
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

    def filled(self, length: int, token: int) -> Ragged:
        """The items, those that are shorter filled up with `token`."""
        lengths = np.maximum(self.lengths, length)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.full(offsets[-1], token, np.int32)
        tokens[np.repeat(offsets[:-1] - self.offsets[:-1], self.lengths) + np.arange(len(self.tokens))] = self.tokens
        return Ragged(tokens, offsets)

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
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


def _beginning(text: str, max_tokens: int) -> str:
    """What comes before a space some way past the limit; the whole text where it is short, or there is no space."""
    limit = max_tokens * CHARACTERS_A_TOKEN
    place = text.rfind(" ", limit // 2, limit) if len(text) > 2 * limit else -1
    return text if place < 0 else text[:place]


def _ending(text: str, max_tokens: int) -> str:
    """The same from the end: a space between two words, and what comes after it.

    Not a space of several: how they are grouped to tokens depends on where they begin, however many there are.
    """
    limit = max_tokens * CHARACTERS_A_TOKEN
    place = BETWEEN_WORDS.search(text, len(text) - limit, len(text) - limit // 2) if len(text) > 2 * limit else None
    return text[place.start() :] if place else text


SAMPLE = "a"  # shows which special tokens stand before a text
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
        self._rowless = self._without_rows(folder)
        self._whole.no_padding()
        self._whole.no_truncation()
        self._mark(path, recipe)
        self._special = recipe.architecture not in ("static", "idf")  # a table has no row for what begins a text
        self._cut = Tokenizer.from_str(self._whole.to_str())
        # Longest first, as the reference does.
        self._cut.enable_truncation(recipe.max_tokens, direction=recipe.truncation_side)
        self.recipe = recipe
        if recipe.truncation_side == "left" and recipe.task == "score" and recipe.prompt:
            raise ModelError("truncation_side: left would cut the prompt of a pair off; use right")
        self.prompt_tokens = self._count_prompt(recipe.prompt)
        self._head = self._whole.encode(self._shape(recipe.prompt or SAMPLE), add_special_tokens=self._special)
        marks = self._head.special_tokens_mask
        self._head_tokens = self.prompt_tokens or next((n for n, mark in enumerate(marks) if not mark), 0)
        self._check_special(path, self._head)
        self._check_rows(path)
        if recipe.pooling == "cls" and not marks[:1] == [1]:
            raise ModelError(
                f"{path} puts no special token (CLS) before a text, and the vector of this model (pooling cls) is that token's; "
                "save the tokenizer with one, or the model with another pooling"
            )
        # prompt and special tokens
        self.overhead = len(self._whole.encode(self._shape(recipe.prompt), add_special_tokens=self._special).ids)
        limit = (recipe.chunk_tokens if recipe.long_text == "chunk" else 0) or recipe.max_tokens
        pair = self._whole.num_special_tokens_to_add(True) + 1 if recipe.task == "score" else 0
        if limit <= max(self.overhead, pair):
            raise ModelError(
                f"{limit} tokens leave no room for a text: prompt and special tokens take {max(self.overhead, pair)}"
            )

    def _mark(self, path: Path, recipe: Recipe) -> None:
        """Markers that the tokenizer would cut into pieces become tokens. Stanford's are a must, PyLate's may be plain text."""
        for marker in recipe.markers:
            token = next((one for one in (marker, marker.strip()) if self._whole.token_to_id(one) is not None), None)
            if token is None and recipe.token_modules == ("model.safetensors",):
                raise ModelError(f"{path} has no token {marker.strip()!r}, with which the model's texts begin")
            if token is not None and self._whole.encode(token, add_special_tokens=False).tokens != [token]:
                self._whole.add_special_tokens([AddedToken(token, normalized=False, special=True)])

    @property
    def vocabulary(self) -> int:
        """How many token ids there are, added ones included."""
        return self._whole.get_vocab_size()

    def ids_of(self, tokens: Sequence[str], *, all_needed: bool = True) -> list[int]:
        """Their ids. Raises ModelError for one that is none, or leaves it out."""
        found = [self._whole.token_to_id(token) for token in tokens]
        if all_needed and None in found:
            raise ModelError(f"the tokenizer has no token {tokens[found.index(None)]!r}, which the model needs")
        return [one for one in found if one is not None]

    def _without_rows(self, folder: Path) -> dict[int, str]:
        """Added tokens, by id, for which the model has no row: a batch with one would fail, or worse.

        Some checkpoints carry such tokens and never use them. Raises ModelError where one belongs to the vocabulary itself.
        """
        rows = token_rows(folder)
        own = max(self._whole.get_vocab(with_added_tokens=False).values(), default=-1)
        if rows is not None and own >= rows:
            raise ModelError(
                f"{folder / 'tokenizer.json'} has tokens up to number {own:,}, and the model {rows:,} of them from 0: "
                "the files do not belong together; fetch the model again"
            )
        added = self._whole.get_added_tokens_decoder()
        return {id: str(token) for id, token in added.items() if rows is not None and id >= rows}

    def refusal(self, ids: Sequence[int]) -> tuple[str, str] | None:
        """Why these tokens of a text can be no item, as a reject; None if they can."""
        if not ids:
            return NO_TOKENS
        if self._rowless and (found := next((id for id in ids if id in self._rowless), None)) is not None:
            return (
                "unknown-token",
                f"the model has no vector for {self._rowless[found]!r}, token {found:,} of its tokenizer",
            )
        return None

    def _check_rows(self, path: Path) -> None:
        """Raises ModelError where the tokenizer or the recipe itself puts a token without a row into every text."""
        recipe = self.recipe
        blank = [piece.replace(QUERY, "").replace(DOCUMENT, "") for piece in recipe.template]
        asked = [self._head.ids, self._whole.encode(SAMPLE, SAMPLE, add_special_tokens=self._special).ids]
        asked += [self._whole.encode(text, add_special_tokens=False).ids for text in blank]
        asked.append([id for id in [self._whole.token_to_id(recipe.expand_with)] if id is not None])
        for id in itertools.chain.from_iterable(asked if self._rowless else []):
            if id in self._rowless:
                raise ModelError(
                    f"{path} puts {self._rowless[id]!r} (number {id:,}) into every text, a token for which the model has no vector: the "
                    "files do not belong together; fetch the model again"
                )

    def check_pairs(self, folder: Path) -> None:
        """Raises ModelError where nothing would tell the two texts of a pair apart: for models that read both as one."""
        path, pair = folder / "tokenizer.json", self._whole.encode(SAMPLE, SAMPLE)
        self._check_special(path, pair)
        if not any(pair.special_tokens_mask[1:-1]):
            raise ModelError(
                f"{path} puts no special token (SEP) between the texts of a pair; save the tokenizer with the template of its model"
            )

    def _check_special(self, path: Path, encoding: Encoding) -> None:
        """Raises ModelError if the tokenizer adds special tokens that its vocabulary does not have."""
        for id, token, mark in zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, strict=True):
            if mark and self._whole.id_to_token(id) != token:
                known = self._whole.token_to_id(token)
                raise ModelError(
                    f"{path}: its template adds {token!r} as number {id}, which in its vocabulary is "
                    f"{self._whole.id_to_token(id)!r} ({token!r} is {'missing' if known is None else f'number {known}'}); save the "
                    "tokenizer again as transformers saves it"
                )

    def _count_prompt(self, prompt: str) -> int:
        """Tokens that a prompt puts before a text, a leading special token included (as sentence-transformers counts)."""
        if not prompt:
            return 0
        encoding = self._whole.encode(self._shape(prompt), add_special_tokens=self._special)
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

    def encode(self, texts: Sequence[str] | Sequence[tuple[str, str]], *, cut: bool) -> Sequence[Tokenised]:
        """Encodings with special tokens, truncated to the recipe's max_tokens if `cut`; single texts begin with the prompt.

        Of single texts far above the limit only the beginning (or ending) is looked at, where that gives the same tokens: the
        rest of a book takes seconds to tokenise, and the device would wait for it.
        """
        if not cut:
            return self._whole.encode_batch(texts, add_special_tokens=self._special)
        if self.recipe.truncation_side == "left" and all(isinstance(text, str) for text in texts):
            return self._endings([text for text in texts if isinstance(text, str)])
        given = [_beginning(text, self.recipe.max_tokens) if isinstance(text, str) else text for text in texts]
        found = self._cut.encode_batch(given, add_special_tokens=self._special)
        for place, (text, part) in enumerate(zip(texts, given, strict=True)):
            if len(part) < len(text) and not self._reaches_past_the_limit(found[place]):
                found[place] = self._cut.encode(text, add_special_tokens=self._special)
        return found

    def _endings(self, texts: list[str]) -> list[Tokenised]:
        """Texts that lose their first tokens: special tokens stay, and so does the prompt, as it is tokenised alone."""
        given = [_ending(text, self.recipe.max_tokens) for text in texts]
        found: list[Tokenised] = []
        for text, part, whole in zip(
            texts, given, self._whole.encode_batch(given, add_special_tokens=self._special), strict=True
        ):
            excess = len(whole.ids) - self.recipe.max_tokens
            if len(part) < len(text) and excess < MARGIN_TOKENS:
                part, whole = text, self._whole.encode(text, add_special_tokens=self._special)
                excess = len(whole.ids) - self.recipe.max_tokens
            found.append(self._ending_of(whole, len(text) - len(part)) if excess > 0 else whole)
        return found

    def _ending_of(self, whole: Encoding, shift: int) -> Ending:
        """The last tokens of an encoding above the limit, which begins `shift` characters into its text."""
        head, kept = self._head, self._head_tokens
        first = len(whole.ids) - (self.recipe.max_tokens - kept)
        moved = [
            (0, 0) if mask else (start + shift, end + shift)
            for (start, end), mask in zip(whole.offsets[first:], whole.special_tokens_mask[first:], strict=True)
        ]
        return Ending(
            head.ids[:kept] + whole.ids[first:],
            head.type_ids[:kept] + whole.type_ids[first:],
            head.offsets[:kept] + moved,
            head.special_tokens_mask[:kept] + whole.special_tokens_mask[first:],
            [whole.ids[kept:first]],
        )

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

    encodings: Sequence[Tokenised]
    rows: np.ndarray  # int32 (encodings,)
    bad: dict[int, tuple[str, str]]

    def prepared(self, ragged: Ragged, **features: object) -> Prepared:
        cut = np.fromiter((bool(encoding.overflowing) for encoding in self.encodings), bool, len(self.encodings))
        return Prepared(self.rows, ragged.lengths, {"ragged": ragged, **features}, self.bad, cut)


def encode_rows(tokenizer: TextTokenizer, columns: Sequence[pa.Array]) -> Encoded:
    """Encode each row's text or pair; null, blank and (under `reject`) too long ones go to `bad`."""
    rows, texts, bad = sound_rows(columns)
    reject = tokenizer.recipe.long_text == "reject"
    if len(columns) == 1:
        given: Any = [tokenizer.shape(text) for (text,) in texts]
    else:
        given = [(tokenizer.shape(first), tokenizer.shape_second(second)) for first, second in texts]
    encodings = tokenizer.encode(given, cut=not reject)
    refused = [tokenizer.refusal(encoding.ids) for encoding in encodings]  # "\u200b", where no special tokens are added
    if any(refused):
        bad |= {row: reason for row, reason in zip(rows, refused, strict=True) if reason}
        rows = [row for row, reason in zip(rows, refused, strict=True) if not reason]
        encodings = [encoding for encoding, reason in zip(encodings, refused, strict=True) if not reason]
    if not reject:
        return Encoded(encodings, np.array(rows, np.int32), bad)
    limit = tokenizer.recipe.max_tokens
    kept = [n for n, encoding in enumerate(encodings) if len(encoding.ids) <= limit]
    for n, encoding in enumerate(encodings):
        if len(encoding.ids) > limit:
            bad[rows[n]] = ("too-long", f"{len(encoding.ids)} tokens, the limit is {limit}")
    return Encoded([encodings[n] for n in kept], np.array([rows[n] for n in kept], np.int32), bad)


def encode_chunks(tokenizer: TextTokenizer, texts: pa.Array) -> Prepared:
    """Cut each text into chunks that fit, one item per chunk; `extra` has the chunk's number, characters and text."""
    recipe = tokenizer.recipe
    limit = recipe.chunk_tokens or recipe.max_tokens
    rows, kept, bad = sound_rows([texts])
    trimmed = [text.strip() for (text,) in kept]
    wholes = tokenizer.encode([tokenizer.shape(text) for text in trimmed], cut=False)
    encodings: list[Tokenised] = []
    owners: list[int] = []
    columns: dict[str, list[Any]] = {"chunk": [], "start": [], "end": [], "text": []}
    cut: list[bool] = []
    for row, (text,), inner, whole in zip(rows, kept, trimmed, wholes, strict=True):
        if reason := tokenizer.refusal(whole.ids):
            bad[row] = reason
            continue
        if len(whole.ids) <= limit:
            before = len(text) - len(text.lstrip())
            spans: dict[tuple[int, int], Tokenised] = {(before, before + len(inner)): whole}
        else:
            spans = _chunk(tokenizer, text, limit)
        if reason := next(filter(None, (tokenizer.refusal(one.ids) for one in spans.values() if one.ids)), None):
            bad[row] = reason
            continue
        too_long = [span for span, encoding in spans.items() if len(encoding.ids) > recipe.max_tokens]
        for span in too_long:  # a single character of more tokens than the model takes
            spans[span] = tokenizer.encode([tokenizer.shape(text[slice(*span)])], cut=True)[0]
        for number, ((start, end), encoding) in enumerate(spans.items()):
            encodings.append(encoding)
            owners.append(row)
            cut.append((start, end) in too_long)
            for name, value in zip(columns, (number, start, end, text[start:end]), strict=True):
                columns[name].append(value)
    ragged = Ragged.of(encodings)
    schema = pa.schema(chunk_fields("text"))
    extra = pa.RecordBatch.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    return Prepared(np.array(owners, np.int32), ragged.lengths, {"ragged": ragged}, bad, np.array(cut, bool), extra)


def _chunk(tokenizer: TextTokenizer, text: str, limit: int) -> dict[tuple[int, int], Tokenised]:
    """Chunks of one text that does not fit: their characters and encodings, in order."""
    made: dict[tuple[int, int], Tokenised] = {}

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
