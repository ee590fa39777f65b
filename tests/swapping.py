"""What tests of models that come and go share: five tiny models, a worker with room for some of them, and what it is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.adapters import Adapter, load
from lading.config.checkpoint import locate, resolve
from lading.config.recipe import Recipe
from lading.config.settings import load as load_settings
from lading.pipelines import wire
from lading.pipelines.job import draft
from lading.pipelines.manifest import Manifest
from lading.pipelines.output import output_paths
from lading.pipelines.registry import Registry
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
from lading.pipelines.submit import Queues, Submitted
from lading.pipelines.submit import submit as submit_job
from lading.schedulers.bodies import RequestOptions
from lading.schedulers.connection import Broker
from lading.schedulers.messages import Request, request_message
from lading.schedulers.pools import Pool, Preload
from lading.workers.metering import WorkerMeter
from lading.workers.residency import Step, Tier
from lading.workers.worker import Worker
from tests import models, models_outputs

QUERY = "which row of words"
TOLERANCE = 1e-5
DEADLINE_S = 240.0  # for anything: only a defect takes so long
ALL_BYTES = 1 << 40


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A model, and what is asked of it."""

    name: str
    verb: str
    folder: Path

    @property
    def recipe(self) -> Recipe:
        return resolve(locate(str(self.folder)), task=self.verb)

    def inputs(self, text: str) -> list[Any]:
        return [(QUERY, text)] if self.verb == "score" else [text]

    def message(self, text: str, id: str) -> bytes:
        return request_message(Request(self.verb, str(self.folder), self.inputs(text)), id=id, now=time.time())

    def spec(self, corpus: Path, to: str, shard_rows: int = 8) -> JobSpec:
        return JobSpec(
            source=SourceSpec(paths=(str(corpus),), id="key", keep=()),
            steps=(StepSpec(verb=self.verb, model=str(self.folder), text=("body",)),),
            sink=SinkSpec(to=to),
            policy=PolicySpec(shard_rows=shard_rows),
        )


def five(folder: Path) -> list[Kind]:
    """One of each kind, all of about one size."""
    return [
        Kind("dense", "encode", models.tiny_encoder(folder / "dense", positions=models_outputs.POSITIONS)),
        Kind("sparse", "encode", models_outputs.splade(folder / "sparse")),
        Kind("multi-vector", "encode", models_outputs.late_interaction(folder / "multi")),
        Kind("cross-encoder", "score", models.tiny_cross_encoder(folder / "cross", positions=models_outputs.POSITIONS)),
        Kind("entities", "extract", models.tiny_token_classifier(folder / "entities")),
    ]


def texts(count: int, seed: int = 0) -> list[str]:
    choose = random.Random(seed)
    return [f"row {n} of {'many ' * choose.randrange(1, 12)}words" for n in range(count)]


def write_corpus(path: Path, rows: Sequence[str]) -> Path:
    pq.write_table(pa.table({"key": [f"k{n:05d}" for n in range(len(rows))], "body": list(rows)}), path)
    return path


class Direct:
    """What models give that are loaded once, alone, each text in a batch of its own."""

    def __init__(self) -> None:
        self._loaded: dict[Kind, tuple[Recipe, Adapter]] = {}

    def batch(self, kind: Kind, rows: Sequence[str]) -> pa.RecordBatch:
        """The adapter's columns for some texts."""
        _, adapter = self._adapter(kind)
        columns = [pa.array(rows)]
        if adapter.inputs == 2:
            columns.insert(0, pa.array([QUERY] * len(rows)))
        prepared = adapter.prepare(columns)
        return adapter.run([(prepared, np.arange(len(prepared.costs)))]).batch

    def answer(self, kind: Kind, text: str) -> wire.Answer:
        recipe, _ = self._adapter(kind)
        piece = wire.Piece(wire.columns(recipe, self.batch(kind, [text])), [0], [0])
        return wire.read(json.loads(wire.answer(recipe.hash, 1, [piece])))

    def _adapter(self, kind: Kind) -> tuple[Recipe, Adapter]:
        if kind not in self._loaded:
            recipe = kind.recipe
            self._loaded[kind] = recipe, load(recipe, kind.folder, device="cpu", threads=1)
        return self._loaded[kind]


def assert_same(found: wire.Answer, expected: wire.Answer) -> None:
    """All but the last digits of floats, which the neighbours in a batch move."""
    assert found.errors == expected.errors == []
    for field in dataclasses.fields(wire.Answer):
        assert_close(getattr(found, field.name), getattr(expected, field.name))


def assert_close(ours: Any, theirs: Any) -> None:
    """Values of any shape: floats within TOLERANCE, all else exactly."""
    if isinstance(ours, dict) and ours.keys() == {"indices", "values"}:
        assert_close_weights((ours["indices"], ours["values"]), (theirs["indices"], theirs["values"]))
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_close(ours[key], theirs[key])
    elif isinstance(ours, tuple):  # token ids and weights, as wire.Answer has them
        assert_close_weights(ours, theirs)
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other)
    elif isinstance(ours, float | np.ndarray):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    else:
        assert ours == theirs


def assert_close_weights(ours: Any, theirs: Any) -> None:
    """Of a token whose weight is almost none, one side may have it and the other not."""
    found, expected = (dict(zip(list(ids), list(weights), strict=True)) for ids, weights in (ours, theirs))
    for token in found.keys() | expected.keys():
        assert abs(found.get(token, 0.0) - expected.get(token, 0.0)) < TOLERANCE


class Watched:
    """A worker in this process, what it told whom, and what its device had at every move."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.residents, self.policy = worker.residents, worker.residents.policy
        self.told: Counter[str] = Counter()  # ids of requests
        self.moves: list[
            tuple[Step, int, int]
        ] = []  # with the accounted bytes of the device and of host memory after it
        self._tell, self._done = worker.answers.tell, self.policy.done
        worker.answers.tell, self.policy.done = self._telling, self._doing  # pyright: ignore[reportAttributeAccessIssue]

    def _telling(self, told: Sequence[Any]) -> bool:
        stored = self._tell(told)
        self.told.update(asked.id for asked, _ in told)
        return stored

    def _doing(self, step: Step, *given: Any, **named: Any) -> None:
        self._done(step, *given, **named)
        self.moves.append((step, self.policy.resident_bytes, self.policy.copied_bytes))

    # -- what users do

    def ask(self, asked: Iterable[tuple[Kind, str]]) -> dict[str, tuple[Kind, str]]:
        """Send a request each, all at once; by id."""
        sent = {uuid.uuid4().hex: one for one in asked}
        self.worker.requests.send([kind.message(text, id) for id, (kind, text) in sent.items()])
        return sent

    def answer(self, id: str) -> dict[str, Any] | None:
        stored: Any = self.worker.broker.client.get(f"celery-task-meta-{id}")
        return None if stored is None else json.loads(stored)

    # -- the device

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Nothing moves meanwhile, and what changed is looked at afterwards."""
        changed = self.residents._changed  # pyright: ignore[reportPrivateUsage]
        with changed:
            yield
            changed.notify_all()

    def measure(self, kinds: Iterable[Kind], *, fitting: int = 0) -> int:
        """Have every model on the device once, then room for `fitting` of the largest (0: all); the budget."""
        self.policy.device_bytes = 0
        for kind in kinds:
            self.worker.models.preload(Preload(kind.verb, str(kind.folder), RequestOptions()))
        if not fitting:
            return 0
        with self.still():
            found = [self.policy.models[kind.recipe.weights] for kind in kinds]
            sizes = sorted((one.weights for one in found), reverse=True)
            budget = sum(sizes[:fitting]) + max(one.working for one in found)
            assert budget < sum(sizes[-fitting - 1 :]) + max(one.working for one in found), "one more would fit"
            self.policy.device_bytes = budget
        self.until_quiet()
        self.moves.clear()
        return budget

    def until_quiet(self) -> None:
        """Until what is on the device fits, and nothing moves."""
        changed = self.residents._changed  # pyright: ignore[reportPrivateUsage]
        models = self.policy.models.values()
        with changed:
            assert changed.wait_for(
                lambda: (
                    not any(one.moving or one.leaving for one in models)
                    and (not self.policy.device_bytes or self.policy.resident_bytes <= self.policy.device_bytes)
                ),
                DEADLINE_S,
            )

    def leave(self, kind: Kind) -> None:
        """Take a model off the device."""
        self.residents.let_go(kind.recipe.weights)

    def until_told(self, asked: Iterable[str]) -> None:
        """Wait until these requests are answered."""
        until(lambda: all(map(self.told.__getitem__, asked)), self.residents.report)

    def found(self, id: str) -> wire.Answer:
        """The answer of one that was told, which must have been done."""
        stored = self.answer(id)
        assert stored is not None
        assert stored["status"] == "SUCCESS", stored
        return wire.read(stored["result"])

    def there(self) -> set[str]:
        return {key for key, one in self.policy.models.items() if one.tier == Tier.DEVICE}


class Workers:
    """Makes workers for a test, and ends them."""

    def __init__(self, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {"BROKER_URL": url, "JOBS": f"{folder}/jobs", "ROOTS": "/", "THREADS": "1"}
        settings |= {"BATCH_TOKENS_CPU": "128", "FOLD_INTERVAL_S": "0.05", "SWEEP_INTERVAL_S": "0.2"}
        for name, value in settings.items():
            monkeypatch.setenv(f"LADING_{name}", value)
        self._broker = Broker.connect(url)
        self._made: list[Worker] = []

    def make(self, *, device_bytes: int = ALL_BYTES, metered: bool = False, **pool: Any) -> Watched:
        """A worker that was not started."""
        settings = load_settings()
        found = Pool(name="cpu", device="cpu", memory_bytes=device_bytes, **{"swap_patience_s": 0.05, **pool})
        meter = WorkerMeter(found, settings) if metered else None
        worker = Worker(found, settings, self._broker, Registry(settings.jobs), meter=meter)
        self._made.append(worker)
        return Watched(worker)

    def close(self) -> None:
        for worker in self._made:
            if worker._work_thread.ident is not None:  # pyright: ignore[reportPrivateUsage]
                worker.stop(30.0, threading.Event())
            else:
                worker.residents.close()


def submit(wanted: JobSpec) -> Submitted:
    return submit_job(draft(wanted), Queues.of(load_settings()))


def ended(job: Submitted) -> bool:
    return not Registry(load_settings().jobs).is_open(job.job)


def rows_of(to: str) -> pa.Table:
    return pq.read_table(output_paths(to).data).sort_by("id")


def totals(job: Submitted, to: str) -> Any:
    return Manifest.open(output_paths(to), job.job).totals()


def until(claim: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    """Wait for something that will be; the deadline is for a test that has failed."""
    deadline = time.monotonic() + DEADLINE_S
    while not claim():
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)
