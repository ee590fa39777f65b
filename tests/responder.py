"""Answers requests as a worker does, with vectors that anyone can compute: the real queue, messages and results, no model."""

from __future__ import annotations

import threading
import time

import numpy as np
import pyarrow as pa

from lading.config.outputs import result_fields
from lading.config.recipe import Recipe
from lading.pipelines import wire
from lading.schedulers import results
from lading.schedulers.connection import Broker
from lading.schedulers.messages import Request, decode
from lading.schedulers.outages import patiently
from lading.schedulers.queues import Lease

DIMS = 8
QUEUE = "lading.cpu.requests"


def vector(text: str) -> np.ndarray:
    """float32 (8,): the text's length, its first bytes."""
    first = np.frombuffer(text.encode()[: DIMS - 1].ljust(DIMS - 1, b"\0"), np.uint8)
    return np.concatenate([[len(text)], first]).astype(np.float32)


class Responder:
    """A thread that answers until it is closed. Texts that are empty fail; the model "no-such" does not exist.

    `seen` has every request in the order it was pulled; nothing is answered while `paused` is set.
    """

    def __init__(self, url: str, *, pull: int = 8) -> None:
        self.broker, self.seen, self.pull = Broker.connect(url), list[Request](), pull
        self.stop, self.paused = threading.Event(), threading.Event()
        self.queue = self.broker.queue(QUEUE)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.broker.close()

    def _serve(self) -> None:
        while not self.stop.is_set():
            if patiently(lambda: self.queue.wait(0.05), self.stop) and not self.paused.is_set():
                leases = patiently(lambda: self.queue.pull(self.pull, 1 << 20), self.stop) or []
                done = [self._answer(lease) for lease in leases]
                patiently(lambda done=done: results.store(self.broker.client, done, 600, now=time.time()), self.stop)
                patiently(lambda leases=leases: self.queue.ack(leases), self.stop)

    def _answer(self, lease: Lease) -> tuple[str, results.Result]:
        message = decode(lease.raw)
        request = message.body
        assert isinstance(request, Request)
        self.seen.append(request)
        if request.model == "no-such":
            return message.id, results.Failure("ModelError", "no-such: there is no such model")
        return message.id, answer(request)


def answer(request: Request) -> bytes:
    """What a worker would store for this request."""
    empty = [place for place, one in enumerate(request.inputs) if "" in (one, *one)]
    errors = [(place, "empty-text", "there is nothing in it") for place in empty]
    good = [place for place in range(len(request.inputs)) if place not in empty]
    if request.into:
        return wire.stored("0" * 16, len(good), errors)
    kind = request.options.vector_type
    recipe = Recipe(
        task=request.verb, content="c", architecture="a", max_tokens=64, dims=DIMS, vector_type=kind, aggregation=""
    )
    batch = pa.RecordBatch.from_arrays(
        _columns(recipe, [request.inputs[place] for place in good]), schema=pa.schema(result_fields(recipe))
    )
    columns = wire.columns(recipe, batch)
    return wire.answer(recipe.hash, len(request.inputs), [wire.Piece(columns, good, range(len(good)))], errors)


def _columns(recipe: Recipe, inputs: list[object]) -> list[pa.Array]:
    fields = result_fields(recipe)
    if recipe.task == "score":
        return [pa.array([float(len(query) - len(document)) for query, document in inputs], pa.float32())]
    if recipe.task == "extract":
        found = [[{"text": text[:1], "label": "FIRST", "score": 0.5, "start": 0, "end": 1}] for text in inputs]
        return [pa.array(found, fields[0].type)]
    vectors = np.array([vector(text) for text in inputs], np.float32).reshape(len(inputs), DIMS)
    scale = np.arange(1, len(inputs) + 1, dtype=np.float32)
    if recipe.vector_type == "binary":
        vectors = np.packbits(vectors > 100, axis=1)
    values = pa.array(vectors.ravel().astype(fields[0].type.value_type.to_pandas_dtype()))
    columns = [pa.FixedSizeListArray.from_arrays(values, type=fields[0].type)]
    return columns + ([pa.array(scale)] if len(fields) > 1 else [])
