"""The tokenizer of a checkpoint under a recipe: prompts, truncation from either side, and what is refused before any row is read.

Uses the checkpoint's `tokenizer.json` through the `tokenizers` library alone: no torch, no transformers.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from tokenizers import AddedToken, Encoding, Tokenizer

from ..config.errors import ModelError
from ..config.recipe import Recipe
from ..config.templates import DOCUMENT, QUERY
from ..config.weights import token_rows


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """A text that lost its beginning, with the fields of an Encoding that are read here."""

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]
    overflowing: list[list[int]]  # ids that were cut off, as far as they were looked at

    def __len__(self) -> int:
        return len(self.ids)


Tokenised = Encoding | Ending

# A beginning of so many characters a token holds the limit several times over in any language (English has 4-5 a token).
CHARACTERS_A_TOKEN = 32
MARGIN_TOKENS = 64
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")
NO_TOKENS = ("empty-text", "the tokenizer finds no token in the text")
MOST_CUTS = 8  # limits for which a tokenizer is kept, when no recipe has it any more
SAMPLE = "a"  # shows which special tokens stand before a text


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


class _Files:
    """A tokenizer.json as it was read once for all recipes that read it alike: with 250,000 tokens it takes some 100 MB."""

    def __init__(self, path: Path, markers: Sequence[str], *, needed: bool) -> None:
        """Raises ModelError."""
        try:
            self.whole = Tokenizer.from_file(str(path))  # neither cuts nor pads
        except Exception as error:  # the library raises plain Exception for every kind of damage, and for no file
            raise ModelError(f"{path} cannot be read: {error}") from error
        self.whole.no_padding()
        self.whole.no_truncation()
        self._cuts: dict[tuple[int, str], Tokenizer] = {}
        # Markers that the tokenizer would cut into pieces become tokens. Stanford's are a must, PyLate's may be plain text.
        for marker in markers:
            token = next((one for one in (marker, marker.strip()) if self.whole.token_to_id(one) is not None), None)
            if token is None and needed:
                raise ModelError(f"{path} has no token {marker.strip()!r}, with which the model's texts begin")
            if token is not None and self.whole.encode(token, add_special_tokens=False).tokens != [token]:
                self.whole.add_special_tokens([AddedToken(token, normalized=False, special=True)])

    def cut(self, tokens: int, side: str) -> Tokenizer:
        """The one that truncates to so many; of pairs the longer text first, as the reference does."""
        made = self._cuts.get((tokens, side))
        if made is None:
            made = Tokenizer.from_str(self.whole.to_str())
            made.enable_truncation(tokens, direction=side)
            if len(self._cuts) >= MOST_CUTS:
                self._cuts.pop(next(iter(self._cuts)), None)
            self._cuts[tokens, side] = made
        return made


_READ: WeakValueDictionary[tuple[object, ...], _Files] = WeakValueDictionary()  # as long as a recipe's tokenizer has it


def _files(path: Path, recipe: Recipe) -> _Files:
    needed = recipe.token_modules == ("model.safetensors",)
    try:
        state = path.stat()
        key = (path.resolve(), state.st_mtime_ns, state.st_size, recipe.markers, needed)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    found = _READ.get(key)
    if found is None:  # two threads at once read it twice, and one of the two is soon forgotten
        found = _READ[key] = _Files(path, recipe.markers, needed=needed)
    return found


class TextTokenizer:
    """The tokenizer of one checkpoint under one recipe. Threads may share it."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        """Raises ModelError if the checkpoint has no usable tokenizer.json, or the prompt leaves no room."""
        path = folder / "tokenizer.json"
        self.recipe, self._files = recipe, _files(path, recipe)
        self.whole, self._cut = self._files.whole, self._files.cut(recipe.max_tokens, recipe.truncation_side)
        self._rowless = self._without_rows(path)
        self._special = recipe.architecture not in ("static", "idf")  # a table has no row for what begins a text
        if recipe.truncation_side == "left" and recipe.task == "score" and recipe.prompt:
            raise ModelError("truncation_side: left would cut the prompt of a pair off; use right")
        alone = self._encode(self.shape(""))
        self.overhead = len(alone)  # prompt and special tokens
        self._head = alone if recipe.prompt else self._encode(SAMPLE)
        marks = self._head.special_tokens_mask
        # Tokens that a prompt puts before a text, a leading special token included (as sentence-transformers counts).
        self.prompt_tokens = len(alone) - sum(marks[-1:]) if recipe.prompt else 0
        self._head_tokens = self.prompt_tokens or next((n for n, mark in enumerate(marks) if not mark), 0)
        self._check_special(path, self._head)
        self._check_rows(path)
        if recipe.pooling == "cls" and not marks[:1] == [1]:
            raise ModelError(
                f"{path} puts no special token (CLS) before a text, and the vector of this model (pooling cls) is that token's; "
                "save the tokenizer with one, or the model with another pooling"
            )
        limit = (recipe.chunk_tokens if recipe.long_text == "chunk" else 0) or recipe.max_tokens
        pair = self.whole.num_special_tokens_to_add(True) + 1 if recipe.task == "score" else 0
        if limit <= (taken := max(self.overhead, pair)):
            raise ModelError(f"{limit} tokens leave no room for a text: prompt and special tokens take {taken}")

    @property
    def vocabulary(self) -> int:
        """How many token ids there are, added ones included."""
        return self.whole.get_vocab_size()

    def ids_of(self, tokens: Sequence[str], *, all_needed: bool = True) -> list[int]:
        """Their ids. Raises ModelError for one that is none, or leaves it out."""
        found = [self.whole.token_to_id(token) for token in tokens]
        if all_needed and None in found:
            raise ModelError(f"the tokenizer has no token {tokens[found.index(None)]!r}, which the model needs")
        return [one for one in found if one is not None]

    def _without_rows(self, path: Path) -> dict[int, str]:
        """Added tokens, by id, for which the model has no row: a batch with one would fail, or worse.

        Some checkpoints carry such tokens and never use them. Raises ModelError where one belongs to the vocabulary itself.
        """
        rows = token_rows(path.parent)
        own = max(self.whole.get_vocab(with_added_tokens=False).values(), default=-1)
        if rows is not None and own >= rows:
            raise ModelError(
                f"{path} has tokens up to number {own:,}, and the model {rows:,} of them from 0: "
                "the files do not belong together; fetch the model again"
            )
        added = self.whole.get_added_tokens_decoder()
        return {id: str(token) for id, token in added.items() if rows is not None and id >= rows}

    def refusal(self, ids: Sequence[int]) -> tuple[str, str] | None:
        """Why these tokens of a text can be no item, as a reject; None if they can."""
        if not ids:  # "\u200b", where no special tokens are added
            return NO_TOKENS
        if self._rowless and (found := next((id for id in ids if id in self._rowless), None)) is not None:
            what = f"the model has no vector for {self._rowless[found]!r}, token {found:,} of its tokenizer"
            return "unknown-token", what
        return None

    def _check_rows(self, path: Path) -> None:
        """Raises ModelError where the tokenizer or the recipe itself puts a token without a row into every text."""
        recipe = self.recipe
        blank = [piece.replace(QUERY, "").replace(DOCUMENT, "") for piece in recipe.template]
        asked = [self._head.ids, self.whole.encode(SAMPLE, SAMPLE, add_special_tokens=self._special).ids]
        asked += [self.whole.encode(text, add_special_tokens=False).ids for text in blank]
        asked.append(self.ids_of([recipe.expand_with], all_needed=False))
        for id in itertools.chain.from_iterable(asked if self._rowless else []):
            if id in self._rowless:
                raise ModelError(
                    f"{path} puts {self._rowless[id]!r} (number {id:,}) into every text, a token for which the model has no vector: the "
                    "files do not belong together; fetch the model again"
                )

    def check_pairs(self, folder: Path) -> None:
        """Raises ModelError where nothing would tell the two texts of a pair apart: for models that read both as one."""
        path, pair = folder / "tokenizer.json", self.whole.encode(SAMPLE, SAMPLE)
        self._check_special(path, pair)
        if not any(pair.special_tokens_mask[1:-1]):
            raise ModelError(
                f"{path} puts no special token (SEP) between the texts of a pair; save the tokenizer with the template of its model"
            )

    def _check_special(self, path: Path, encoding: Encoding) -> None:
        """Raises ModelError if the tokenizer adds special tokens that its vocabulary does not have."""
        for id, token, mark in zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, strict=True):
            if mark and self.whole.id_to_token(id) != token:
                known = self.whole.token_to_id(token)
                raise ModelError(
                    f"{path}: its template adds {token!r} as number {id}, which in its vocabulary is "
                    f"{self.whole.id_to_token(id)!r} ({token!r} is {'missing' if known is None else f'number {known}'}); save the "
                    "tokenizer again as transformers saves it"
                )

    def shape(self, text: str, *, second: bool = False) -> str:
        """The text as the tokenizer sees it: lower-cased if the checkpoint wants that, and after the prompt, unless it is the
        `second` of a pair."""
        text = text if second else self.recipe.prompt + text
        return text.lower() if self.recipe.lower_case else text

    def encode(self, texts: Sequence[str] | Sequence[tuple[str, str]], *, cut: bool) -> Sequence[Tokenised]:
        """Encodings with special tokens, truncated to the recipe's max_tokens if `cut`; texts come as `shape` gives them.

        Of single texts far above the limit only the beginning (or ending) is looked at, where that gives the same tokens: the
        rest of a book takes seconds to tokenise, and the device would wait for it.
        """
        if not cut:
            return self.whole.encode_batch(texts, add_special_tokens=self._special)
        if self.recipe.truncation_side == "left" and all(isinstance(text, str) for text in texts):
            parts, found = self._partly(self.whole, texts, _ending, self._special)
            return [
                self._ending_of(one, len(text) - len(part)) if len(one) > self.recipe.max_tokens else one
                for text, part, one in zip(texts, parts, found, strict=True)
            ]
        return self._partly(self._cut, texts, _beginning, self._special)[1]

    def plain(self, texts: Iterable[str], *, beginnings: bool = False) -> dict[str, list[int]]:
        """Token ids of each text as it stands, without special tokens; with `beginnings`, of far too long ones only the first.

        Those are right up to max_tokens, and go on beyond.
        """
        wanted = list(texts)
        if beginnings:
            found = self._partly(self.whole, wanted, _beginning, False)[1]
        else:
            found = self.whole.encode_batch(wanted, add_special_tokens=False)
        return {text: encoding.ids for text, encoding in zip(wanted, found, strict=True)}

    def _partly(
        self, tokenizer: Tokenizer, texts: Sequence[Any], shorten: Callable[[str, int], str], special: bool
    ) -> tuple[list[Any], list[Encoding]]:
        """What was looked at of each text, and its encoding: a part that `shorten` gives, or all of it where that was too little.

        It is enough if none of the tokens that are kept can have seen where the text was cut. Pairs are never shortened.
        """
        limit = self.recipe.max_tokens
        parts = [shorten(text, limit) if isinstance(text, str) else text for text in texts]
        found = tokenizer.encode_batch(parts, add_special_tokens=special)
        for place, (text, part) in enumerate(zip(texts, parts, strict=True)):
            if len(part) == len(text):
                continue
            beyond = sum(map(len, found[place].overflowing)) if tokenizer is self._cut else len(found[place]) - limit
            if beyond < MARGIN_TOKENS:
                parts[place], found[place] = text, tokenizer.encode(text, add_special_tokens=special)
        return parts, found

    def _ending_of(self, whole: Encoding, shift: int) -> Ending:
        """The last tokens of an encoding above the limit, which begins `shift` characters into its text.

        Special tokens stay, and so does the prompt, as it is tokenised alone.
        """
        head, kept = self._head, self._head_tokens
        first = len(whole) - (self.recipe.max_tokens - kept)
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

    def _encode(self, text: str) -> Encoding:
        return self.whole.encode(text, add_special_tokens=self._special)

    def starts(self, text: str) -> list[int]:
        """The first character of each token of a text at any length, never falling; no prompt, no special tokens."""
        offsets = self.whole.encode(self.shape(text, second=True), add_special_tokens=False).offsets
        return list(itertools.accumulate((start for start, _ in offsets), max))
