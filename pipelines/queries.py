"""Queries that a `score` job's source does not hold itself: one for all rows, or a table that rows refer to. Read whole, once a process."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from ..config.errors import SourceChanged, SourceError
from ..config.words import counted
from . import sources
from .formats import shown
from .records import Input, Reject, Rows
from .spec import JobSpec, QueriesSpec, SourceSpec

COLUMN = "lading.query"  # of the rows given to the model; never stored
SHARD_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True)
class Queries:
    """`texts` by the query's name, as text; under "" the one query of all rows, where there is no column `key`."""

    key: str
    texts: dict[str, str]
    inputs: list[Input]  # the table's snapshot

    @classmethod
    def of(cls, spec: JobSpec, planned: list[Input] | None = None) -> Queries | None:
        """The queries of a job, None where they are in its source.

        `planned`: the table's snapshot as the job's plan has it. Raises SourceError for a table that cannot be used,
        SourceChanged for another one than was planned.
        """
        if spec.steps[0].query:
            return cls("", {"": spec.steps[0].query}, [])
        if not spec.queries.paths:
            return None
        return _table(spec.queries, planned)

    def check_source(self, source: pa.Schema) -> None:
        """Raises SourceError unless the source's column can name queries."""
        if not self.key:
            return
        kind = source.field(self.key).type
        if not pa.types.is_string(kind) and not pa.types.is_integer(kind):
            raise SourceError(f"column {self.key!r} is {kind}; what names a query must be string or integer")

    def join(self, rows: Rows, shard: int) -> Rows:
        """The rows with their queries in COLUMN; those whose query is not in the table are rejects."""
        batch = rows.batch
        if not self.key:
            texts = pa.array([self.texts[""]] * batch.num_rows, pa.string())
            return dataclasses.replace(rows, batch=batch.append_column(COLUMN, texts))
        names = batch.column(self.key).to_pylist()
        found = [None if name is None else self.texts.get(str(name)) for name in names]
        batch = batch.append_column(COLUMN, pa.array(found, pa.string()))
        lost = np.array([text is None for text in found], bool)
        if not lost.any():
            return dataclasses.replace(rows, batch=batch)
        bad = list(rows.bad)
        ids = batch.column("id")
        for row in np.flatnonzero(lost).tolist():
            path = rows.paths if isinstance(rows.paths, str) else rows.paths[row]
            detail = f"column {self.key!r}: no query is called {shown(names[row])}"
            place = (shard, int(rows.ordinals[row]), path, int(rows.positions[row]))
            bad.append(Reject(*place, ids[row].as_py(), "unknown-query", detail))
        kept = np.flatnonzero(~lost)
        return Rows(
            batch=batch.take(pa.array(kept)),
            ordinals=rows.ordinals[kept],
            positions=rows.positions[kept],
            paths=rows.paths if isinstance(rows.paths, str) else [rows.paths[row] for row in kept],
            bad=sorted(bad, key=lambda reject: reject.ordinal),
        )


def model_columns(spec: JobSpec) -> list[str]:
    """What the model reads of a job's rows once they are joined with their queries, in its order."""
    joined = bool(spec.steps[0].query or spec.queries.paths)
    return [*([COLUMN] if joined else []), *spec.steps[0].text]


def _table(spec: QueriesSpec, planned: list[Input] | None) -> Queries:
    source = SourceSpec(paths=spec.paths, format=spec.format, id=spec.id)
    try:
        format, inputs = sources.snapshot(source)
    except SourceError as error:
        if planned is None:
            raise
        raise SourceChanged(f"the queries are no longer where they were when the job was planned: {error}") from error
    if planned is not None and inputs != planned:
        where = ", ".join(spec.paths)
        raise SourceChanged(f"the queries in {where} are no longer what they were when the job was planned")
    schema = sources.check_columns(source, format, inputs, [spec.text], [spec.text])
    shards, twice = sources.plan(source, format, inputs, SHARD_ROWS)
    if twice:
        count = sum(len(places) for places in twice.values())
        raise SourceError(
            f"{', '.join(spec.paths)}: column {spec.id!r}: {counted(count, 'row')} with the name of an earlier query"
        )
    texts: dict[str, str] = {}
    for shard in shards:
        for rows in sources.read(source, format, inputs, shard, schema, texts=[spec.text]):
            names, values = rows.batch.column("id").to_pylist(), rows.batch.column(spec.text).to_pylist()
            texts |= {str(name): text for name, text in zip(names, values, strict=True) if text is not None}
    if not texts:
        raise SourceError(f"{', '.join(spec.paths)}: holds no query")
    return Queries(spec.key, texts, inputs)
