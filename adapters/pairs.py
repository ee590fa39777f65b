"""Pairs of texts to ragged token arrays, on the CPU: the two texts apart, so that a query is tokenised once for all its documents.

No torch. The pair's shape is the tokenizer's own post-processor's, found by asking it, or the pieces of the recipe's template.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Encoding

from ..config.errors import ModelError
from ..config.recipe import Recipe
from ..config.templates import DOCUMENT, QUERY
from .contract import Prepared
from .tokens import NO_TOKENS, Ragged, TextTokenizer, encode_rows, sound_rows

log = logging.getLogger(__name__)

Bad = dict[int, tuple[str, str]]
NO_ROOM = ("too-long", "the query and what is around it leave no room for the document")
# Texts that show whether a pair is its two texts with fixed tokens around them, at any length.
_PROBES = [("a", "b"), ("A longer one, it is.", " two"), ("x", "several words\nover 2 lines"), ("é ü", "[SEP] </s>")]


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """What the tokenizer puts before, between and after the texts of a pair, and the type id of every stretch."""

    fixed: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    types: tuple[tuple[int, ...], int, tuple[int, ...], int, tuple[int, ...]]

    @property
    def special(self) -> int:
        return sum(map(len, self.fixed))

    def ids(self, first: list[int], second: list[int]) -> list[int]:
        before, between, after = self.fixed
        return [*before, *first, *between, *second, *after]

    def type_ids(self, first: int, second: int) -> list[int]:
        before, one, between, two, after = self.types
        return [*before, *[one] * first, *between, *[two] * second, *after]


def layout_of(tokenizer: Any) -> Layout | None:
    """How a `tokenizers.Tokenizer` without truncation puts a pair together; None if by more than fixed tokens around it."""
    found = _read_off(tokenizer.encode(*_PROBES[0]))
    if found is None:
        return None
    for pair in _PROBES:
        whole = tokenizer.encode(*pair)
        first, second = (tokenizer.encode(text, add_special_tokens=False).ids for text in pair)
        if found.ids(first, second) != whole.ids or found.type_ids(len(first), len(second)) != whole.type_ids:
            return None
    return found


def _read_off(whole: Encoding) -> Layout | None:
    runs: list[tuple[int | None, list[int], list[int]]] = [(None, [], [])]
    for id, kind, owner in zip(whole.ids, whole.type_ids, whole.sequence_ids, strict=True):
        if owner != runs[-1][0]:
            if runs[-1][0] == 0 and owner == 1:
                runs.append((None, [], []))  # nothing between the texts
            runs.append((owner, [], []))
        runs[-1][1].append(id)
        runs[-1][2].append(kind)
    runs += [(None, [], [])] * (len(runs) == 4)
    if [owner for owner, _, _ in runs] != [None, 0, None, 1, None]:
        return None
    fixed = [tuple(ids) for owner, ids, _ in runs if owner is None]
    kinds: list[Any] = [tuple(kinds) if owner is None else kinds[0] for owner, _, kinds in runs]
    return Layout((fixed[0], fixed[1], fixed[2]), (kinds[0], kinds[1], kinds[2], kinds[3], kinds[4]))


def cut_longest(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that are left of both when the longer is cut first, as the library's `longest_first` does."""
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (long, short) if first > second else (short, long)


class PairTexts:
    """Pairs as the tokenizer joins them, for cross-encoders."""

    def __init__(self, folder: Path, recipe: Recipe, *, types: bool = False) -> None:
        """`types`: whether the model wants type ids. Raises ModelError as TextTokenizer does."""
        self.recipe, self._types = recipe, types
        self._tokenizer = TextTokenizer(folder, recipe)
        self.layout = self._tokenizer.pair_layout(layout_of)
        if self.layout is None:
            log.warning("%s: this tokenizer joins pairs in a way of its own: queries are tokenised once a pair", folder)

    def check(self, folder: Path) -> None:
        """Raises ModelError where nothing tells the two texts apart: for models that read both as one."""
        self._tokenizer.check_pairs(folder)

    def prepare(self, columns: Sequence[pa.Array]) -> Prepared:
        """See `Adapter.prepare`. A pair that is too long loses tokens of its longer text first."""
        if self.layout is None:
            encoded = encode_rows(self._tokenizer, columns)
            return encoded.prepared(Ragged.of(encoded.encodings, types=self._types))
        rows, texts, bad = sound_rows(columns)
        reject, tokenizer, layout = self.recipe.long_text == "reject", self._tokenizer, self.layout
        queries = tokenizer.plain(dict.fromkeys(tokenizer.shape(query) for query, _ in texts))
        shaped = dict.fromkeys(tokenizer.shape_second(document) for _, document in texts)
        left = self.recipe.truncation_side == "left"
        documents = tokenizer.plain(shaped, beginnings=not reject and not left)
        room = self.recipe.max_tokens - layout.special
        made = Assembled(bad, tokenizer)
        for row, (query, document) in zip(rows, texts, strict=True):
            shape = tokenizer.shape_second(document)
            first, second = queries[tokenizer.shape(query)], documents[shape]
            if len(first) > room < len(second):  # which is the longer one counts
                second = documents[shape] = tokenizer.plain([shape])[shape]
            one, two = cut_longest(len(first), len(second), room)
            total = len(first) + len(second) + layout.special
            if not total:
                bad[row] = NO_TOKENS
            elif reject and total > self.recipe.max_tokens:
                bad[row] = ("too-long", f"{total} tokens, the limit is {self.recipe.max_tokens}")
            else:
                types = layout.type_ids(one, two) if self._types else None
                kept = (first[len(first) - one :], second[len(second) - two :]) if left else (first[:one], second[:two])
                made.add(row, layout.ids(*kept), total > self.recipe.max_tokens, types)
        return made.prepared(self._types)


class TemplateTexts:
    """Pairs inside the pieces of a template, for language models: of a long one the document is cut, from its end."""

    def __init__(self, folder: Path, recipe: Recipe, *, types: bool = False) -> None:
        """Raises ModelError as TextTokenizer does, and if the template leaves no room for a pair."""
        self.recipe, self._tokenizer = recipe, TextTokenizer(folder, recipe)
        self._joint = any(QUERY in piece and DOCUMENT in piece for piece in recipe.template)
        plain = self._tokenizer.plain(recipe.template)
        self._fixed = {one: ids for one, ids in plain.items() if QUERY not in one and DOCUMENT not in one}
        self._tail = next(self._tail_of(piece) for piece in recipe.template if DOCUMENT in piece)
        empty = [piece.replace(QUERY, "").replace(DOCUMENT, "") for piece in recipe.template]
        least = sum(len(ids) for ids in map(self._tokenizer.plain([*empty]).__getitem__, empty))
        if least + 2 > recipe.max_tokens:
            raise ModelError(f"{recipe.max_tokens} tokens leave no room for a pair: the template alone takes {least}")

    def _tail_of(self, piece: str) -> list[int]:
        """Tokens after the document that do not depend on it, as sentence-transformers finds them: in common to two fillers."""
        if piece.endswith(DOCUMENT):
            return []
        fillers = [piece.replace(QUERY, filler).replace(DOCUMENT, filler) for filler in ("0", "1 2 3 4")]
        one, two = (self._tokenizer.plain([text])[text] for text in fillers)
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(two), strict=False))
        return [id for id, _ in same][::-1]

    def prepare(self, columns: Sequence[pa.Array]) -> Prepared:
        """See `Adapter.prepare`."""
        rows, texts, bad = sound_rows(columns)
        reject, limit = self.recipe.long_text == "reject", self.recipe.max_tokens
        filled = [[_fill(piece, *pair) for piece in self.recipe.template] for pair in texts]
        whole: dict[str, None] = {}
        long: dict[str, None] = {}  # with the document
        for pieces in filled:
            for piece, text in zip(self.recipe.template, pieces, strict=True):
                if piece not in self._fixed:
                    (long if DOCUMENT in piece else whole)[text] = None
        known = self._tokenizer.plain(whole) | self._tokenizer.plain(long, beginnings=not reject) | self._fixed
        made = Assembled(bad, self._tokenizer)
        for row, pair, pieces in zip(rows, texts, filled, strict=True):
            total = sum(len(known[text]) for text in pieces)
            if reject and total > limit:
                bad[row] = ("too-long", f"{total} tokens, the limit is {limit}")
            elif total <= limit:
                made.add(row, list(itertools.chain.from_iterable(known[text] for text in pieces)), False)
            elif (ids := self._cut(pair, pieces, known)) is None:
                bad[row] = NO_ROOM
            else:
                made.add(row, ids, True)
        return made.prepared(False)

    def _cut(self, pair: tuple[str, ...], texts: list[str], known: dict[str, list[int]]) -> list[int] | None:
        """A pair's tokens within the limit: a query of its own piece keeps three quarters at most, what is left is the document's."""
        limit, tail = self.recipe.max_tokens, self._tail
        ids = [known[text] for text in texts]
        place = next(n for n, piece in enumerate(self.recipe.template) if DOCUMENT in piece)
        for n, piece in enumerate(self.recipe.template):
            if QUERY in piece and n != place:
                ids[n] = ids[n][: limit * 3 // 4]
        room = limit - sum(len(one) for n, one in enumerate(ids) if n != place)
        before = self.recipe.template[place].partition(DOCUMENT)[0]
        head = _fill(before, *pair)
        if room - len(tail) <= len(self._tokenizer.plain([head])[head]):
            return None
        ids[place] = ids[place][: room - len(tail)] + tail
        return list(itertools.chain.from_iterable(ids))


def pair_texts(folder: Path, recipe: Recipe, *, types: bool = False) -> PairTexts | TemplateTexts:
    """What makes items of the pairs of a recipe of `score`."""
    return (TemplateTexts if recipe.template else PairTexts)(folder, recipe, types=types)


def _fill(piece: str, query: str, document: str) -> str:
    """The piece with the texts in it, whatever they hold themselves."""
    return document.join(part.replace(QUERY, query) for part in piece.split(DOCUMENT))


class Assembled:
    """Items as they are put together."""

    def __init__(self, bad: Bad, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._bad, self._rows, self._ids, self._types = bad, list[int](), list[list[int]](), list[int]()
        self._cut: list[bool] = []

    def add(self, row: int, ids: list[int], cut: bool, types: list[int] | None = None) -> None:
        if reason := self._tokenizer.refusal(ids):
            self._bad[row] = reason
            return
        self._rows.append(row)
        self._ids.append(ids)
        self._cut.append(cut)
        if types is not None:
            self._types += types

    def prepared(self, types: bool) -> Prepared:
        offsets = np.cumsum([0, *map(len, self._ids)], dtype=np.int64)
        tokens = np.fromiter(itertools.chain.from_iterable(self._ids), np.int32, int(offsets[-1]))
        ragged = Ragged(tokens, offsets, np.array(self._types, np.int32) if types else None)
        return Prepared(
            np.array(self._rows, np.int32), ragged.lengths, {"ragged": ragged}, self._bad, np.array(self._cut, bool)
        )
