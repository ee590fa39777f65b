"""The output's schema and what its metadata says about where the rows came from. Pure; knows no sink."""

from __future__ import annotations

import json

import pyarrow as pa

from ..config.checkpoint import Checkpoint
from ..config.lora import full_name
from ..config.outputs import DEFAULT_COLUMN, chunk_fields, result_fields
from ..config.recipe import Recipe
from .spec import JobSpec, StepSpec

RECIPES = "lading.recipes"  # JSON: result column -> {"hash", "recipe", "model", "folder", "origin", "revision", "prompt", "text"}


def kept_columns(spec: JobSpec) -> list[str]:
    """Source columns carried into the output: the named ones, or the texts themselves."""
    keep = spec.source.keep if spec.source.keep is not None else spec.steps[0].text
    return [name for name in dict.fromkeys(keep) if name != "id"]


def read_columns(spec: JobSpec) -> list[str]:
    """Source columns a job reads besides the id: the step's texts, then what is carried."""
    return list(dict.fromkeys([*spec.steps[0].text, *kept_columns(spec)]))


def result_column(step: StepSpec) -> str:
    return step.column or DEFAULT_COLUMN[step.verb]


def output_schema(spec: JobSpec, source: pa.Schema, recipe: Recipe) -> pa.Schema:
    """id, carried columns, results; with chunks also doc_id, chunk, start, end. `source` has `id` and the carried columns."""
    step = spec.steps[0]
    chunked = recipe.long_text == "chunk"
    fields = [pa.field("id", pa.string() if chunked else source.field("id").type, nullable=False)]
    chunk = {field.name: field for field in chunk_fields(step.text[0])} if chunked else {}
    if chunked:
        fields += [pa.field("doc_id", source.field("id").type), *(f for f in chunk.values() if f.name not in step.text)]
    fields += [chunk.get(name) or pa.field(name, source.field(name).type) for name in kept_columns(spec)]
    return pa.schema(fields + result_fields(recipe, result_column(step)))


def metadata(spec: JobSpec, recipe: Recipe, checkpoint: Checkpoint, schema: pa.Schema) -> dict[str, str]:
    """Schema metadata: the recipe and model of the result column and, where it would be true, what lets
    plain LanceDB answer `table.search("text")`."""
    step = spec.steps[0]
    column = result_column(step)
    entry = {
        "hash": recipe.hash,
        "recipe": recipe.to_dict(),
        "model": step.model,
        "folder": str(checkpoint.folder),
        "origin": checkpoint.origin,
        "revision": checkpoint.revision,
        "prompt": step.prompt,
        "text": list(step.text),
    }
    if step.adapter:
        entry["adapter"] = full_name(step.adapter)
    found = {RECIPES: json.dumps({column: entry}, sort_keys=True)}
    if plain_lancedb_agrees(step, recipe, checkpoint) and step.text[0] in schema.names:
        model = step.model if checkpoint.origin != "folder" else str(checkpoint.folder)
        config = {"name": model, "device": "cpu", "normalize": recipe.normalize, "trust_remote_code": False}
        function = {
            "name": "sentence-transformers",
            "model": config,
            "source_column": step.text[0],
            "vector_column": column,
        }
        found["embedding_functions"] = json.dumps([function])
    return found


def plain_lancedb_agrees(step: StepSpec, recipe: Recipe, checkpoint: Checkpoint) -> bool:
    """Whether LanceDB's built-in sentence-transformers function gives the vectors of this recipe, for queries too.

    It knows no prompts, no adapters, no slicing and no other vector type, and computes in float32.
    """
    return (
        recipe.task == "encode"
        and not checkpoint.prompts
        and not recipe.prompt
        and not recipe.adapter
        and step.dims == 0
        and step.max_tokens == 0
        and recipe.precision == "float32"
        and recipe.vector_type in ("float32", "float16")
    )
