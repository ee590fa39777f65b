"""Cuts a long text into chunks of a bounded number of tokens, at the borders a reader would choose. Pure.

Positions are characters. A chunk's tokens are counted by encoding its own text, because a tokenizer may cut
the same words differently without their neighbours.
"""

from __future__ import annotations

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
    edges = [0] + [n for n in range(1, len(starts)) if starts[n] > starts[n - 1]]  # tokens that begin a new character
    if not edges or len(starts) <= limit:
        whole = _trim(text, 0, len(text))
        if excess(*whole) <= 0 or len(edges) < 2:
            return [whole] if whole[0] < whole[1] else []
    first = 0  # places in `edges`
    covered = 0  # where the chunk before ended
    spans: list[tuple[int, int]] = []
    while first < len(edges):
        stop = _furthest(edges, first, edges[first] + limit, len(starts))
        while True:
            last = _best(text, starts, edges, first, stop)
            span = _trim(text, _char(text, starts, edges, first), _char(text, starts, edges, last))
            over = excess(*span) if span[0] < span[1] else 0
            if over <= 0 or last == first + 1:
                break
            stop = max(
                first + 1, min(last - 1, _furthest(edges, first, _token(edges, last, len(starts)) - over, len(starts)))
            )
        if last <= covered:  # all of it is overlap: give the overlap up
            first = covered
            continue
        if span[0] < span[1]:
            spans.append(span)
        covered = last
        if last >= len(edges):
            break
        first = max(first + 1, _resume(text, starts, edges, last, overlap))
    return spans


def _token(edges: list[int], place: int, tokens: int) -> int:
    return edges[place] if place < len(edges) else tokens


def _char(text: str, starts: Sequence[int], edges: list[int], place: int) -> int:
    """Character where a place begins; the text's two ends belong to the first and last chunk."""
    if place == 0:
        return 0
    return starts[edges[place]] if place < len(edges) else len(text)


def _furthest(edges: list[int], first: int, token: int, tokens: int) -> int:
    """The last place that begins at or before `token`, but after `first`."""
    if token >= tokens:
        return len(edges)
    return max(first + 1, bisect_right(edges, token) - 1)


def _best(text: str, starts: Sequence[int], edges: list[int], first: int, stop: int) -> int:
    """The best place to end in the second half of (first, stop]: highest rank, then latest. The text's end wins."""
    if stop >= len(edges):
        return stop
    found, rank = stop, _rank(text, starts[edges[stop]])
    for place in range(stop - 1, first + (stop - first) // 2, -1):
        if rank == PARAGRAPH:
            break
        this = _rank(text, starts[edges[place]])
        if this > rank:
            found, rank = place, this
    return found


def _resume(text: str, starts: Sequence[int], edges: list[int], last: int, overlap: int) -> int:
    """Where the next chunk begins: up to `overlap` tokens before `last`, at the highest rank, then the earliest."""
    if overlap == 0:
        return last
    found, rank = last, ANYWHERE - 1
    place = last - 1
    while place > 0 and edges[last] - edges[place] <= overlap:
        this = _rank(text, starts[edges[place]])
        if this >= rank:
            found, rank = place, this
        place -= 1
    return found


def _rank(text: str, at: int) -> int:
    """What kind of border lies at a character: white space may be before it, or belong to the token that begins there."""
    left = at
    while left > 0 and text[left - 1].isspace():
        left -= 1
    right = at
    while right < len(text) and text[right].isspace():
        right += 1
    if left == right:
        return ANYWHERE
    if text.count("\n", left, right) > 1:
        return PARAGRAPH
    before = left - 1
    while before > 0 and text[before] in _CLOSING:
        before -= 1
    return SENTENCE if before >= 0 and text[before] in _SENTENCE_ENDS else SPACE


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
