"""Results of requests into a LanceDB table: rows replaced by id, many requests in one commit.

As durable as the queue that the requests came from, and no more: there is no manifest, and a request that is delivered once more
after a newer one for the same id restores the older row. A job is the stronger promise.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ..config.columns import output_columns
from ..config.errors import OutputError
from ..config.outputs import result_fields, token_fields
from ..config.recipe import Recipe
from . import lance_commit
from .failures import stopping
from .lance_commit import Change, lance
from .ledger import Ledger
from .output import check_recipes, merged_recipes, metadata_of, output_paths
from .provenance import RECIPES, entries

TEXTS = {
    "encode": ("text",),
    "score": ("query", "document"),
    "extract": ("text",),
}  # columns of a table that is made here


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Some results: row by row an id, the inputs (a list per text column of the verb), and the adapter's columns."""

    ids: Sequence[str]
    texts: Sequence[Sequence[str]]
    results: pa.RecordBatch


@dataclasses.dataclass(frozen=True, slots=True)
class Committed:
    rows: int
    conflicts: int
    seconds: float
    size: int  # bytes of the rows' files


def check(url: str) -> None:
    """Raises OutputError unless `url` is of a kind whose rows can be replaced."""
    if output_paths(url).kind != "lancedb":
        raise OutputError(
            f"{url}: requests go into LanceDB tables (lancedb://FOLDER/TABLE), which can replace rows; use a job"
        )


def upsert(
    url: str, recipe: Recipe, model: dict[str, Any], given: Sequence[Rows], *, counted: bool = False
) -> Committed:
    """Put the rows into the table, each in place of any with its id; of several with one id the last. The table is made if there is none.

    `model`: what the schema's metadata says of the checkpoint (name, folder, origin, revision); `counted`: the results end with
    the columns of `token_fields`. Raises OutputError: the table's
    column was made by another recipe, or has columns that cannot be left empty; StopJob: the store fails.
    """
    began = time.monotonic()
    check(url)
    uri = output_paths(url).data
    table = lance_commit.open_table(uri)
    if table is None:
        lance_commit.create_table(uri, _new_schema(recipe, model, _fields(recipe, counted)))
        table = lance_commit.open_table(uri)
        assert table is not None
    wanted = {RECIPES: json.dumps(entries(recipe, _entry(recipe, model, TEXTS[recipe.task])), sort_keys=True)}
    check_recipes(url, metadata_of(table.schema), wanted)
    rows = _rows(url, table.schema, recipe, given, _fields(recipe, counted))
    with stopping("write rows to", uri):
        written = lance.fragment.write_fragments(rows, table, schema=rows.schema, mode="append")
        assert isinstance(written, list)
        lance_commit.make_fragments_durable(uri, written)
    ids = rows.column("id").combine_chunks()

    def propose(newest: lance.LanceDataset | None) -> Change | None:
        if newest is None:
            raise OutputError(f"{url} was dropped while rows were written to it; send them again")
        existing = metadata_of(newest.schema)
        check_recipes(url, existing, wanted)
        ledger = Ledger.read(existing, uri)
        ledger = dataclasses.replace(ledger, table_id=ledger.table_id or uuid.uuid4().hex)
        return Change({**merged_recipes(existing, wanted), **ledger.metadata()}, list(written), "id", ids)

    conflicts = lance_commit.commit(uri, propose)
    size = sum(file.file_size_bytes or 0 for one in written for file in one.files)
    return Committed(rows.num_rows, conflicts, time.monotonic() - began, size)


def _fields(recipe: Recipe, counted: bool) -> list[pa.Field]:
    return result_fields(recipe) + (token_fields() if counted else [])


def _new_schema(recipe: Recipe, model: dict[str, Any], results: list[pa.Field]) -> pa.Schema:
    texts = TEXTS[recipe.task]
    fields = [pa.field("id", pa.string(), nullable=False), *(pa.field(name, pa.string()) for name in texts)]
    metadata = {
        RECIPES: json.dumps(entries(recipe, _entry(recipe, model, texts)), sort_keys=True),
        **Ledger(uuid.uuid4().hex, 0, {}).metadata(),
    }
    return pa.schema([*fields, *results], metadata=metadata)


def _entry(recipe: Recipe, model: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    return {"hash": recipe.hash, "recipe": recipe.to_dict(), **model, "text": list(texts)}


def _rows(url: str, schema: pa.Schema, recipe: Recipe, given: Sequence[Rows], wanted: list[pa.Field]) -> pa.Table:
    """What is written: the table's columns, those that a request cannot know left empty. Raises OutputError."""
    columns = list(output_columns(recipe).values())
    results = pa.Table.from_batches([one.results for one in given])
    made: dict[str, pa.ChunkedArray | pa.Array] = dict(zip([one.name for one in wanted], results.columns, strict=True))
    ids = [id for one in given for id in one.ids]
    made["id"] = _ids(url, ids, schema)
    known = json.loads(metadata_of(schema).get(RECIPES, "{}"))
    names = known.get(columns[0], {}).get("text", TEXTS[recipe.task])
    for place, name in enumerate(names):
        made[name] = pa.array([text for one in given for text in one.texts[place]], pa.string())
    if missing := [name for name in (*(one.name for one in wanted), "id") if name not in schema.names]:
        raise OutputError(
            f"{url} has no column {missing[0]!r}, which these results need: it was made by something else"
        )
    if forced := [one.name for one in schema if one.name not in made and not one.nullable]:
        raise OutputError(f"{url}: column {forced[0]!r} may not be empty, and a request does not have it: use a job")
    kept = [one for one in schema if one.name in made]
    try:
        whole = pa.Table.from_arrays([made[one.name] for one in kept], names=[one.name for one in kept]).cast(
            pa.schema(kept)
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise OutputError(f"{url} takes rows of another form: {error}") from error
    last = {id: place for place, id in enumerate(ids)}  # of several requests for one id the last counts
    return whole.take(pa.array(sorted(last.values()))) if len(last) < len(ids) else whole


def _ids(url: str, ids: list[str], schema: pa.Schema) -> pa.Array:
    kind = schema.field("id").type if "id" in schema.names else pa.string()
    if "doc_id" in schema.names:
        raise OutputError(f"{url} holds chunks of documents, whose rows no single id names: use a job")
    try:
        return pa.array(ids, pa.string()).cast(kind)
    except pa.ArrowInvalid as error:
        raise OutputError(f"{url}: ids there are {kind}: {error}") from error
