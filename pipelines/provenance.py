"""The output's schema and what its metadata says about where the rows came from. Pure; knows no sink."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from ..config.catalogue import of
from ..config.checkpoint import Checkpoint
from ..config.columns import output_columns
from ..config.errors import SpecError
from ..config.lora import full_name
from ..config.outputs import chunk_fields, result_fields, token_fields
from ..config.recipe import Recipe
from .spec import JobSpec, StepSpec

# JSON: result column -> {"hash", "recipe", "model", "folder", "origin", "revision", "prompt", "text"}, "known_as" if given, and
# "output" of one that is not dense
RECIPES = "lading.recipes"


def kept_columns(spec: JobSpec) -> list[str]:
    """Source columns carried into the output: the named ones, or the texts themselves and what names the query."""
    texts = (*_query_column(spec), *spec.steps[0].text)
    keep = spec.source.keep if spec.source.keep is not None else texts
    return [name for name in dict.fromkeys(keep) if name != "id"]


def read_columns(spec: JobSpec) -> list[str]:
    """Source columns a job reads besides the id: the step's texts, then what is carried."""
    return list(dict.fromkeys([*spec.steps[0].text, *_query_column(spec), *kept_columns(spec)]))


def _query_column(spec: JobSpec) -> tuple[str, ...]:
    """The column that names a row's query in a table of them, if there is one."""
    return (spec.queries.key,) if spec.queries.paths else ()


def entries(recipe: Recipe, entry: dict[str, Any], column: str = "") -> dict[str, dict[str, Any]]:
    """What RECIPES says of each result column."""
    told = {"dense": entry, recipe.task: entry}
    return {
        name: told.get(output) or {**entry, "output": output} for output, name in output_columns(recipe, column).items()
    }


def count_fields(spec: JobSpec) -> list[pa.Field]:
    """Tokens and truncated, if the job asks for them: last in the output, and no part of the recipe, as no number changes."""
    return token_fields(spec.steps[0].column) if spec.policy.token_columns else []


def output_schema(spec: JobSpec, source: pa.Schema, recipe: Recipe) -> pa.Schema:
    """id, carried columns, results; with chunks also doc_id, chunk, start, end; counts of tokens. `source` has `id` and the carried columns."""
    step = spec.steps[0]
    chunked = recipe.long_text == "chunk"
    fields = [pa.field("id", pa.string() if chunked else source.field("id").type, nullable=False)]
    chunk = {field.name: field for field in chunk_fields(step.text[0])} if chunked else {}
    if chunked:
        fields += [pa.field("doc_id", source.field("id").type), *(f for f in chunk.values() if f.name not in step.text)]
    fields += [chunk.get(name) or pa.field(name, source.field(name).type) for name in kept_columns(spec)]
    schema = pa.schema(fields + result_fields(recipe, step.column) + count_fields(spec))
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise SpecError(
                f"steps[0].{step.verb}.column: the result's column {name!r} is also a column of the output: choose another"
            )
    return schema


def metadata(spec: JobSpec, recipe: Recipe, checkpoint: Checkpoint, schema: pa.Schema) -> dict[str, str]:
    """Schema metadata: the recipe and model of the result column and, where it would be true, what lets
    plain LanceDB answer `table.search("text")`."""
    step = spec.steps[0]
    entry = {
        "hash": recipe.hash,
        "recipe": recipe.to_dict(),
        "model": step.model if checkpoint.origin == "folder" else checkpoint.name,
        "folder": str(checkpoint.folder),
        "origin": checkpoint.origin,
        "revision": checkpoint.revision,
        "prompt": step.prompt,
        "text": list(step.text),
    }
    if step.known_as:
        entry["known_as"] = step.known_as
    if step.adapter:
        entry["adapter"] = full_name(step.adapter)
    found = {RECIPES: json.dumps(entries(recipe, entry, step.column), sort_keys=True)}
    if plain_lancedb_agrees(step, recipe, checkpoint) and step.text[0] in schema.names:
        model = checkpoint.name if checkpoint.origin != "folder" else str(checkpoint.folder)
        config = {"name": model, "device": "cpu", "normalize": recipe.normalize, "trust_remote_code": False}
        function = {
            "name": "sentence-transformers",
            "model": config,
            "source_column": step.text[0],
            "vector_column": output_columns(recipe, step.column)["dense"],
        }
        found["embedding_functions"] = json.dumps([function])
    return found


def plain_lancedb_agrees(step: StepSpec, recipe: Recipe, checkpoint: Checkpoint) -> bool:
    """Whether LanceDB's built-in sentence-transformers function gives the vectors of this recipe, for queries too.

    It knows no prompts, no adapters, no slicing, no other end to cut off and no other vector type, computes in float32, and reads the
    checkpoint's files alone: neither what was asked for nor what the catalogue adds to a folder without modules.json.
    """
    known = of(checkpoint, step.known_as)
    plain = not (checkpoint.folder / "modules.json").exists()
    return (
        recipe.task == "encode"
        and not (known and (any(known.prompts.values()) or plain))
        and not step.pooling
        and step.normalize is None
        and recipe.outputs == ("dense",)
        and recipe.architecture != "static"
        and not checkpoint.prompts
        and not recipe.prompt
        and not recipe.adapter
        and step.dims == 0
        and step.max_tokens == 0
        and recipe.truncation_side == "right"
        and recipe.precision == "float32"
        and recipe.vector_type in ("float32", "float16")
    )
