"""Every series that Lading's processes expose, declared once: name, kind, what it says, its labels and their values. Knows nobody.

`Book` makes a process's registry of some of them. No label ever holds an id, a path or a URL, and each has a bounded number of values.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "lading_"
MOST_MODELS = 64  # names in the label `model` of one process; those that come later are counted as OTHER
OTHER = "other"

# Closed sets of label values. () is a label whose values are open, and bounded by who fills it.
OPS = ("encode", "score", "extract")
QUEUES = ("shards", "requests")
SINKS = ("lancedb", "parquet")
TIERS = ("device", "host")
STAGES = ("read", "prepare", "run", "write", "fold")
REASONS = (  # pipelines/records.py, REJECT_CODES
    "empty-text", "null-text", "null-id", "duplicate-id", "invalid-utf8", "invalid-json", "invalid-row", "unknown-query",
    "too-long", "unknown-token", "not-finite", "failed", "out-of-memory", "killed",
)  # fmt: skip

# Seconds. What takes a batch to a commit, and what takes a wait to a job's whole time.
WORK_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
WAIT_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
FILL = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """One declaration. A counter's name ends with _total, any other's never does."""

    name: str  # without PREFIX
    kind: str  # counter | gauge | histogram
    help: str
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def closed(self) -> bool:
        """Whether every set of label values is known in advance; such a counter is there from the start, with 0."""
        return all(values for label, values in self.labels.items() if label != "pool")


_POOL: dict[str, tuple[str, ...]] = {"pool": ()}
_MODEL: dict[str, tuple[str, ...]] = {"pool": (), "model": ()}
_SINK = {**_POOL, "sink": SINKS}
_QUEUE = {**_POOL, "queue": QUEUES}
_OP = {**_POOL, "op": OPS}

EVERYWHERE = (
    Series("build_info", "gauge", "1; the labels say which release runs, and on what.", {"version": (), "python": (), "torch": ()}),
)  # fmt: skip

WORKER = (
    Series("shards_total", "counter", "Shards that ended here: done, failed for good, given_back when the worker stopped, left for another time because the "
           "output could not be written, or duplicate, when another worker had published the shard first.",
           {**_OP, "outcome": ("done", "failed", "given_back", "left", "duplicate")}),
    Series("shard_wait_seconds", "histogram", "From the sending of a shard's message until a worker took it up.", _POOL, WAIT_S),
    Series("stage_seconds", "histogram", "Seconds that a shard spent in each stage, without its waiting; fold: that a pass took which brings published "
           "shards into view.", {**_POOL, "stage": STAGES}, WORK_S),
    Series("documents_total", "counter", "Rows of shards that were published here, and inputs of requests that were answered: done, or rejected for "
           "a reason of their own.", {**_OP, "outcome": ("done", "rejected")}),
    Series("documents_rejected_total", "counter", "The rejected ones, by the code of the reason.", {**_POOL, "reason": (*REASONS, OTHER)}),
    Series("requests_total", "counter", "Requests that were told their end: answered, refused for what they ask (a model or a table that cannot be "
           "had), or failed; op is other where the message did not say.", {**_POOL, "op": (*OPS, OTHER), "outcome": ("answered", "refused", "failed")}),
    Series("request_seconds", "histogram", "From the sending of a request until its answer was stored.", _OP, WORK_S),
    Series("tokens_total", "counter", "Tokens (or what else the model's rows cost) that went through the device.", {**_OP, "model": ()}),
    Series("batch_budget_tokens_total", "counter", "Tokens that those batches had room for: 1 - tokens / budget is what packing left empty.", _MODEL),
    Series("batch_fill_ratio", "histogram", "Share of its budget that a batch used.", _MODEL, FILL),
    Series("device_busy_seconds_total", "counter", "Seconds that the device ran batches; its rate is the busy share. Of a device that runs several at "
           "once, their mean.", {**_POOL, "device": ()}),
    Series("models_resident", "gauge", "Models on the device, and those with a copy in host memory.", {**_POOL, "tier": TIERS}),
    Series("model_resident_bytes", "gauge", "Bytes of a model's weights there.", {**_MODEL, "tier": TIERS}),
    Series("device_budget_bytes", "gauge", "Bytes that models and their batches may take on the device; 0 is no limit.", {**_POOL, "device": ()}),
    Series("model_load_seconds", "histogram", "Seconds that a model took to come onto the device.", {**_MODEL, "source": ("host", "disk")}, WORK_S),
    Series("model_loads_failed_total", "counter", "Loads that failed: permanent, or transient, which are tried again.",
           {**_POOL, "kind": ("permanent", "transient")}),
    Series("model_evictions_total", "counter", "Models that left the device: for the room of another, because the device was out of memory, after idling, or with "
           "the base that they adapt.", {**_MODEL, "reason": ("room", "memory", "idle", "base")}),
    Series("model_uses_total", "counter", "Batches that found their model on the device (hit), and times that work had to wait for it (miss).",
           {**_MODEL, "outcome": ("hit", "miss")}),
    Series("out_of_memory_total", "counter", "Batches that the device had no memory for and that were split, and rows that were rejected because it had none for "
           "them alone.", {**_POOL, "outcome": ("split", "rejected")}),
    Series("redeliveries_total", "counter", "Messages taken under suspicion: an earlier worker had them and vanished.", _QUEUE),
    Series("rows_written_total", "counter", "Rows published to outputs, or put into tables by requests.", _SINK),
    Series("bytes_written_total", "counter", "Bytes of the files with those rows.", _SINK),
    Series("commit_seconds", "histogram", "Seconds of a commit that brought rows into view.", _SINK, WORK_S),
    Series("commit_conflicts_total", "counter", "Commits that another writer was faster than, and that were tried again.", _SINK),
    Series("uncommitted_rows", "gauge", "Rows that are published, or wait for their table, and are not in view yet.", _SINK),
    Series("uncommitted_since_timestamp_seconds", "gauge", "Since when rows wait for this process to bring them into view, of the output whose rows wait longest; absent "
           "while none wait.", _SINK),
    Series("last_commit_timestamp_seconds", "gauge", "When rows were last brought into view, of any output.", _SINK),
    Series("worker_price_dollars_per_hour", "gauge", "What the machine of this worker costs, from the settings; absent where they do not say.",
           {**_POOL, "capacity": ("on-demand", "spot")}),
    Series("worker_start_timestamp_seconds", "gauge", "When the process started.", _POOL),
    Series("worker_ready_seconds", "gauge", "From the start of the process to its first batch on the device: the cold start. Absent until then.", _POOL),
)  # fmt: skip

# Of whichever process sweeps: the scheduler, or where there is none a worker.
SWEEPING = (
    Series("jobs_total", "counter", "Jobs that were seen to end: done, failed (shards failed, or a limit of the job's own), or cancelled.",
           {"op": (*OPS, OTHER), "outcome": ("done", "failed", "cancelled")}),
    Series("job_duration_seconds", "histogram", "From the last submission of a job that was done to its end.", {"op": OPS}, WAIT_S),
    Series("sweep_seconds", "histogram", "Seconds of a pass over queues and jobs.", {}, WORK_S),
    Series("jobs_open", "gauge", "Jobs that are not over; absent in a process that does not lead.", {}),
)  # fmt: skip

EXPORTER = (
    Series("redis_up", "gauge", "1 if the broker answered just now. With 0 the other series of the exporter are absent.", {}),
    Series("queue_depth", "gauge", "Messages that wait.", _QUEUE),
    Series("queue_inflight", "gauge", "Messages that workers have taken and not settled.", _QUEUE),
    Series("queue_oldest_age_seconds", "gauge", "Age of the message that is next; 0 where none waits.", _QUEUE),
    Series("dead_letters", "gauge", "Messages that were given up.", _QUEUE),
    Series("shards_left", "gauge", "Shards that are not done, those that are not in Redis yet included; absent while nobody sweeps.", _POOL),
    Series("pool_workers", "gauge", "Workers that lately said that they live.", _POOL),
    Series("pool_max_workers", "gauge", "Most workers that the pool is meant for (pools.yaml).", _POOL),
    Series("redis_memory_used_bytes", "gauge", "Bytes that the broker uses.", {}),
    Series("redis_memory_max_bytes", "gauge", "Bytes that it may use; 0 is no limit.", {}),
    Series("redis_noeviction", "gauge", "1 if a full broker refuses writes, as it must; 0 if it would drop queues.", {}),
    Series("redis_evicted_keys_total", "counter", "Keys that the broker dropped for lack of memory.", {}),
    Series("redis_aof_enabled", "gauge", "1 if the broker keeps an append-only file.", {}),
)  # fmt: skip


class Names:
    """Values of the label `model`, from what models are called: a folder's path is left out, and of many names the first alone are kept."""

    def __init__(self, most: int = MOST_MODELS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._labels: dict[str, str] = {}
        self._kept: set[str] = set()

    def __call__(self, called: str) -> str:
        """`called`: a name on the hub or a folder, with ` + ` and that of its adapter where it has one."""
        with self._lock:
            label = self._labels.get(called)
            if label is None:
                label = " + ".join(map(_without_path, called.split(" + ")))
                if label not in self._kept and len(self._kept) >= self._most:
                    return OTHER
                self._kept.add(label)
                if len(self._labels) < 16 * self._most:  # many folders may end alike
                    self._labels[called] = label
            return label


def _without_path(name: str) -> str:
    """`owner/model` stays; of what may be a path, or a URL, the last part."""
    plain = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name)
    return (name if plain else re.sub(r"[^\w.-]", "_", name.rstrip("/").rpartition("/")[2]))[:96] or OTHER


Sample = tuple[str, float, Mapping[str, str]]  # of a series' name: a value, and its labels without the constant ones


class Book:
    """The registry of one process, and the only way to its series. Threads may share one.

    What is counted as it happens is told with `add`, `observe` and `set`; what others count anyway is read from them at each scrape.
    """

    def __init__(
        self, series: Iterable[Series], *, constant: Mapping[str, str] | None = None, reading: Collection[str] = (),
        read: Callable[[], Iterable[Sample]] = lambda: (),
    ) -> None:  # fmt: skip
        """constant: labels whose value is the same in all of the process (pool). `read` is called at each scrape, and gives the
        samples of the series named in `reading`."""
        disable_created_metrics()
        self.registry, self.models = CollectorRegistry(), Names()
        self._constant = dict(constant or {})
        self._declared = {one.name: one for one in (*EVERYWHERE, *series)}
        self._told: dict[str, Any] = {}
        self._children: dict[tuple[Any, ...], Any] = {}  # by name and labels
        for one in self._declared.values():
            if one.name not in reading:
                self._told[one.name] = self._make(one)
        if reading:
            self.registry.register(_Reading([self._declared[name] for name in reading], self._constant, read))
        ProcessCollector(registry=self.registry)
        self.set("build_info", 1, version=_version("lading"), python=platform.python_version(), torch=_version("torch"))

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Count."""
        self._of(name, labels).inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One value of a histogram."""
        self._of(name, labels).observe(value)

    def set(self, name: str, value: float, **labels: str) -> None:
        """The value of a gauge from now on."""
        self._of(name, labels).set(value)

    def _of(self, name: str, labels: Mapping[str, str]) -> Any:
        key = (name, *labels.items())
        child = self._children.get(key)  # a tenth of the library's own way to it
        if child is None:
            told, own = self._told[name], self._declared[name].labels
            child = told.labels(**_constant(own, self._constant), **labels) if own else told
            self._children[key] = child
        return child

    def _make(self, one: Series) -> Any:
        given: dict[str, Any] = {"registry": self.registry}
        if one.buckets:
            given["buckets"] = one.buckets
        made = _KINDS[one.kind](one.full_name, one.help, list(one.labels), **given)
        if one.closed and one.kind == "counter" and one.labels:  # a rate needs the 0 before the 1
            sets = [(self._constant[label],) if label in self._constant else one.labels[label] for label in one.labels]
            for values in product(*sets):
                made.labels(*values)
        return made


class _Reading(Collector):
    """Samples that are read at each scrape."""

    def __init__(
        self, series: Sequence[Series], constant: Mapping[str, str], read: Callable[[], Iterable[Sample]]
    ) -> None:
        self._series, self._constant, self._read = series, constant, read

    def describe(self) -> Iterable[Metric]:
        return self._families().values()

    def collect(self) -> Iterable[Metric]:
        families = self._families()
        own = {one.name: list(one.labels) for one in self._series}
        for name, value, labels in self._read():
            labels = {**_constant(own[name], self._constant), **labels}
            families[name].add_metric([labels[label] for label in own[name]], value)
        return [one for one in families.values() if one.samples]

    def _families(self) -> dict[str, Any]:
        return {one.name: _FAMILIES[one.kind](one.full_name, one.help, labels=list(one.labels)) for one in self._series}


_KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
_FAMILIES: dict[str, Any] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


def _constant(labels: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Those of the constant labels that a series has."""
    return {label: given[label] for label in labels if label in given}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
