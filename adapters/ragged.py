"""Items of different lengths, end to end in one array. NumPy alone; knows nothing of texts or models."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def offsets_of(lengths: np.ndarray | Sequence[int]) -> np.ndarray:
    """Where each item begins, and where the last one ends: int64 (items + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def stretches(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index that takes stretches of an array one after the other, int64 (total,), and their offsets in what it gives."""
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1]), offsets


@dataclasses.dataclass(frozen=True, slots=True)
class Ragged:
    """The tokens of some items: item i has tokens `offsets[i]:offsets[i + 1]`."""

    tokens: np.ndarray  # int32 (tokens,)
    offsets: np.ndarray  # int64 (items + 1,)
    types: np.ndarray | None = None  # int32 (tokens,): 0 for the first text of a pair, 1 for the second

    @classmethod
    def of(cls, encodings: Sequence[Any], *, types: bool = False) -> Ragged:
        """The items of encodings, as the tokenizers library gives them."""
        return cls.joined([one.ids for one in encodings], [one.type_ids for one in encodings] if types else None)

    @classmethod
    def joined(cls, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> Ragged:
        offsets = offsets_of([len(one) for one in ids])
        return cls(_flat(ids, offsets[-1]), offsets, None if types is None else _flat(types, offsets[-1]))

    def take(self, items: np.ndarray) -> Ragged:
        """The given items (int64), in the order given."""
        starts = self.offsets[items]
        index, offsets = stretches(starts, self.offsets[items + 1] - starts)
        return Ragged(self.tokens[index], offsets, None if self.types is None else self.types[index])

    def filled(self, length: int, token: int) -> Ragged:
        """The items, those that are shorter filled up with `token`."""
        offsets = offsets_of(np.maximum(self.lengths, length))
        tokens = np.full(offsets[-1], token, np.int32)
        tokens[stretches(offsets[:-1], self.lengths)[0]] = self.tokens
        return Ragged(tokens, offsets)

    @property
    def lengths(self) -> np.ndarray:
        """int64 (items,)."""
        return np.diff(self.offsets)


def concatenate(parts: Sequence[Ragged]) -> Ragged:
    """The items of all parts, one after the other."""
    lengths = np.concatenate([part.lengths for part in parts])
    types = None if parts[0].types is None else np.concatenate([part.types for part in parts if part.types is not None])
    return Ragged(np.concatenate([part.tokens for part in parts]), offsets_of(lengths), types)


def _flat(lists: Iterable[Sequence[int]], total: int) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(lists), np.int32, int(total))
