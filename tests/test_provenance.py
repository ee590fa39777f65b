"""What an output says of itself: the recipe it was made by, and the text search of plain LanceDB where that is true."""

from __future__ import annotations

import json

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.pipelines.job import draft
from lading.pipelines.provenance import RECIPES
from lading.pipelines.spec import from_dict
from lading.workers.run import run
from tests import models

BODIES = ["a man plays the guitar", "the stock market fell", "a cat sleeps on the sofa", "rain is expected tomorrow"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"key": list("abcd"), "body": BODIES}), path)
    return path


def encoded(corpus, model, to, **step):
    source, policy = {"paths": str(corpus), "id": "key"}, step.pop("policy", {})
    spec = from_dict(
        {
            "source": source,
            "steps": [{"encode": {"text": "body", "model": str(model), **step}}],
            "sink": {"to": to},
            "policy": policy,
        }
    )
    drafted = draft(spec)
    assert run(drafted, device="cpu").state == "finished"
    return drafted


def test_plain_lancedb_searches_by_text(corpus, minilm, tmp_path):
    """Without any code of ours a reader's `table.search("...")` embeds the query as the rows were embedded."""
    encoded(corpus, minilm, f"lancedb://{tmp_path}/db/docs")
    table = lancedb.connect(tmp_path / "db").open_table("docs")
    for body in BODIES:
        found = table.search(body).distance_type("cosine").limit(1).to_list()[0]
        assert found["body"] == body
        assert found["_distance"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "step",
    [
        {},
        {"dims": 16},
        {"prompt_text": "x: "},
        {"max_tokens": 8},
        {"vector_type": "int8"},
        {"pooling": "cls"},
        {"normalize": False},
        {"policy": {"truncation_side": "left"}},
    ],
)
def test_text_search_is_promised_only_where_it_is_true(corpus, tmp_path, step):
    """The checkpoint's own recipe carries LanceDB's function, one that the function would not follow does not."""
    model = models.tiny_encoder(tmp_path / "model", prompts={})
    schema = encoded(corpus, model, f"lancedb://{tmp_path}/db/docs", **step).schema
    assert (b"embedding_functions" in schema.metadata) == (step == {})


def test_text_search_is_not_promised_for_a_model_with_prompts(corpus, tiny_encoder, tmp_path):
    """LanceDB's function knows no prompts, so a model that has one for queries does not get it."""
    schema = encoded(corpus, tiny_encoder, f"lancedb://{tmp_path}/db/docs").schema
    assert b"embedding_functions" not in schema.metadata


@pytest.mark.parametrize("kind", ["lancedb", "parquet"])
def test_the_output_names_its_recipe_and_model(corpus, tiny_encoder, tmp_path, kind):
    """The schema's metadata holds the recipe, its hash and where the model was, per result column."""
    drafted = encoded(corpus, tiny_encoder, f"{kind}://{tmp_path}/out/docs", column="v")
    if kind == "lancedb":
        schema = lancedb.connect(tmp_path / "out").open_table("docs").schema
    else:
        schema = pq.read_schema(next((tmp_path / "out/docs").glob("*.parquet")))
    entry = json.loads(schema.metadata[RECIPES.encode()])["v"]
    assert entry["hash"] == drafted.recipe.hash
    assert entry["recipe"] == drafted.recipe.to_dict()
    assert entry["folder"] == str(tiny_encoder)
