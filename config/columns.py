"""What the columns of results are called. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from .recipe import Recipe

OUTPUTS = ("dense", "sparse", "multi_vector")  # of encode, in the order of their columns
DEFAULT_COLUMN = {"encode": "vector", "score": "score", "extract": "entities"}


def output_columns(recipe: Recipe, column: str = "") -> dict[str, str]:
    """Output -> the name of its main column; of a verb with one output, the verb's name stands for it.

    `column` names the first, and the others after it: "v", "v_sparse", "v_multi_vector". Without it they are called
    vector, sparse, multi_vector; score; entities.
    """
    return named_columns(recipe.task, recipe.outputs, column)


def named_columns(task: str, outputs: Sequence[str], column: str = "") -> dict[str, str]:
    """`output_columns`, of what a recipe says. `outputs` in the order of OUTPUTS."""
    if task != "encode":
        return {task: column or DEFAULT_COLUMN[task]}
    if not column:
        return {output: DEFAULT_COLUMN["encode"] if output == "dense" else output for output in outputs}
    return {output: f"{column}_{output}" if place else column for place, output in enumerate(outputs)}
