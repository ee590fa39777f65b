"""Pairs of texts to ragged token arrays, on the CPU: the two texts apart, so that a query is tokenised once for all its documents.

No torch. The pair's shape is the tokenizer's own post-processor's, found by asking it, or the pieces of the recipe's template.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from ..config.errors import ModelError
from ..config.events import tell
from ..config.recipe import Recipe
from ..config.templates import DOCUMENT, QUERY
from .contract import Prepared
from .ragged import Ragged
from .tokenizer import NO_TOKENS, TextTokenizer
from .tokens import Bad, encode_rows, sound_rows, too_long

log = logging.getLogger(__name__)

Item = tuple[int, list[int], bool, list[int]]  # row, token ids, whether it lost any, type ids (none: not asked for)
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


def layout_of(tokenizer: Tokenizer) -> Layout | None:
    """How a tokenizer without truncation puts a pair together; None if by more than fixed tokens around it."""
    whole = tokenizer.encode(*_PROBES[0])
    ids, kinds = whole.ids, whole.type_ids
    one, two = ([place for place, owner in enumerate(whole.sequence_ids) if owner == which] for which in (0, 1))
    if not one or not two:
        return None
    before, between, after = slice(one[0]), slice(one[-1] + 1, two[0]), slice(two[-1] + 1, None)
    types = tuple(kinds[before]), kinds[one[0]], tuple(kinds[between]), kinds[two[0]], tuple(kinds[after])
    found = Layout((tuple(ids[before]), tuple(ids[between]), tuple(ids[after])), types)
    for pair in _PROBES:
        whole = tokenizer.encode(*pair)
        first, second = (tokenizer.encode(text, add_special_tokens=False).ids for text in pair)
        if found.ids(first, second) != whole.ids or found.type_ids(len(first), len(second)) != whole.type_ids:
            return None
    return found


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
        self.layout = layout_of(self._tokenizer.whole)
        if self.layout is None:
            tell(log, "pairs not shared", model=folder)

    def check(self, folder: Path) -> None:
        """Raises ModelError where nothing tells the two texts apart: for models that read both as one."""
        self._tokenizer.check_pairs(folder)

    def prepare(self, columns: Sequence[pa.Array]) -> Prepared:
        """See `Adapter.prepare`. A pair that is too long loses tokens of its longer text first."""
        if self.layout is None:
            encoded = encode_rows(self._tokenizer, columns)
            return encoded.prepared(Ragged.of(encoded.encodings, types=self._types))
        rows, texts, bad = sound_rows(columns)
        recipe, tokenizer, layout = self.recipe, self._tokenizer, self.layout
        shaped = [(tokenizer.shape(query), tokenizer.shape(document, second=True)) for query, document in texts]
        reject, left = recipe.long_text == "reject", recipe.truncation_side == "left"
        queries = tokenizer.plain(dict.fromkeys(query for query, _ in shaped))
        documents = tokenizer.plain(dict.fromkeys(text for _, text in shaped), beginnings=not reject and not left)
        room = recipe.max_tokens - layout.special
        made: list[Item] = []
        for row, (query, document) in zip(rows, shaped, strict=True):
            first, second = queries[query], documents[document]
            if len(first) > room < len(second):  # which is the longer one counts
                second = documents[document] = tokenizer.plain([document])[document]
            total = len(first) + len(second) + layout.special
            if not total:
                bad[row] = NO_TOKENS
            elif reject and total > recipe.max_tokens:
                bad[row] = too_long(total, recipe.max_tokens)
            else:
                one, two = cut_longest(len(first), len(second), room)
                types = layout.type_ids(one, two) if self._types else []
                kept = (first[len(first) - one :], second[len(second) - two :]) if left else (first[:one], second[:two])
                made.append((row, layout.ids(*kept), total > recipe.max_tokens, types))
        return _prepared(made, bad, self._tokenizer, self._types)


class TemplateTexts:
    """Pairs inside the pieces of a template, for language models: of a long one the document is cut, from its end."""

    def __init__(self, folder: Path, recipe: Recipe, *, types: bool = False) -> None:
        """Raises ModelError as TextTokenizer does, and if the template leaves no room for a pair."""
        self.recipe, self._tokenizer = recipe, TextTokenizer(folder, recipe)
        plain = self._tokenizer.plain(recipe.template)
        self._fixed = {one: ids for one, ids in plain.items() if QUERY not in one and DOCUMENT not in one}
        self._tail = next(self._tail_of(piece) for piece in recipe.template if DOCUMENT in piece)
        empty = [_fill(piece, "", "") for piece in recipe.template]
        known = self._tokenizer.plain(empty)
        least = sum(len(known[piece]) for piece in empty)
        if least + 2 > recipe.max_tokens:
            raise ModelError(f"{recipe.max_tokens} tokens leave no room for a pair: the template alone takes {least}")

    def _tail_of(self, piece: str) -> list[int]:
        """Tokens after the document that do not depend on it, as sentence-transformers finds them: in common to two fillers."""
        if piece.endswith(DOCUMENT):
            return []
        one, two = self._tokenizer.plain(_fill(piece, filler, filler) for filler in ("0", "1 2 3 4")).values()
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(two), strict=False))
        return [id for id, _ in same][::-1]

    def prepare(self, columns: Sequence[pa.Array]) -> Prepared:
        """See `Adapter.prepare`."""
        rows, texts, bad = sound_rows(columns)
        reject, limit, template = self.recipe.long_text == "reject", self.recipe.max_tokens, self.recipe.template
        filled = [[_fill(piece, *pair) for piece in template] for pair in texts]
        known: dict[str, list[int]] = {}
        for long in (False, True):  # those with the document
            places = [n for n, one in enumerate(template) if one not in self._fixed and (DOCUMENT in one) == long]
            wanted = dict.fromkeys(pieces[n] for pieces in filled for n in places)
            known |= self._tokenizer.plain(wanted, beginnings=long and not reject)
        known |= self._fixed
        made: list[Item] = []
        for row, pair, pieces in zip(rows, texts, filled, strict=True):
            total = sum(len(known[text]) for text in pieces)
            if reject and total > limit:
                bad[row] = too_long(total, limit)
            elif total <= limit:
                made.append((row, list(itertools.chain.from_iterable(known[text] for text in pieces)), False, []))
            elif (ids := self._cut(pair, pieces, known)) is None:
                bad[row] = NO_ROOM
            else:
                made.append((row, ids, True, []))
        return _prepared(made, bad, self._tokenizer, False)

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


def _prepared(made: list[Item], bad: Bad, tokenizer: TextTokenizer, types: bool) -> Prepared:
    refused = [tokenizer.refusal(ids) for _, ids, _, _ in made]
    bad |= {row: reason for (row, *_), reason in zip(made, refused, strict=True) if reason}
    made = [one for one, reason in zip(made, refused, strict=True) if not reason]
    ragged = Ragged.joined([ids for _, ids, _, _ in made], [kinds for *_, kinds in made] if types else None)
    rows, cut = np.array([row for row, *_ in made], np.int32), np.array([cut for *_, cut, _ in made], bool)
    return Prepared(rows, ragged.lengths, {"ragged": ragged}, bad, cut)
