"""docs/message-format.md and its schemas say what the code does."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lading.config.errors import BadMessage
from lading.pipelines import wire
from lading.schedulers import bodies
from lading.schedulers.messages import Request, RequestOptions, decode
from tests.redis_server import RedisServer
from tests.responder import Responder, answer, vector
from tests.test_messages import envelope

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT = (DOCS / "message-format.md").read_text()
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in sorted((DOCS / "schemas").glob("*.json"))}
READERS: dict[str, Any] = {"request": bodies.request, "shard": bodies.shard, "result": wire.read}
EXAMPLES = [(name, example) for name, schema in SCHEMAS.items() for example in schema["examples"]]
REQUEST, SHARD = SCHEMAS["request"]["examples"], SCHEMAS["shard"]["examples"][0]


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def validator(name: str) -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    return jsonschema.Draft202012Validator(SCHEMAS[name])


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_examples_are_valid_and_read(name: str, example: dict[str, Any]) -> None:
    """The schema and the hand-written checks both take every example."""
    validator(name).validate(example)
    read = READERS[name](dict(example))
    if name != "result":
        assert json.loads(json.dumps(read.to_dict())) == example


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("request", {key: value for key, value in REQUEST[0].items() if key != left}) for left in REQUEST[0]),
        ("request", REQUEST[0] | {"version": 2}),
        ("request", REQUEST[0] | {"more": 1}),
        ("request", REQUEST[0] | {"verb": "embed"}),
        ("request", REQUEST[0] | {"model": ""}),
        ("request", REQUEST[0] | {"inputs": []}),
        ("request", REQUEST[0] | {"inputs": [["a", "b"]]}),
        ("request", REQUEST[0] | {"inputs": [1]}),
        ("request", REQUEST[0] | {"options": {"dims": -1}}),
        ("request", REQUEST[0] | {"options": {"dims": "8"}}),
        ("request", REQUEST[0] | {"options": {"activation": "sigmoid"}}),
        ("request", REQUEST[0] | {"options": {"precision": "float64"}}),
        ("request", REQUEST[0] | {"options": {"truncation_side": "middle"}}),
        ("request", REQUEST[3] | {"options": {"instruction": "find cats"}}),
        ("request", REQUEST[0] | {"options": {"chunk_tokens": 4}}),
        ("request", REQUEST[0] | {"into": "lancedb://a/b"}),
        ("request", REQUEST[0] | {"ids": ["1", "2"]}),
        ("request", REQUEST[4] | {"ids": ["1", "1"]}),
        ("request", REQUEST[4] | {"ids": ["1", ""]}),
        ("request", REQUEST[2] | {"inputs": ["a"]}),
        ("request", REQUEST[2] | {"inputs": [["a", "b", "c"]]}),
        ("request", REQUEST[2] | {"options": {"dims": 8}}),
        ("request", REQUEST[3] | {"options": {"prompt": "query"}}),
        ("request", REQUEST[0] | {"options": {"pooling": "first"}}),
        ("request", REQUEST[0] | {"options": {"normalize": "yes"}}),
        ("request", REQUEST[0] | {"options": {"normalize": 1}}),
        ("request", REQUEST[0] | {"options": {"known_as": None}}),
        ("request", REQUEST[2] | {"options": {"pooling": "cls"}}),
        ("request", REQUEST[2] | {"options": {"normalize": False}}),
        ("request", REQUEST[3] | {"options": {"outputs": ["dense"]}}),
        ("request", REQUEST[0] | {"options": {"outputs": ["spares"]}}),
        ("request", REQUEST[0] | {"options": {"outputs": "dense"}}),
        ("request", REQUEST[0] | {"options": {"token_pooling": 0}}),
        ("request", REQUEST[0] | {"options": {"threshold": -0.5}}),
        *(("shard", {key: value for key, value in SHARD.items() if key != left}) for left in SHARD),
        ("shard", SHARD | {"job": "../up"}),
        ("shard", SHARD | {"shard": -1}),
        ("shard", SHARD | {"recipe": "short"}),
    ],
)
def test_both_refuse(name: str, bad: dict[str, Any]) -> None:
    """What the schema refuses the worker refuses too."""
    assert not validator(name).is_valid(bad)
    with pytest.raises(BadMessage):
        decode(envelope(kwargs=bad, headers={"task": f"lading.{name}"}))


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "binary"])
def test_answers_are_as_the_schema_says(kind: str) -> None:
    """Results that the code writes are valid, for every verb and vector type."""
    options = RequestOptions(vector_type=kind)
    asked = [
        Request("encode", "m", ["a", ""], options),
        Request("score", "m", [("a", "b")]),
        Request("extract", "m", ["a"]),
        Request("encode", "m", ["a"], options, "lancedb://a/b", ["1"]),
    ]
    for request in asked:
        validator("result").validate(json.loads(answer(request)))


def test_the_smallest_message_decodes() -> None:
    """The message that the document shows is one."""
    raw = block("json")
    body = json.loads(base64.b64decode(json.loads(raw)["body"]))
    assert decode(raw.encode()).body == Request("encode", body[1]["model"], body[1]["inputs"])


def test_the_celery_example_runs(redis_server: RedisServer) -> None:
    """The document's own program gets its vectors."""
    responder = Responder(redis_server.url)
    names: dict[str, Any] = {}
    exec(block("python").replace("redis://127.0.0.1:6379/0", redis_server.url), names)
    names["app"].close()
    responder.close()
    assert names["array"].tolist() == [vector(text).tolist() for text in ("a text", "another")]


def test_limits_are_those_of_the_document() -> None:
    """Numbers in the text and the schema are the code's."""
    assert f"more than {bodies.INPUTS:,} inputs" in TEXT
    assert f"more than {bodies.INPUT_BYTES >> 10} KiB" in TEXT
    properties = SCHEMAS["request"]["properties"]
    assert properties["inputs"]["maxItems"] == bodies.INPUTS
    assert properties["model"]["maxLength"] == bodies.NAME_CHARACTERS
    assert str(bodies.INPUT_BYTES) in SCHEMAS["request"]["description"]
    assert set(properties) == set(bodies.REQUEST)
    assert set(properties["options"]["properties"]) == set(RequestOptions.__dataclass_fields__)
