"""The result columns of a recipe, known before any model is loaded: adapters fill them, sinks store them."""

from __future__ import annotations

import pyarrow as pa

from .columns import output_columns
from .recipe import Recipe

ENTITY = pa.struct(
    [
        pa.field("text", pa.string()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("start", pa.int32()),  # characters, half open
        pa.field("end", pa.int32()),
    ]
)
# Token ids, ascending, and their weights. Both sinks keep a pair of lists as it is, and a reader gets each in one piece.
SPARSE = pa.struct([pa.field("indices", pa.list_(pa.int32())), pa.field("values", pa.list_(pa.float32()))])

# Stored item type, and how a reader gets float32 back.
_VECTORS: dict[str, tuple[pa.DataType, str]] = {
    "float32": (pa.float32(), ""),
    "float16": (pa.float16(), ""),
    "int8": (pa.int8(), "{column} * {column}_scale"),
    "binary": (pa.uint8(), "(unpackbits({column}) * 2 - 1) * {column}_scale, most significant bit first"),
}


def result_fields(recipe: Recipe, column: str = "") -> list[pa.Field]:
    """The fields one item's result has, named by `output_columns`.

    multi_vector is a list of vectors, as LanceDB searches them by MaxSim. A quantised vector brings a float32 `<column>_scale`, one
    per row. Field metadata: under `lading.undo` how the two give the vector back; of a score under `lading.activation` what was done
    with the logit, identity (any number) or sigmoid (0 to 1).
    """
    names = output_columns(recipe, column)
    if recipe.task == "score":
        return [pa.field(names["score"], pa.float32(), metadata={"lading.activation": recipe.activation})]
    if recipe.task == "extract":
        return [pa.field(names["extract"], pa.list_(ENTITY))]
    fields: list[pa.Field] = []
    if "dense" in names:
        vector = vector_field(names["dense"], recipe.dims, recipe.vector_type)
        fields += [vector, pa.field(f"{vector.name}_scale", pa.float32())] if vector.metadata else [vector]
    if "sparse" in names:
        fields.append(pa.field(names["sparse"], SPARSE))
    if "multi_vector" in names:
        one = vector_field("item", recipe.token_dims, recipe.vector_type)
        fields.append(pa.field(names["multi_vector"], pa.list_(one)))
    return fields


def vector_field(name: str, dims: int, vector_type: str) -> pa.Field:
    """A vector of so many dimensions, binary ones packed eight to a byte."""
    item, undo = _VECTORS[vector_type]
    width = dims // 8 if vector_type == "binary" else dims
    # Non-nullable items: readers and writers are 2-3 times faster without the validity bitmap.
    field = pa.field(name, pa.list_(pa.field("item", item, nullable=False), width))
    return field.with_metadata({"lading.undo": undo.format(column=name)}) if undo else field


def token_fields(column: str = "") -> list[pa.Field]:
    """Further columns, where they are asked for: tokens that the model saw of the item (special ones and the prompt
    included), and whether it lost tokens to the limit. Named after the result's column where that has a name of the user's.
    """
    before = f"{column}_" if column else ""
    return [pa.field(f"{before}tokens", pa.int32()), pa.field(f"{before}truncated", pa.bool_())]


def chunk_fields(text: str) -> list[pa.Field]:
    """Further columns of an output row that is a chunk: its number in the document, its character offsets, its text."""
    return [
        pa.field("chunk", pa.int32()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field(text, pa.string()),
    ]
