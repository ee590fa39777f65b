"""Results on the wire: what an adapter gives comes back the same, and plain Celery reads what is stored."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import celery
import jsonschema
import numpy as np
import pyarrow as pa
import pytest
import redis

from lading.config.columns import OUTPUTS
from lading.config.errors import ModelError
from lading.config.outputs import result_fields
from lading.config.recipe import Recipe
from lading.pipelines import wire
from lading.schedulers import results
from tests.redis_server import RedisServer

SCHEMA = Path(__file__).parent.parent / "docs/schemas/result.json"


def recipe(task: str = "encode", **more: Any) -> Recipe:
    return Recipe(task=task, content="c", architecture="bert", max_tokens=64, dims=16, **more)


def encoded(kind: str) -> tuple[Recipe, pa.RecordBatch, np.ndarray, np.ndarray | None]:
    """A batch of five vectors of 16 dimensions as the encoder gives them, and the same as arrays."""
    made = recipe(vector_type=kind)
    fields = result_fields(made)
    width = 2 if kind == "binary" else 16
    random = np.random.default_rng(7)
    item = fields[0].type.value_type.to_pandas_dtype()
    data = random.integers(-100 if kind == "int8" else 0, 100, (5, width)).astype(item)
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(data.ravel()), type=fields[0].type)]
    scale = random.random(5, np.float32) if len(fields) > 1 else None
    if scale is not None:
        columns.append(pa.array(scale))
    return made, pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)), data, scale


def carried(answer: bytes) -> wire.Answer:
    """As a client reads it."""
    result = results.decode_result(results.encode_result("id", answer, now=1.0))
    assert isinstance(result, dict)
    return wire.read(result)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "binary"])
def test_vectors_come_back_bit_for_bit(kind: str) -> None:
    """Of inputs spread over two batches, one of which failed: its place is zeros."""
    made, batch, data, scale = encoded(kind)
    pieces = [
        wire.Piece(wire.columns(made, batch), [3, 0], np.array([4, 1])),
        wire.Piece(wire.columns(made, batch.slice(2, 2)), np.array([1]), [1]),
    ]
    answer = carried(wire.answer(made.hash, 4, pieces, [(2, "failed", 'it "broke"')]))
    assert (answer.recipe, answer.errors) == (made.hash, [(2, "failed", 'it "broke"')])
    assert answer.vectors is not None
    assert answer.vectors.dtype == data.dtype
    np.testing.assert_array_equal(answer.vectors[[0, 1, 3]], data[[1, 3, 4]])
    assert not answer.vectors[2].any()
    if scale is None:
        assert answer.scale is None
    else:
        assert answer.scale is not None
        np.testing.assert_array_equal(answer.scale[[0, 1, 3]], scale[[1, 3, 4]])


def test_scores_entities_and_rows() -> None:
    """The other verbs, and what a table took."""
    scores = pa.RecordBatch.from_arrays([pa.array([0.5, 2.5], pa.float32())], names=["score"])
    columns = wire.columns(recipe("score"), scores)
    answer = carried(wire.answer("h", 2, [wire.Piece(columns, [1, 0], [0, 1])]))
    assert answer.scores is not None
    assert answer.scores.tolist() == [2.5, 0.5]

    made = recipe("extract")
    entity = {"text": "Adé", "label": "PER", "score": 0.5, "start": 0, "end": 3}
    batch = pa.RecordBatch.from_arrays([pa.array([[entity], []], result_fields(made)[0].type)], names=["entities"])
    answer = carried(wire.answer("h", 3, [wire.Piece(wire.columns(made, batch), [0, 1], [0, 1])]))
    assert answer.entities == [[entity], [], []]

    assert carried(wire.stored("h", 7, [(1, "too-long", "")])).rows == 7
    nothing = carried(wire.answer("h", 1, [], [(0, "empty-text", "")]))
    assert (nothing.vectors, nothing.errors) == (None, [(0, "empty-text", "")])


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"errors": [[1]]},
        {"vectors": {"dtype": "float32", "shape": [2, 2], "data": "AAAA"}},
        {"vectors": {"dtype": "float64", "shape": [0], "data": ""}},
        {"vectors": {"dtype": "float32", "shape": [-1], "data": ""}},
        {"vectors": {"dtype": "float32", "shape": ["1"], "data": ""}},
        {"vectors": 5},
    ],
)
def test_a_damaged_result_is_refused(damage: dict[str, Any]) -> None:
    """What cannot be read raises BadResult alone."""
    with pytest.raises(wire.BadResult):
        wire.read({"version": 1, "recipe": "h", "errors": []} | damage)


def test_plain_celery_reads_what_is_stored(redis_server: RedisServer) -> None:
    """AsyncResult.get returns the result, or raises the failure under its name; both expire; more than one call's worth."""
    app = celery.Celery(broker=redis_server.url, backend=redis_server.url, set_as_current=False)
    large = b'{"x": "%s"}' % (b"y" * 100_000)
    many: list[tuple[str, results.Result]] = [(f"large-{n}", large) for n in range(4)]
    with redis.Redis(port=redis_server.port) as client:
        pair: list[tuple[str, results.Result]] = [
            ("good", {"a": ["ü"]}),
            ("bad", results.Failure("ModelError", "no ü")),
        ]
        results.store(client, [*pair, *many], 600, now=time.time())
        results.store(client, [], 600, now=time.time())
        assert 590 < int(client.ttl(results.key("good"))) <= 600  # pyright: ignore
    assert app.AsyncResult("good").get(timeout=10) == {"a": ["ü"]}
    assert [app.AsyncResult(id).get(timeout=10)["x"] for id, _ in many] == ["y" * 100_000] * 4
    with pytest.raises(ModelError, match="no ü"):
        app.AsyncResult("bad").get(timeout=10)
    app.close()


def test_celery_waiting_is_woken(redis_server: RedisServer) -> None:
    """Who subscribed before is sent the same bytes as are stored."""
    with redis.Redis(port=redis_server.port) as client, client.pubsub() as ear:
        ear.subscribe(results.key("id"))
        assert ear.get_message(timeout=10)["type"] == "subscribe"  # pyright: ignore
        results.store(client, [("id", {"a": 1})], 600, now=time.time())
        assert ear.get_message(timeout=10)["data"] == client.get(results.key("id"))  # pyright: ignore


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (b'{"status": "STARTED", "result": null}', None),
        (b'{"status": "FAILURE", "result": {"exc_type": "E", "exc_message": ["a", 1]}}', results.Failure("E", "a 1")),
        (b'{"status": "FAILURE", "result": "text"}', results.Failure("FAILURE", "text")),
        (b'{"status": "REVOKED", "result": {"exc_message": "x"}}', results.Failure("REVOKED", "x")),
    ],
)
def test_what_any_worker_stored_is_read(raw: bytes, read: object) -> None:
    """States and failures of Celery's own workers too."""
    assert results.decode_result(raw) == read


@pytest.mark.parametrize(
    "raw", [b"\xff", b"[]", b'{"status": "SUCCESS", "result": 5}', b'{"status": "NEW"}', b"[" * 9999]
)
def test_what_is_no_result_is_refused(raw: bytes) -> None:
    """Anything else under a result's key raises NotAResult alone."""
    with pytest.raises(results.NotAResult):
        results.decode_result(raw)


def listed(texts: list[int], dtype: str = "float32") -> tuple[Recipe, pa.RecordBatch]:
    """A batch of dense, sparse and multi-vector results, as many weights and vectors of an item as `texts` says."""
    made = recipe(outputs=OUTPUTS, token_dims=4, vector_type=dtype)
    random = np.random.default_rng(3)
    fields = result_fields(made)
    dense = pa.array(random.random((len(texts), 16)).astype(dtype).tolist(), fields[0].type)
    sparse = [
        {
            "indices": random.choice(900, count, replace=False).tolist(),
            "values": random.random(count, np.float32).tolist(),
        }
        for count in texts
    ]
    multi = [random.random((count, 4)).astype(dtype).tolist() for count in texts]
    arrays = [dense, pa.array(sparse, fields[1].type), pa.array(multi, fields[2].type)]
    return made, pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lists_come_back_bit_for_bit(dtype: str) -> None:
    """Weights and token vectors of inputs spread over two batches, one of them cut; an input that failed has none."""
    made, batch = listed([3, 0, 5, 2, 1], dtype)
    pieces = [
        wire.Piece(wire.columns(made, batch), [3, 0], np.array([4, 1])),
        wire.Piece(wire.columns(made, batch.slice(2, 2)), np.array([1]), [0]),
    ]
    answer = carried(wire.answer(made.hash, 4, pieces, [(2, "failed", "it broke")]))
    assert answer.vectors is not None
    assert answer.vectors.dtype == np.dtype(dtype)
    assert answer.sparse is not None
    assert answer.multi_vectors is not None
    for place, row in ((0, 1), (1, 2), (3, 4)):
        weights = batch.column("sparse")[row].as_py()
        assert [one.tolist() for one in answer.sparse[place]] == [weights["indices"], weights["values"]]
        vectors = answer.multi_vectors[place]
        assert (vectors.dtype, vectors.shape[1]) == (np.dtype(dtype), 4)
        assert vectors.tolist() == batch.column("multi_vector")[row].as_py()
    assert [len(one) for one in (*answer.sparse[2], answer.multi_vectors[2])] == [0, 0, 0]


def test_lists_that_do_not_add_up_are_damage() -> None:
    """Lengths that are not those of the values are no result."""
    made, batch = listed([3, 1])
    told = json.loads(wire.answer(made.hash, 2, [wire.Piece(wire.columns(made, batch), [0, 1], [0, 1])]))
    assert wire.read(told).sparse is not None
    for name in ("sparse", "multi_vectors"):
        for lengths in ([1, 1], [5, -1]):
            damaged = copy.deepcopy(told)
            damaged[name]["lengths"] = json.loads(wire._array(np.array(lengths, np.int32), "int32"))
            with pytest.raises(wire.BadResult, match="lengths that do not make up 4"):
                wire.read(damaged)


def test_lists_are_as_the_schema_says() -> None:
    """The JSON of all three outputs is valid."""
    made, batch = listed([3, 0])
    told = json.loads(
        wire.answer(made.hash, 3, [wire.Piece(wire.columns(made, batch), [0, 2], [0, 1])], [(1, "failed", "x")])
    )
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(told)
