"""Cuts a long text into chunks of a bounded number of tokens, at the borders a reader would choose. Pure.

Positions are characters. A chunk's tokens are counted by encoding its own text, because a tokenizer may cut
the same words differently without their neighbours.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence

PARAGRAPH, SENTENCE, SPACE, ANYWHERE = 3, 2, 1, 0
_SENTENCE_ENDS = frozenset(".!?\u2026\u3002\uff01\uff1f")  # with the ellipsis and the full-width forms
_CLOSING = frozenset("\"')]}\u00bb\u201d\u2019")


def cut(
    text: str, starts: Sequence[int], limit: int, overlap: int, excess: Callable[[int, int], int]
) -> list[tuple[int, int]]:
    """Character spans (start, end) of chunks that cover all of `text` but white space between and around them.

    starts: the first character of each token of the whole text, never falling; limit: tokens per chunk;
    overlap: tokens that neighbours share, at most half the limit; excess(start, end): by how many tokens that
    span, encoded alone, is above the limit (0 or less: it fits). A span that cannot be made smaller (one
    character that is many tokens) is given as it is. Spans begin and end later than the one before.
    """
    if limit < 1 or not 0 <= overlap <= limit // 2:
        raise ValueError(f"limit {limit} must be positive and overlap {overlap} at most half of it")
    places = _Places(text, starts)
    first = covered = 0
    spans: list[tuple[int, int]] = []
    while first < places.count:
        stop = places.at_token(places.tokens[first] + limit, first)
        while True:
            last = _best_end(places, first, stop)
            span = places.span(first, last)
            over = excess(*span)
            if over <= 0 or last == first + 1:
                break
            stop = min(last - 1, places.at_token(places.tokens[last] - over, first))
        if last <= covered:
            first = covered  # all of it is overlap: give the overlap up
            continue
        spans.append(span)
        if last == places.count:
            break
        covered = last
        first = max(first + 1, _next_start(places, last, overlap))
    return spans


class _Places:
    """Where a chunk may begin or end: tokens that begin at a character no earlier token began at, white space skipped.

    Place `count` is the text's end. Tokens of one character (bytes of an emoji) are kept together, and so is
    white space that is a token with what follows it.
    """

    def __init__(self, text: str, starts: Sequence[int]) -> None:
        self.text = text
        self.tokens: list[int] = []
        self._chars: list[int] = []
        at, reached = 0, -1
        for token, start in enumerate(starts):
            at = max(at, start)
            while at < len(text) and text[at].isspace():
                at += 1
            if reached < at < len(text):
                self._chars.append(at)
                self.tokens.append(token)
                reached = at
        if text.strip():
            # What lies before the first token (dropped by the tokenizer), or all if there is none, belongs to the first chunk.
            self._chars[:1], self.tokens[:1] = [len(text) - len(text.lstrip())], [0]
        self.count = len(self.tokens)
        self.tokens.append(len(starts))
        self._chars.append(len(text))

    def at_token(self, token: int, after: int) -> int:
        """The last place that begins at or before `token`, but later than the place `after`."""
        return max(after + 1, bisect_right(self.tokens, token) - 1)

    def span(self, first: int, last: int) -> tuple[int, int]:
        start, end = self._chars[first], self._chars[last]
        while end > start and self.text[end - 1].isspace():
            end -= 1
        return start, end

    def rank(self, place: int) -> int:
        """What kind of border lies before a place."""
        text, at = self.text, self._chars[place]
        left = at
        while left > 0 and text[left - 1].isspace():
            left -= 1
        if left == at:
            return ANYWHERE
        if text.count("\n", left, at) > 1:
            return PARAGRAPH
        before = left - 1
        while before > 0 and text[before] in _CLOSING:
            before -= 1
        return SENTENCE if before >= 0 and text[before] in _SENTENCE_ENDS else SPACE


def _best_end(places: _Places, first: int, stop: int) -> int:
    """The best place to end in the second half of (first, stop]: highest rank, then latest. The text's end wins."""
    if stop == places.count:
        return stop
    found, rank = stop, places.rank(stop)
    for place in range(stop - 1, first + (stop - first) // 2, -1):
        if rank == PARAGRAPH:
            break
        if places.rank(place) > rank:
            found, rank = place, places.rank(place)
    return found


def _next_start(places: _Places, last: int, overlap: int) -> int:
    """Where the next chunk begins: up to `overlap` tokens before `last`, at the highest rank, then the earliest."""
    least = places.tokens[last] - overlap
    near = itertools.takewhile(lambda place: places.tokens[place] >= least, range(last - 1, 0, -1))
    return max(near, key=lambda place: (places.rank(place), -place), default=last)
