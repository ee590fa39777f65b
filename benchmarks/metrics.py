"""What metrics cost: the same work by a worker that serves them, scraped every second, and by one that counts nothing.

    python benchmarks/metrics.py [--model tiny|minilm] [--requests N] [--rows N] [--rounds N] [--quick] [--json]

A private Redis, one worker process of one thread at a time, with and without a metrics port by turns; both do the same requests (64
under way) and the same corpus job. The scraper is a process of its own, as Prometheus is. The CPU seconds of the worker's process
tell a cost of a percent where the clock of a busy machine does not; both are shown, as medians of pairs.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.queueing import (
    CLIENTS,
    REQUESTS,
    WorkerProcess,
    closed_loop,
    corpus,
    installation,
    model_folder,
    queued,
    requests,
)
from benchmarks.report import Report
from lading.config.metrics import MOST_MODELS
from lading.config.words import counted
from tests.redis_server import RedisServer

INTERVAL_S = 1.0  # fifteen times as often as Prometheus usually does
AIM = 1.0  # % of throughput
SCRAPER = """
import sys, time, urllib.request
while True:
    with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics") as page:
        page.read()
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def scraped(port: int) -> Iterator[None]:
    """By a process of its own meanwhile; 0: nothing is served."""
    if not port:
        yield
        return
    process = subprocess.Popen([sys.executable, "-S", "-c", SCRAPER, str(port), str(INTERVAL_S)])
    try:
        yield
        assert process.poll() is None, "the scraper could not read the metrics"
    finally:
        process.kill()
        process.wait()


def measured(
    server: RedisServer, scratch: Path, model: Path, port: int, count: int, rows: int
) -> tuple[float, float, float]:
    """Seconds of the requests, of the job, and CPU seconds of the worker for both; port 0: without metrics."""
    settings = {"threads": "1", **({"LADING_METRICS_PORT": str(port)} if port else {})}
    worker = WorkerProcess("lading", server, scratch, model, **settings)
    try:
        with scraped(port):
            closed_loop(server, REQUESTS, requests(model, 200), CLIENTS)
            worker.begin()
            asked, _ = closed_loop(server, REQUESTS, requests(model, count), CLIENTS)
            done, _ = queued(scratch, model, rows, 128)
    finally:
        found = worker.stop()
    return asked, done, found["cpu_s"]


def alone(report: Report) -> None:
    """CPU of the counting itself, in this process: nothing else can hide it, however busy the machine."""
    from prometheus_client import generate_latest

    from lading.config.settings import load
    from lading.schedulers import pools
    from lading.workers.metering import WorkerMeter

    meter = WorkerMeter(pools.find(pools.load(), "cpu"), load())
    adapter: Any = SimpleNamespace(weights="", recipe=SimpleNamespace(task="encode"))
    answers = [("encode", time.time() - 1, b"{}")] * 64

    def cpu(call: Callable[[], object], times: int) -> float:
        began = time.process_time()
        for _ in range(times):
            call()
        return (time.process_time() - began) / times * 1e6

    report.title("counting alone")
    report.line("a batch", cpu(lambda: meter.batch(adapter, 1000, 4096), 50_000), "us")
    report.line("a request's answer", cpu(lambda: meter.told(answers), 2_000) / len(answers), "us")
    for number in range(MOST_MODELS):
        meter.book.add("tokens_total", 1, op="encode", model=f"model-{number}")
        meter.book.observe("batch_fill_ratio", 1, model=f"model-{number}")
        meter.book.observe("model_load_seconds", 1, model=f"model-{number}", source="disk")
        if number in (0, MOST_MODELS - 1):
            taken = cpu(lambda: generate_latest(meter.book.registry), 100)
            report.line(f"a scrape, {counted(number + 1, 'model')}", taken / 1000, "ms")


def run(report: Report, server: RedisServer, scratch: Path, model: Path, *, count: int, rows: int, rounds: int) -> None:
    report.title(f"{count:,} requests and a job of {rows:,} texts, {model.name}, one thread")
    corpus(scratch, rows)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    off: list[tuple[float, float, float]] = []
    on: list[tuple[float, float, float]] = []
    for number in range(rounds):
        for metered in (False, True) if number % 2 else (True, False):  # neither is always the second
            (on if metered else off).append(measured(server, scratch, model, port if metered else 0, count, rows))
    for place, (name, amount, unit) in enumerate((("requests", count, "requests/s"), ("the job", rows, "texts/s"))):
        rates = [statistics.median(amount / one[place] for one in found) for found in (on, off)]
        cost = statistics.median(1 - two[place] / one[place] for one, two in zip(on, off, strict=True))
        report.line(f"{name}, with metrics", rates[0], unit, rates[1])
        report.line(f"{name}, cost of metrics by the clock", cost * 100, "%", AIM)
    cost = statistics.median(one[2] / two[2] - 1 for one, two in zip(on, off, strict=True))
    seconds = [statistics.median(one[2] for one in found) for found in (on, off)]
    report.line("CPU of all of it, with metrics", seconds[0], "s", seconds[1])
    report.line("cost of metrics in CPU", cost * 100, "%", AIM)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=("tiny", "minilm"), default="minilm")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements (default: 5)")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--quick", action="store_true", help="a short form, to see that it works")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    with installation() as (server, scratch):
        model = model_folder(given.model, scratch)
        count, rows, rounds = (500, 300, 1) if given.quick else (given.requests, given.rows, given.rounds)
        alone(Report(given.json))
        run(Report(given.json), server, scratch, model, count=count, rows=rows, rounds=rounds)


if __name__ == "__main__":
    main()
