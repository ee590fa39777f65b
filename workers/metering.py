"""A worker's series (config/metrics.py), from what it tells as it works and from what its parts count anyway, read at each scrape."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..config.metrics import OTHER, REASONS, SINKS, STAGES, SWEEPING, TIERS, WORKER, Book, Sample
from ..config.settings import Settings
from ..pipelines.records import Receipt
from ..pipelines.sweep import Swept
from ..pipelines.sweep_meter import SweepMeter
from ..schedulers.pools import Pool
from ..schedulers.results import Failure, Result
from . import into
from .ports import Meter
from .residency import Tier

if TYPE_CHECKING:
    from .residents import Residents
    from .worker import Worker

# Series that are read.
READ = (
    "device_busy_seconds_total", "models_resident", "model_resident_bytes", "device_budget_bytes", "model_evictions_total",
    "model_uses_total", "out_of_memory_total", "redeliveries_total", "uncommitted_rows", "uncommitted_since_timestamp_seconds",
    "jobs_open",
)  # fmt: skip
# Errors that say that a request asks for what cannot be had; any other is a failure of ours, or of what we lean on.
REFUSALS = ("BadMessage", "UsageError", "OutputError", "ModelError")


class WorkerMeter(Meter):
    """One worker's, with the registry that its port serves."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self.book = Book((*WORKER, *SWEEPING), constant={"pool": pool.name}, reading=READ, read=self._read)
        self._worker: Worker | None = None
        self._ran = False
        self._sweeps = SweepMeter(self.book)
        self._started = self.book.registry.get_sample_value("process_start_time_seconds") or time.time()
        self.book.set("worker_start_timestamp_seconds", self._started)
        if settings.price_per_hour:
            self.book.set("worker_price_dollars_per_hour", settings.price_per_hour, capacity=settings.capacity)

    def watch(self, worker: Worker) -> None:
        self._worker = worker

    # -- told

    def batch(self, adapter: Any, cost: int, offered: int) -> None:
        model = self._model(adapter.weights)
        self.book.add("tokens_total", cost, op=adapter.recipe.task, model=model)
        self.book.add("batch_budget_tokens_total", offered, model=model)
        self.book.observe("batch_fill_ratio", cost / max(offered, 1), model=model)
        if not self._ran:
            self._ran = True
            self.book.set("worker_ready_seconds", time.time() - self._started)

    def published(
        self, op: str, sink: str, receipt: Receipt, *, ours: bool, seconds: Mapping[str, float], waited_s: float | None
    ) -> None:
        self.book.add("shards_total", op=op, outcome=receipt.status if ours else "duplicate")
        if waited_s is not None:
            self.book.observe("shard_wait_seconds", waited_s)
        if receipt.status != "done":
            return
        for stage in STAGES:
            if seconds.get(stage):  # 0 where a shard ran alone, and was not timed
                self.book.observe("stage_seconds", seconds[stage], stage=stage)
        if ours:  # else whoever published it has told of its rows
            self._documents(op, receipt.rows_done, receipt.rejects)
            self.book.add("rows_written_total", receipt.rows_out, sink=sink)
            self.book.add("bytes_written_total", sum(file.get("bytes", 0) for file in receipt.files), sink=sink)

    def unpublished(self, op: str, outcome: str) -> None:
        self.book.add("shards_total", op=op, outcome=outcome)

    def told(self, told: Iterable[tuple[str, float, Result]]) -> None:
        ends, now = Counter[tuple[str, str]](), time.time()
        for op, sent, result in told:
            outcome = "answered"
            if isinstance(result, Failure):
                outcome = "refused" if result.error in REFUSALS else "failed"
            ends[op or OTHER, outcome] += 1
            if op and sent:
                self.book.observe("request_seconds", max(now - sent, 0.0), op=op)
        for (op, outcome), count in ends.items():
            self.book.add("requests_total", count, op=op, outcome=outcome)

    def answered(self, op: str, inputs: int, errors: Iterable[str]) -> None:
        rejects = Counter(errors)
        self._documents(op, inputs - rejects.total(), rejects)

    def committed(self, sink: str, seconds: float, conflicts: int) -> None:
        self.book.observe("commit_seconds", seconds, sink=sink)
        self.book.add("commit_conflicts_total", conflicts, sink=sink)
        self.book.set("last_commit_timestamp_seconds", time.time(), sink=sink)

    def upserted(self, sink: str, rows: int, size: int) -> None:
        self.book.add("rows_written_total", rows, sink=sink)
        self.book.add("bytes_written_total", size, sink=sink)

    def folded(self, seconds: float) -> None:
        self.book.observe("stage_seconds", seconds, stage="fold")

    def loaded(self, model: str, source: str, seconds: float) -> None:
        self.book.observe("model_load_seconds", seconds, model=self.book.models(model), source=source)

    def not_loaded(self, kind: str) -> None:
        self.book.add("model_loads_failed_total", kind=kind)

    def swept(self, swept: Swept | None, seconds: float) -> None:
        self._sweeps.swept(swept, seconds)

    def _documents(self, op: str, done: int, rejects: Mapping[str, int]) -> None:
        self.book.add("documents_total", done, op=op, outcome="done")
        self.book.add("documents_total", sum(rejects.values()), op=op, outcome="rejected")
        for code, count in rejects.items():
            self.book.add("documents_rejected_total", count, reason=code if code in REASONS else OTHER)

    def _model(self, weights: str) -> str:
        return self.book.models(self._worker.residents.called(weights) if self._worker else "")

    # -- read

    def _read(self) -> Iterator[Sample]:
        yield from self._sweeps.read()
        if (worker := self._worker) is None:
            return
        gauges = worker.engine.gauges
        yield "device_busy_seconds_total", gauges.run.wall / worker.engine.streams, {"device": worker.device}
        yield "device_budget_bytes", worker.residents.policy.device_bytes, {"device": worker.device}
        yield "out_of_memory_total", gauges.split, {"outcome": "split"}
        yield "out_of_memory_total", gauges.too_large, {"outcome": "rejected"}
        for name, queue in (("shards", worker.shards), ("requests", worker.requests)):
            yield "redeliveries_total", worker.leases.redelivered[queue.name], {"queue": name}
        waiting = [*worker.folds.waiting(), *((into.KIND, *one) for one in worker.answers.waiting())]
        for sink in SINKS:
            yield "uncommitted_rows", sum(rows for kind, rows, _ in waiting if kind == sink), {"sink": sink}
            if since := [began for kind, rows, began in waiting if kind == sink and rows]:
                yield (
                    "uncommitted_since_timestamp_seconds",
                    time.time() - (time.monotonic() - min(since)),
                    {"sink": sink},
                )
        yield from self._models(worker.residents)

    def _models(self, residents: Residents) -> Iterator[Sample]:
        there, found = Counter[str](), Counter[tuple[str, ...]]()
        for called, one in residents.each():
            model = self.book.models(called)
            for tier, held in (("device", one.tier == Tier.DEVICE), ("host", one.copied)):
                there[tier] += held
                if held:
                    found["model_resident_bytes", model, "tier", tier] += one.weights
            found["model_uses_total", model, "outcome", "hit"] += one.holds
            found["model_uses_total", model, "outcome", "miss"] += one.misses
            for reason, count in one.evictions.items():
                found["model_evictions_total", model, "reason", reason] += count
        for tier in TIERS:
            yield "models_resident", there[tier], {"tier": tier}
        for (name, model, label, value), count in found.items():
            yield name, count, {"model": model, label: value}
