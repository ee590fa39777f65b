"""Control tasks through a real worker, sent by a plain Celery application: what they do, and which places they may name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from celery import Celery

from lading.config.errors import SpecError, UsageError
from lading.pipelines.registry import Registry
from lading.schedulers.connection import Broker
from tests.processes import CELERY, Process
from tests.redis_server import RedisServer

CONTROL = "lading.cpu.control"


class Installation:
    """A worker with one root, and an application that asks it."""

    def __init__(self, url: str, root: Path, outside: Path, model: Path, worker: Process) -> None:
        self.root, self.outside, self.model, self.worker = root, outside, model, worker
        self.registry = Registry(f"{root}/jobs")
        self.app = Celery("application", broker=url, backend=url, set_as_current=False)

    def ask(self, task: str, *arguments: Any, **options: Any) -> Any:
        return self.app.send_task(task, args=arguments, queue=CONTROL, **options).get(timeout=60)

    def job(self, **changes: str) -> dict[str, Any]:
        """A job file's content."""
        named = {"path": f"{self.root}/in.parquet", "model": str(self.model), "to": f"lancedb://{self.root}/db/docs"}
        named |= changes
        step = {"encode": {"text": "text", "model": named["model"]}}
        return {"source": {"path": named["path"]}, "steps": [step], "sink": {"to": named["to"]}}


@pytest.fixture(scope="module")
def at(
    shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path
) -> Iterator[Installation]:
    with redis.Redis(port=shared_redis.port) as client:
        client.flushall()
    root, outside = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("outside")
    for folder in (root, outside):
        pq.write_table(pa.table({"text": [f"row {n}" for n in range(40)]}), folder / "in.parquet")
    (root / "link.parquet").symlink_to(outside / "in.parquet")
    (root / "out").symlink_to(outside)
    environment = {
        "LADING_BROKER_URL": shared_redis.url,
        "LADING_JOBS": f"{root}/jobs",
        "LADING_ROOTS": f"{root},{tiny_encoder.parent}",
        "LADING_THREADS": "1",
        "LADING_FOLD_INTERVAL_S": "0.1",
    }
    worker = Process([*CELERY, "-l", "WARNING"], environment, tmp_path_factory.mktemp("log") / "worker.log")
    broker = Broker.connect(shared_redis.url)
    worker.until(lambda: broker.workers("cpu"))
    yield Installation(shared_redis.url, root, outside, tiny_encoder, worker)
    worker.close()


def test_a_job_is_submitted_and_its_output_tidied(at: Installation) -> None:
    """With the answers that the commands give as JSON; the same worker does the job's shards."""
    submitted = at.ask("lading.submit", at.job())
    assert (submitted["state"], submitted["pool"], submitted["shards"]) == ("submitted", "cpu", 1)
    at.worker.until(lambda: not at.registry.is_open(submitted["job"]))
    assert at.ask("lading.submit", at.job())["state"] == "nothing to do"
    for named in (f"lancedb://{at.root}/db/docs", f"{at.root}/db/docs"):
        done = at.ask("lading.optimize", named)
        assert (done["output"], done["fragments_after"]) == (f"{at.root}/db/docs", 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "{outside}/in.parquet"},
        {"path": "{root}/../{outside.name}/*.parquet"},
        {"path": "{root}/link.parquet"},
        {"path": "{root}/l*.parquet"},
        {"path": "lance://{outside}/table"},
        {"path": "s3://elsewhere/in.parquet"},
        {"to": "lancedb://{outside}/docs"},
        {"to": "parquet://{root}/out/docs"},
        {"model": "{outside}"},
    ],
)
def test_a_job_outside_the_roots_is_refused(at: Installation, changes: dict[str, str]) -> None:
    """By whatever name, before anything is written."""
    named = {key: value.format(root=at.root, outside=at.outside) for key, value in changes.items()}
    with pytest.raises(UsageError, match="lies under none of the places that this worker allows"):
        at.ask("lading.submit", at.job(**{"to": f"lancedb://{at.root}/db/other", **named}))
    assert not (at.root / "db/other.lading").exists()
    assert sorted(path.name for path in at.outside.iterdir()) == ["in.parquet"]


@pytest.mark.parametrize("output", ["lancedb://{outside}/docs", "{outside}", "{root}/out/docs", "parquet://{root}/out"])
def test_an_output_outside_the_roots_is_refused(at: Installation, output: str) -> None:
    """As a URL or a path."""
    with pytest.raises(UsageError, match="lies under none of the places that this worker allows"):
        at.ask("lading.optimize", output.format(root=at.root, outside=at.outside))


def test_what_is_no_job_is_told(at: Installation) -> None:
    """In the words of the job file's checks."""
    with pytest.raises(SpecError, match=r"lading.submit: sources: .*did you mean 'source'"):
        at.ask("lading.submit", {"sources": {}})
    with pytest.raises(SpecError, match="expected the keys of a job file, found list"):
        at.ask("lading.submit", [])


def test_only_json_is_taken(at: Installation, shared_redis: RedisServer) -> None:
    """What was pickled is not run, and the worker goes on."""
    at.app.conf.accept_content = ["json", "pickle"]
    at.app.send_task(
        "lading.submit", args=[at.job(to=f"lancedb://{at.root}/db/pickled")], queue=CONTROL, serializer="pickle"
    )
    with pytest.raises(SpecError):
        at.ask("lading.submit", {})
    assert not (at.root / "db/pickled.lading").exists()
    with redis.Redis(port=shared_redis.port) as client:
        # It is acknowledged after its result is stored.
        at.worker.until(lambda: (client.llen(CONTROL), client.hlen(f"unacked:{CONTROL}")) == (0, 0))
