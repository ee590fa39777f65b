"""How messages put what they count into words."""

from __future__ import annotations


def counted(count: int, noun: str, *, of: int | None = None) -> str:
    """`1 row`, `12,000 rows`; with `of`, what there is in all: `1 of 12,000 rows`."""
    share = "" if of is None else f"{count:,} of "
    whole = count if of is None else of
    return f"{share}{whole:,} {noun}" if whole == 1 else f"{share}{whole:,} {noun}s"
