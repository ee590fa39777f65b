"""Which attempts at a shard count, and the arithmetic over them. Pure: receipts and openings in, counts out.

A generation is one pass over a shard or over some of its rows. Generation 0 covers the shard; a later one is
opened for rows that an earlier one could not finish, and names it. Generations add, they never rewrite: at any
time each row of the shard belongs to exactly one generation that counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from ..config.errors import LadingError
from .records import RETRYABLE, Receipt, Shard

Pair = tuple[int, int]  # (shard, generation)


@dataclasses.dataclass(frozen=True, slots=True)
class Opening:
    """Why a generation above 0 exists, and the rows it covers."""

    why: str  # failed | void: it stands in for generation `of`; rejects: it takes some rejects over from it
    of: int
    ordinals: tuple[int, ...] | None  # None: all rows of the shard
    codes: dict[str, int]  # rejects: what those rows count as in the generation they come from


@dataclasses.dataclass(slots=True)
class Segment:
    """A generation that counts for its shard."""

    generation: int
    receipt: Receipt | None  # None: still to be done
    scope: tuple[int, ...] | None  # ordinals covered; None: all rows
    taken: Opening | None = None  # rejects that a later generation took over

    @property
    def taken_ordinals(self) -> frozenset[int]:
        return frozenset(self.taken.ordinals or ()) if self.taken else frozenset()

    @property
    def kept(self) -> tuple[int, ...] | None:
        """The rows that are still this generation's, which whatever stands in for it must cover: None is all of the shard."""
        if self.taken is None:
            return self.scope
        assert self.receipt is not None  # or it would have no rejects to take
        rows = range(self.receipt.rows_in) if self.scope is None else self.scope
        return tuple(row for row in rows if row not in self.taken_ordinals)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counts over the receipts that count, in input rows but for `rows_out`."""

    rows_in: int = 0  # == done + rejected + failed
    done: int = 0
    rejected: int = 0
    failed: int = 0  # in failed shards, as far as the plan knows their rows
    remaining: int = 0  # in shards and reopened generations without a receipt, as far as the plan knows
    rows_out: int = 0
    truncated: int = 0
    tokens: int = 0
    rejects: dict[str, int] = dataclasses.field(default_factory=dict)  # code -> rows
    shards: int = 0
    shards_done: int = 0
    shards_failed: int = 0
    failure: str = ""  # the first failed shard's reason

    @property
    def retryable(self) -> int:
        """Rejected rows that another attempt may save: while there are any, a finished job is left open for `lading retry`."""
        return sum(self.rejects.get(code, 0) for code in RETRYABLE)


def segments(shard: int, receipts: Mapping[Pair, Receipt], openings: Mapping[Pair, Opening]) -> list[Segment]:
    """The generations of a shard that count, oldest first; at least one."""
    counting = {0: Segment(0, receipts.get((shard, 0)), None)}
    generation = 1
    while opening := openings.get((shard, generation)):
        if opening.why == "rejects":
            counting[opening.of].taken = opening
        else:
            del counting[opening.of]
        counting[generation] = Segment(generation, receipts.get((shard, generation)), opening.ordinals)
        generation += 1
    return list(counting.values())


def total(shards: Iterable[tuple[Shard, list[Segment]]]) -> Totals:
    """Sum up. Raises LadingError, naming shard and generation, for a receipt that does not balance."""
    count = {field.name: 0 for field in dataclasses.fields(Totals) if field.type == "int"}
    codes: dict[str, int] = {}
    failure = ""
    for shard, counting in shards:
        count["shards"] += 1
        ends = {segment.receipt.status if segment.receipt else "open" for segment in counting}
        count["shards_done"] += ends == {"done"}
        count["shards_failed"] += "failed" in ends
        for segment in counting:
            receipt = segment.receipt
            known = (shard.rows or 0) if segment.scope is None else len(segment.scope)
            if receipt is None:
                count["remaining"] += known
                continue
            if receipt.status == "failed":
                failure = failure or f"shard {receipt.shard}: {receipt.reason}"
                count["failed"] += known
                count["rows_in"] += known
                continue
            _check_balance(receipt, segment)
            taken = len(segment.taken_ordinals)
            count["rows_in"] += receipt.rows_in - taken
            count["done"] += receipt.rows_done
            count["rejected"] += receipt.rejected - taken
            count["rows_out"] += receipt.rows_out
            count["truncated"] += receipt.truncated
            count["tokens"] += receipt.tokens
            for code, rows in receipt.rejects.items():
                codes[code] = codes.get(code, 0) + rows - (segment.taken.codes.get(code, 0) if segment.taken else 0)
    totals = Totals(**count, rejects={code: rows for code, rows in codes.items() if rows}, failure=failure)
    if totals.rows_in != totals.done + totals.rejected + totals.failed or totals.rejected != sum(
        totals.rejects.values()
    ):
        raise LadingError(f"the receipts do not balance: {totals}; this is a bug, please report it")
    return totals


def _check_balance(receipt: Receipt, segment: Segment) -> None:
    fault = ""
    if receipt.rows_in != receipt.rows_done + receipt.rejected:
        fault = f"{receipt.rows_in} rows in, but {receipt.rows_done} done and {receipt.rejected} rejected"
    elif receipt.rejected != sum(receipt.rejects.values()):
        fault = f"{receipt.rejected} rows rejected, but by reason {receipt.rejects}"
    elif segment.scope is not None and receipt.rows_in != len(segment.scope):
        fault = f"{receipt.rows_in} rows in, but the generation covers {len(segment.scope)}"
    if fault:
        where = f"job {receipt.job}, shard {receipt.shard}, generation {receipt.generation}"
        raise LadingError(f"{where}: the receipt does not balance: {fault}; this is a bug, please report it")
