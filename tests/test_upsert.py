"""Rows of requests in a table: made if it is not there, replaced by id, beside jobs and strangers."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from lading.config.checkpoint import locate, resolve
from lading.config.errors import OutputError
from lading.config.outputs import result_fields
from lading.config.recipe import Recipe
from lading.pipelines.upsert import Rows, upsert


@pytest.fixture
def recipe(tiny_encoder: Path) -> Recipe:
    return resolve(locate(str(tiny_encoder)), task="encode")


def rows(recipe: Recipe, ids: list[str], value: float) -> Rows:
    values = np.full(len(ids) * recipe.dims, value, np.float32)
    schema = pa.schema(result_fields(recipe))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), type=schema.field(0).type)
    return Rows(ids, [[f"text {value}"] * len(ids)], pa.RecordBatch.from_arrays([vectors], schema=schema))


def found(folder: Path) -> dict[object, float]:
    table = lancedb.connect(str(folder)).open_table("docs").to_arrow()
    ids = table["id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, [vector[0] for vector in table["vector"].to_pylist()], strict=True))


def test_rows_replace_those_of_the_same_id(recipe: Recipe, tmp_path: Path) -> None:
    """One row per id, the newest; of one commit's several, the last."""
    url = f"lancedb://{tmp_path}/docs"
    assert upsert(url, recipe, {}, [rows(recipe, ["a", "b"], 1), rows(recipe, ["b", "c"], 2)]).rows == 3
    assert found(tmp_path) == {"a": 1, "b": 2, "c": 2}
    upsert(url, recipe, {}, [rows(recipe, ["a"], 3)])
    assert found(tmp_path) == {"a": 3, "b": 2, "c": 2}


def test_writers_at_the_same_time_lose_nothing(recipe: Recipe, tmp_path: Path) -> None:
    """Commits that meet are tried again: every id is there once."""
    url = f"lancedb://{tmp_path}/docs"

    def write(number: int) -> None:
        for turn in range(3):
            upsert(url, recipe, {}, [rows(recipe, [f"{number}", "all"], turn)])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found(tmp_path) == {**{str(number): 2 for number in range(4)}, "all": found(tmp_path)["all"]}


def test_a_column_of_another_recipe_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    """Vectors of two recipes do not compare."""
    url = f"lancedb://{tmp_path}/docs"
    upsert(url, recipe, {}, [rows(recipe, ["a"], 1)])
    other = dataclasses.replace(recipe, max_tokens=7)
    with pytest.raises(OutputError, match="was made by recipe"):
        upsert(url, other, {}, [rows(other, ["a"], 2)])
    assert found(tmp_path) == {"a": 1}


@pytest.mark.parametrize("url", ["parquet://{folder}/docs", "lancedb:/docs", "s3://x"])
def test_what_cannot_replace_rows_is_refused(recipe: Recipe, tmp_path: Path, url: str) -> None:
    """Only LanceDB can."""
    with pytest.raises(OutputError):
        upsert(url.format(folder=tmp_path), recipe, {}, [rows(recipe, ["a"], 1)])


def test_a_tables_own_columns_stay(recipe: Recipe, tmp_path: Path) -> None:
    """Ids in the table's own type, columns that a request does not know left empty."""
    schema = pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("year", pa.int32()),
            pa.field("text", pa.string()),
            *result_fields(recipe),
        ]
    )
    lancedb.connect(str(tmp_path)).create_table("docs", schema=schema)
    upsert(f"lancedb://{tmp_path}/docs", recipe, {}, [rows(recipe, ["7", "8"], 1)])
    assert found(tmp_path) == {7: 1, 8: 1}
    with pytest.raises(OutputError, match="ids there are int64"):
        upsert(f"lancedb://{tmp_path}/docs", recipe, {}, [rows(recipe, ["seven"], 1)])
