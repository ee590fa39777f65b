"""What a drafted job would do, from a sample of its rows: for `lading plan`. Loads no model and writes nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa

from ..config.recipe import Recipe
from ..config.words import counted
from ..pipelines import sources
from ..pipelines.job import Draft
from ..pipelines.queries import model_columns
from ..pipelines.records import Rows, Shard

SAMPLED_SHARDS = 8  # at even steps through the job
SAMPLED_ROWS = 128  # the first of each of these


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The plan of a job. Counts of input rows, shards and inputs are exact, unless `rows_exact` is false."""

    job: str
    output: str
    state: str  # new | unfinished | finished
    model: str  # name, revision, where it came from
    recipe: dict[str, Any]
    inputs: int
    shards: int
    shards_done: int  # by earlier runs of the same job
    rows: int
    rows_exact: bool
    duplicate_ids: int
    sampled_rows: int
    sampled_rejects: int
    tokens: int | None  # of all rows, scaled up from the sample; None where `tokenizers` is not installed
    rows_out: int | None  # likewise; differs from `rows` with chunks and rejects
    bytes_out: int  # before compression, scaled up; entities and the weights that SPLADE adds are left out

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The plan for people."""
        rows = ("" if self.rows_exact else "about ") + counted(self.rows, "row")
        tokens = (
            "unknown: needs lading[worker]"
            if self.tokens is None
            else f"about {self.tokens:,}, from {counted(self.sampled_rows, 'sampled row')}"
        )
        lines = [
            f"job     {self.job} ({self.state})",
            f"output  {self.output}",
            f"model   {self.model}",
            f"input   {rows} in {counted(self.inputs, 'input')}, cut into {counted(self.shards, 'shard')}",
            f"tokens  {tokens}",
            f"bytes   about {self.bytes_out:,} out, before compression",
        ]
        if self.rows_out is not None and self.rows_out != self.rows:
            rejects = counted(self.sampled_rejects, "reject")
            lines.append(f"rows    about {self.rows_out:,} out ({rejects} in the sample)")
        if self.duplicate_ids:
            lines.append(f"ids     {counted(self.duplicate_ids, 'row')} with the id of an earlier one, to be rejected")
        if self.shards_done:
            lines.append(f"done    {counted(self.shards_done, 'shard', of=self.shards)}, by an earlier run")
        return [*lines, "nothing was written"]


def estimate(draft: Draft) -> Estimate:
    """Read and tokenise a few rows of the draft's source, and scale up."""
    sample = [rows for shard in _spread(draft.shards) if (rows := _first_rows(draft, shard)) is not None]
    seen = sum(rows.count for rows in sample)
    rows, exact = sources.estimate_rows(draft.format, draft.inputs, draft.shards)
    scale = rows / seen if seen else 0.0
    tokenised = _tokenise(draft, sample)
    good = sum(rows.batch.num_rows for rows in sample)
    tokens, items, refused = tokenised or (0, good, 0)
    lists = _list_bytes(draft.recipe, tokens / items if items else 0.0)
    manifest = draft.manifest
    return Estimate(
        job=draft.id,
        output=draft.spec.sink.to,
        state="new" if manifest is None else "unfinished" if manifest.closed() is None else "finished",
        model=draft.checkpoint.describe(),
        recipe=draft.recipe.to_dict(),
        inputs=len(draft.inputs),
        shards=len(draft.shards),
        shards_done=manifest.totals().shards_done if manifest else 0,
        rows=rows,
        rows_exact=exact,
        duplicate_ids=sum(len(places) for places in draft.duplicates.values()),
        sampled_rows=seen,
        sampled_rejects=seen - good + refused,
        tokens=round(tokens * scale) if tokenised else None,
        rows_out=round(items * scale) if tokenised else None,
        bytes_out=round((_bytes_per_row(draft.schema, [rows.batch for rows in sample]) + lists) * items * scale),
    )


def _spread(shards: list[Shard]) -> list[Shard]:
    count = min(SAMPLED_SHARDS, len(shards))
    return [shards[place * len(shards) // count] for place in range(count)]


def _first_rows(draft: Draft, shard: Shard) -> Rows | None:
    reading = sources.read(
        draft.spec.source,
        draft.format,
        draft.inputs,
        shard,
        draft.source,
        texts=list(draft.spec.steps[0].text),
        duplicates=draft.duplicates.get(shard.number),
        batch_rows=SAMPLED_ROWS,
    )
    return next(iter(reading), None)


def _tokenise(draft: Draft, sample: list[Rows]) -> tuple[int, int, int] | None:
    """Tokens and items (rows, or chunks) of the sampled rows as the adapter would cut them, and rows that it would reject."""
    try:
        from ..adapters.pairs import pair_texts
        from ..adapters.tokens import TextTokenizer, encode_chunks, encode_rows
    except ModuleNotFoundError as error:
        if error.name != "tokenizers":
            raise
        return None
    tokenizer = TextTokenizer(draft.checkpoint.folder / draft.recipe.part, draft.recipe)
    pairs = pair_texts(draft.checkpoint.folder, draft.recipe) if draft.recipe.task == "score" else None
    tokens = items = refused = 0
    for rows in sample:
        if draft.queries is not None:
            before = rows.batch.num_rows
            rows = draft.queries.join(rows, 0)
            refused += before - rows.batch.num_rows
        columns: list[pa.Array] = [rows.batch.column(name) for name in model_columns(draft.spec)]
        if pairs is not None or draft.recipe.long_text == "chunk":
            prepared = pairs.prepare(columns) if pairs else encode_chunks(tokenizer, columns[0])
            costs, bad = prepared.costs.tolist(), prepared.bad
        else:
            encoded = encode_rows(tokenizer, columns)
            costs, bad = [max(len(one.ids), draft.recipe.expand_to) for one in encoded.encodings], encoded.bad
        tokens, items, refused = tokens + sum(costs), items + len(costs), refused + len(bad)
    return tokens, items, refused


def _bytes_per_row(schema: pa.Schema, sample: list[pa.RecordBatch]) -> float:
    """Mean bytes of an output row: carried columns as sampled, results by their types."""
    rows = sum(batch.num_rows for batch in sample) or 1
    total = 0.0
    for field in schema:
        carried = [batch.column(field.name).nbytes for batch in sample if field.name in batch.schema.names]
        total += sum(carried) / rows if carried else _width(field.type)
    return total


def _list_bytes(recipe: Recipe, tokens: float) -> float:
    """Bytes of an item's sparse and multi-vector results, which grow with its tokens."""
    total = 0.0
    if "sparse" in recipe.outputs:
        weights = tokens if not recipe.sparse.startswith("splade") else float(recipe.top_k)
        total += 8 * (min(weights, recipe.top_k) if recipe.top_k else weights)
    if "multi_vector" in recipe.outputs:
        total += tokens / recipe.token_pooling * recipe.token_dims * (2 if recipe.vector_type == "float16" else 4)
    return total


def _width(kind: pa.DataType) -> float:
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * _width(kind.value_type)
    try:
        return 0.0 if pa.types.is_nested(kind) else kind.bit_width / 8
    except ValueError:  # a list or a string: as long as what the model finds
        return 0.0
