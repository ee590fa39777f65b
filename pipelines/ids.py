"""Row ids: made from where a row stands and what it says, and the scan for ids that come twice. Reads no files itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa

from .records import Shard

# Ids of some rows (string or int64, no nulls) and their ordinals in the shard.
IdBatch = tuple[pa.Array, np.ndarray]

_RNG = np.random.default_rng(0x1AD1)
_LETTERS = _RNG.integers(0, 2**64, 256, np.uint64)  # a random number for each byte value
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)


def row_ids(paths: list[str] | str, positions: np.ndarray, texts: list[pa.Array]) -> pa.StringArray:
    """32 hex digits per row: BLAKE2b-128 over the input's path, the row's position and its texts.

    The same whatever the shards; lengths go in too, so that ("ab", "c") and ("a", "bc") differ.
    """
    columns = [text.cast(pa.binary()).to_pylist() for text in texts]
    places = np.ascontiguousarray(positions, "<i8").tobytes()
    seeds = {
        path: hashlib.blake2b(path.encode(), digest_size=16)
        for path in ([paths] if isinstance(paths, str) else set(paths))
    }
    ids: list[str] = []
    for row in range(len(positions)):
        digest = seeds[paths if isinstance(paths, str) else paths[row]].copy()
        digest.update(b"\0" + places[8 * row : 8 * row + 8])
        for column in columns:
            value = column[row]
            digest.update(b"\xff" * 8 if value is None else len(value).to_bytes(8, "little") + value)
        ids.append(digest.hexdigest())
    return pa.array(ids, pa.string())


def id_hashes(ids: pa.Array) -> np.ndarray:
    """uint64 (rows,): equal ids have equal hashes; integers are their own. Vectorised over Arrow's buffers.

    A string's hash is sum(letter[byte] * base**place) modulo 2**64, taken from one running sum over all bytes.
    """
    if pa.types.is_integer(ids.type):
        return ids.to_numpy(zero_copy_only=False).astype(np.int64, copy=False).view(np.uint64)
    _, offsets, content = ids.buffers()
    bounds = (
        np.frombuffer(offsets, np.int32, len(ids) + 1, 4 * ids.offset).astype(np.int64)
        if len(ids)
        else np.zeros(1, np.int64)
    )
    first, last = int(bounds[0]), int(bounds[-1])
    letters = np.frombuffer(content, np.uint8, last - first, first) if last > first else np.empty(0, np.uint8)
    bounds -= first
    sums = np.zeros(len(letters) + 1, np.uint64)
    np.cumsum(_LETTERS[letters] * _powers(_BASE, len(letters)), out=sums[1:])
    starts, stops = bounds[:-1], bounds[1:]
    inverse = _powers(_INVERSE, len(letters) + 1)
    return (sums[stops] - sums[starts]) * inverse[starts] + (stops - starts).astype(np.uint64) * _LETTERS[0]


def _powers(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)


def find_duplicates(shards: list[Shard], read: Callable[[Shard], Iterable[IdBatch]]) -> dict[int, np.ndarray]:
    """Shard number -> ordinals (int64, rising) of rows whose id an earlier row has; shards without any left out.

    Memory: 16 bytes per row at most, plus the ids that do come twice. `read` is called once for every shard, then
    again for those with an id whose hash comes twice, where ids are compared exactly.
    """
    by_shard = {shard.number: _joined(id_hashes(ids) for ids, _ in read(shard)) for shard in shards}
    every = np.concatenate(list(by_shard.values())) if by_shard else np.empty(0, np.uint64)
    every.sort()
    twice = np.unique(every[1:][every[1:] == every[:-1]])
    del every
    if not len(twice):
        return {}
    seen: set[str | int] = set()
    losers: dict[int, np.ndarray] = {}
    for shard in shards:
        if not _among(by_shard.pop(shard.number), twice).any():
            continue
        lost = list(_later(read(shard), twice, seen))
        if lost:
            losers[shard.number] = np.array(lost, np.int64)
    return losers


def _later(batches: Iterable[IdBatch], twice: np.ndarray, seen: set[str | int]) -> Iterator[int]:
    for ids, ordinals in batches:
        suspect = _among(id_hashes(ids), twice)
        for id, ordinal in zip(ids.filter(pa.array(suspect)).to_pylist(), ordinals[suspect].tolist(), strict=True):
            if id in seen:
                yield ordinal
            seen.add(id)


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _among(hashes: np.ndarray, twice: np.ndarray) -> np.ndarray:
    places = np.searchsorted(twice, hashes)
    return twice[np.minimum(places, len(twice) - 1)] == hashes
