"""A worker process for queueing.py: `queue_worker.py lading|single|stock MODEL REPORT`. Prints "ready", then works until SIGTERM.

lading: the product's worker. single: the same, one request per pull, so that none shares a batch. stock: a plain Celery worker
whose task runs one request. All run the same adapter; what it measured is written to REPORT at the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from lading import adapters
from lading.config.checkpoint import locate, resolve
from lading.config.settings import load as load_settings


class Measured:
    """CPU seconds of an adapter's calls, each thread's own."""

    def __init__(self, kind: type[Any]) -> None:
        self._lock = threading.Lock()
        self.prepare_s = self.run_s = 0.0
        for name in ("prepare", "run"):
            setattr(kind, name, self._counting(name, getattr(kind, name)))

    def _counting(self, name: str, call: Any) -> Any:
        def counted(adapter: Any, given: Any) -> Any:
            began = time.thread_time()
            found = call(adapter, given)
            with self._lock:
                setattr(self, f"{name}_s", getattr(self, f"{name}_s") + time.thread_time() - began)
            return found

        return counted


def product(folder: Path, report: Path, most: int | None) -> None:
    import dataclasses

    from lading.adapters.encode import Encoder
    from lading.pipelines.registry import Registry
    from lading.schedulers import pools
    from lading.schedulers.bodies import RequestOptions
    from lading.schedulers.connection import Broker
    from lading.schedulers.endpoint import Endpoint
    from lading.schedulers.pools import Preload
    from lading.workers.metering import WorkerMeter
    from lading.workers.worker import Worker

    settings = load_settings()
    measured = Measured(Encoder)
    pool = pools.find(pools.load(), "cpu")
    if most:
        pool = dataclasses.replace(pool, pull_requests=most)
    broker = Broker.connect(settings.broker_url)
    meter = WorkerMeter(pool, settings) if settings.metrics_port else None
    worker = Worker(pool, settings, broker, Registry(settings.jobs), meter=meter)
    if meter is not None:
        Endpoint(settings.metrics_bind, settings.metrics_port, meter.book.registry)
    if most:  # nothing is topped up or merged either
        take = worker.lane.take
        worker.engine.requests.take = lambda may_run, _: take(may_run, lambda _: 1)  # type: ignore[method-assign]
    counted = {"requests": 0, "cpu_s": 0.0, "prepare_s": 0.0, "run_s": 0.0}
    tell = worker.answers.tell
    started = [time.process_time(), 0.0, 0.0, 0]

    def told(answers: Any) -> bool:
        counted["requests"] += len(answers)
        return tell(answers)

    def begin(*_: Any) -> None:
        started[:] = [time.process_time(), measured.prepare_s, measured.run_s, worker.engine.gauges.batches]
        counted["requests"] = 0

    worker.answers.tell = told  # type: ignore[method-assign]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGUSR1, begin)
    # Every worker has the model before the clock runs: which one would take the first request is chance.
    worker.models.preload(Preload("encode", str(folder), RequestOptions()))
    worker.start()
    print("ready", flush=True)
    stop.wait()
    gauges = worker.engine.gauges
    cpu = time.process_time() - started[0]
    worker.stop(30.0, threading.Event())
    found = {
        "requests": counted["requests"],
        "cpu_s": cpu,
        "prepare_s": measured.prepare_s - started[1],
        "run_s": measured.run_s - started[2],
        "batches": gauges.batches - started[3],
        "fill": gauges.fill,
        "batch_s": gauges.run.wall / max(gauges.batches, 1),
    }
    report.write_text(json.dumps(found))


def stock(folder: Path, report: Path) -> None:
    """What a user would write: a task that runs the model on its arguments, in Celery's solo pool, results in Redis."""
    import base64

    import torch
    from celery import Celery
    from celery.signals import worker_ready

    settings = load_settings()
    recipe = resolve(locate(str(folder)), task="encode")
    adapter = adapters.load(recipe, folder, device="cpu", threads=1)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # one batch at a time: all threads work on it
    app = Celery("stock", broker=settings.broker_url, backend=settings.broker_url)
    app.conf.update(worker_enable_remote_control=False, worker_prefetch_multiplier=4, task_acks_late=True)
    app.conf.broker_transport_options = {"priority_steps": [0]}

    @app.task(name="lading.request")
    def encode(*, inputs: list[str], **_: Any) -> str:
        prepared = adapter.prepare([pa.array(inputs, pa.string())])
        found = adapter.run([(prepared, prepared.rows.astype("int64"))])
        return base64.b64encode(found.batch.column(0).flatten().to_numpy().tobytes()).decode()

    worker_ready.connect(lambda **_: os.write(1, b"ready\n"), weak=False)  # Celery redirects print
    report.write_text("{}")
    app.worker_main(
        [
            "worker",
            "-P",
            "solo",
            "-Q",
            "stock",
            "-l",
            "ERROR",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
    )


if __name__ == "__main__":
    kind, model, where = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if kind == "stock":
        stock(model, where)
    else:
        product(model, where, 1 if kind == "single" else None)
