"""Rows on their way through the engine: from read to a finished shard. Knows Arrow, neither models nor files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from ..adapters.contract import Adapter, Outputs, Prepared
from ..pipelines.manifest import Work
from ..pipelines.records import Receipt, Reject, Rows

# Of a shard's seconds: in the streams of the device, added up, and of the device's time, all its streams together.
STAGES = ("read", "prepare", "run", "device")


class Task(Protocol):
    """A shard to do, as the engine sees it."""

    @property
    def work(self) -> Work: ...

    @property
    def texts(self) -> list[str]:
        """Source columns given to the adapter, in its order."""
        ...

    @property
    def at_hand(self) -> bool:
        """Whether asking for the adapter takes no time."""
        ...

    @property
    def adapter(self) -> Adapter:
        """Able to prepare. Asking may load its model, in the reading thread. Raises ShardError."""
        ...

    def read(self) -> Iterator[Rows]:
        """Raises ShardError."""
        ...

    def begin(self) -> None:
        """Told before the first of its rows is on the device."""
        ...


@dataclasses.dataclass(slots=True)
class Items:
    """Prepared items of one adapter that share batches with others; complete when every item has its result."""

    adapter: Adapter
    prepared: Prepared
    missing: int
    done: list[tuple[np.ndarray, pa.RecordBatch]] = dataclasses.field(default_factory=list)
    failed: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)  # item -> (reject code, detail)

    @property
    def rows_per_item(self) -> float:
        return 1.0

    def take(self, items: np.ndarray, results: pa.RecordBatch) -> None:
        """Results of some items, in the order of `items`."""
        self.done.append((items, results))
        self.missing -= len(items)

    def fail(self, item: int, code: str, detail: str) -> None:
        """An item that will get no result."""
        self.failed[item] = (code, detail)
        self.missing -= 1


@dataclasses.dataclass(slots=True, kw_only=True)
class Part(Items):
    """One `Rows` of a shard with its items."""

    shard: ShardInFlight
    rows: Rows

    @property
    def rows_per_item(self) -> float:
        rows = self.rows.batch.num_rows - len(self.prepared.bad)
        return rows / len(self.prepared.rows) if len(self.prepared.rows) else 0.0


@dataclasses.dataclass(slots=True)
class ShardInFlight:
    """A shard between its first row read and its marker."""

    task: Task
    parts: list[Part] = dataclasses.field(default_factory=list)
    started: bool = False  # some of its items were on the device
    failure: str = ""
    later: bool = False  # what failed may pass: nothing of the shard counts, and it is to be done again
    tokens: int = 0
    offered: float = 0.0  # this shard's share of its batches' budgets
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @property
    def work(self) -> Work:
        return self.task.work

    def begin(self) -> None:
        """Its first rows go to the device."""
        if not self.started:
            self.task.begin()
            self.started = True

    def needs_s(self) -> float:
        """Seconds until the last of its rows has been on the device, if they take as long as those so far; 0.0 where that cannot be
        said: none has been, or nobody knows how many rows there are."""
        rows = self.work.shard.rows if self.work.ordinals is None else len(self.work.ordinals)
        parts = [part for part in list(self.parts) if len(part.prepared.costs)]
        done = sum(part.rows.count * (1 - part.missing / len(part.prepared.costs)) for part in parts)
        left = (rows or 0) - done
        return self.seconds["device"] / done * left if done and left > 0 else 0.0


Chosen = tuple[Items, np.ndarray]  # some items (int64) of one owner


def cost_of(chosen: list[Chosen]) -> int:
    """What these items take of a batch's budget."""
    return sum(int(part.prepared.costs[items].sum()) for part, items in chosen)


def halves(chosen: list[Chosen]) -> tuple[list[Chosen], list[Chosen]]:
    """The chosen items, at least two, cut in the middle."""
    middle = sum(len(items) for _, items in chosen) // 2
    left: list[Chosen] = []
    right: list[Chosen] = []
    seen = 0
    for part, items in chosen:
        cut = min(max(middle - seen, 0), len(items))
        if cut:
            left.append((part, items[:cut]))
        if cut < len(items):
            right.append((part, items[cut:]))
        seen += len(items)
    return left, right


def split_outputs(parts: list[Chosen], outputs: Outputs) -> None:
    """Hand one batch's results back to where its items came from."""
    start = 0
    for part, items in parts:
        stop = start + len(items)
        bad = [n for n in range(start, stop) if n in outputs.bad] if outputs.bad else []
        if bad:
            for n in bad:
                part.fail(int(items[n - start]), "not-finite", outputs.bad[n])
            good = np.setdiff1d(np.arange(start, stop), bad)
            part.take(items[good - start], outputs.batch.take(pa.array(good)))
        else:
            part.take(items, outputs.batch.slice(start, stop - start))
        start = stop


def part_table(
    part: Part, keep: list[str], text: str, schema: pa.Schema, counts: Sequence[str] = ()
) -> tuple[pa.Table, list[Reject]]:
    """The output rows of a complete part, in reading order, and the rejects among its input rows.

    `counts`: the names of the columns of tokens and truncated, if the job has them.

    A row with several items (chunks) is in the table with all of them, or it is a reject.
    """
    prepared, rows = part.prepared, part.rows
    failed_rows = dict(prepared.bad)
    for item, why in sorted(part.failed.items()):
        failed_rows.setdefault(int(prepared.rows[item]), why)
    rejects = [*rows.bad, *(_reject(part, row, *why) for row, why in failed_rows.items())]
    rejects.sort(key=lambda reject: reject.ordinal)

    order = np.concatenate([items for items, _ in part.done]) if part.done else np.empty(0, np.int64)
    if failed_rows:
        lost = np.isin(prepared.rows[order], np.fromiter(failed_rows, np.int64))
    else:
        lost = np.zeros(len(order), bool)
    places = np.argsort(order, kind="stable")
    places = places[~lost[places]]
    items = order[places]
    if len(items) == 0:
        return schema.empty_table(), rejects
    results = pa.Table.from_batches([batch for _, batch in part.done]).take(pa.array(places)).combine_chunks()
    # Without chunks and rejects every row has its item in its place: nothing to gather.
    source_rows = prepared.rows[items]
    whole = len(items) == rows.batch.num_rows and bool((np.diff(source_rows) == 1).all())
    source = rows.batch if whole else rows.batch.take(pa.array(source_rows))

    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: source.column(name) for name in ("id", *keep)}
    if prepared.extra is not None:
        extra = prepared.extra.take(pa.array(items))
        documents = source.column("id")
        columns["doc_id"] = documents
        numbers = extra.column("chunk").to_pylist()
        columns["id"] = pa.array(
            [f"{doc}#{n}" for doc, n in zip(documents.to_pylist(), numbers, strict=True)], pa.string()
        )
        columns.update({name: extra.column(name) for name in ("chunk", "start", "end")})
        if text in keep:
            columns[text] = extra.column("text")
    if counts:
        columns.update(zip(counts, counts_of(prepared, items), strict=True))
    names = iter(results.column_names)
    result_names = [field.name for field in schema if field.name not in columns]
    for name in result_names:  # the adapter's columns, under the names the job gave them
        columns[name] = results.column(next(names))
    return pa.Table.from_arrays([columns[field.name] for field in schema], schema=schema), rejects


def _reject(part: Part, row: int, code: str, detail: str) -> Reject:
    rows = part.rows
    path = rows.paths if isinstance(rows.paths, str) else rows.paths[row]
    return Reject(
        shard=part.shard.work.shard.number,
        ordinal=int(rows.ordinals[row]),
        input=path,
        position=int(rows.positions[row]),
        id=rows.batch.column("id")[row].as_py(),
        code=code,
        detail=detail,
    )


def covered_ids(shard: ShardInFlight, kind: pa.DataType) -> pa.Array:
    """Ids of all input rows of the shard, rejected ones included: what a replacing job takes out of the table.

    Duplicates and rows without an id are left out: another row has, or none, a claim to be replaced.
    """
    good = [part.rows.batch.column("id") for part in shard.parts]
    unread = [
        reject.id for part in shard.parts for reject in part.rows.bad if reject.code not in ("duplicate-id", "null-id")
    ]
    return pa.concat_arrays([*good, pa.array([id for id in unread if id is not None], kind)])


def counts_of(prepared: Prepared, items: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """Of some items: the tokens that the model saw (int32), and whether each lost some to the limit."""
    return pa.array(prepared.costs[items].astype(np.int32)), pa.array(prepared.cut[items])


def finish(
    shard: ShardInFlight, receipt: Receipt, *, keep: list[str], text: str, schema: pa.Schema, counts: Sequence[str] = ()
) -> tuple[pa.Table, list[Reject], Receipt]:
    """A complete shard's output, its rejects, and `receipt` with what the engine knows of it."""
    tables: list[pa.Table] = []
    rejects: list[Reject] = []
    rows_in = 0
    for part in shard.parts:
        table, bad = part_table(part, keep, text, schema, counts)
        tables.append(table)
        rejects += bad
        rows_in += part.rows.count
    refused: dict[str, int] = {}
    for reject in rejects:
        refused[reject.code] = refused.get(reject.code, 0) + 1
    table = pa.concat_tables(tables).combine_chunks() if tables else schema.empty_table()
    receipt = dataclasses.replace(
        receipt,
        rows_in=rows_in,
        rows_done=rows_in - len(rejects),
        rows_out=table.num_rows,
        rejected=len(rejects),
        rejects=refused,
        truncated=sum(part.prepared.truncated for part in shard.parts),
        tokens=shard.tokens,
        fill=round(shard.tokens / shard.offered, 4) if shard.offered else 1.0,
        seconds={stage: round(seconds, 4) for stage, seconds in shard.seconds.items()},
    )
    return table, rejects, receipt
