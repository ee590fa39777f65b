"""A worker's series: what a scrape shows is what was done, exactly; names and labels are those that were declared, and stay few."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.config import metrics
from lading.config.errors import StopJob
from lading.config.metrics import EVERYWHERE, EXPORTER, MOST_MODELS, OTHER, PREFIX, SWEEPING, WORKER, Book, Names
from lading.pipelines.manifest import Manifest
from lading.pipelines.output import KINDS, output_paths
from lading.pipelines.records import REJECT_CODES, Receipt
from lading.pipelines.registry import Registry
from lading.schedulers.bodies import VERBS, RequestOptions
from lading.schedulers.messages import Request, request_message
from lading.schedulers.pools import Preload
from lading.workers import publishing
from lading.workers.metering import WorkerMeter
from lading.workers.residency import Tier
from tests import queued, swapping
from tests.scraping import Scraped, lint
from tests.swapping import Kind, Watched, Workers, ended, submit, totals, until

POOL = {"pool": "cpu"}


def told_by(one: Watched) -> Scraped:
    meter = one.worker.meter
    assert isinstance(meter, WorkerMeter)
    return Scraped.of(meter.book.registry)


def corpus_of(path: Path, rows: list[str | None]) -> Path:
    pq.write_table(pa.table({"key": [f"k{n:05d}" for n in range(len(rows))], "body": rows}), path)
    return path


def receipts_of(job: Any, to: str) -> list[Receipt]:
    return list(Manifest.open(output_paths(to), job.job).finished())


def stopped(one: Watched) -> Scraped:
    """What is told when all is written down."""
    one.worker.stop(60.0, threading.Event())
    return told_by(one)


# -- what is declared


def test_names_and_helps_follow_the_rules() -> None:
    """Every series that any process can expose passes promtool, has a help text, and values for each closed label."""
    series = [*EVERYWHERE, *WORKER, *SWEEPING, *EXPORTER]
    assert len({one.name for one in series}) == len(series)
    book = Book(series[1:], constant=POOL)
    for one in series[1:]:
        labels = {label: (values or ("x",))[0] for label, values in one.labels.items() if label != "pool"}
        {"counter": book.add, "gauge": book.set, "histogram": book.observe}[one.kind](one.name, 1, **labels)
        assert one.help.endswith(".")
        assert (one.kind == "counter") == one.name.endswith("_total")
        assert bool(one.buckets) == (one.kind == "histogram")
        assert tuple(sorted(one.buckets)) == one.buckets
    text = Scraped.of(book.registry).text
    assert {f"# HELP {one.full_name} {one.help}" for one in series} <= set(text.splitlines())
    assert lint(text) == ""


def test_label_values_are_those_of_the_code() -> None:
    """The closed sets are the ones that the rooms below use: verbs, sinks, reject codes, tiers."""
    assert (metrics.OPS, metrics.SINKS, metrics.REASONS) == (VERBS, KINDS, REJECT_CODES)
    assert {tier.name.lower() for tier in Tier} - {"disk"} == set(metrics.TIERS)


def test_models_are_few_and_have_no_path() -> None:
    """The first names alone become labels; a folder's path, a URL and odd letters do not."""
    names = Names(most=5)
    assert names("BAAI/bge-m3") == "BAAI/bge-m3"
    assert names("/srv/secret/place/minilm/") == "minilm"
    assert names("BAAI/bge-m3 + /srv/adapters/legal") == "BAAI/bge-m3 + legal"
    assert names("s3://bucket/models/e5 large\n") == "e5_large_"
    assert names("x" * 500) == "x" * 96
    assert {names(f"model-{number}") for number in range(1000)} == {OTHER}
    assert names("/elsewhere/minilm") == "minilm"


def test_counters_begin_at_zero() -> None:
    """What is counted with labels known in advance is there before anything happened: a rate needs the 0 before the 1."""
    found = Scraped.of(Book(WORKER, constant=POOL).registry)
    assert found.values("shards_total") == [0.0] * 15
    assert found.total("documents_rejected_total", reason="out-of-memory") == 0
    assert not found.values("request_seconds_count")
    assert not found.values("tokens_total")
    assert not found.values("worker_ready_seconds")
    assert "_created" not in found.text


# -- what a worker did


def test_what_is_scraped_is_what_was_done(workers: Workers, tmp_path: Path, kinds: list[Kind]) -> None:
    """A job with bad rows and requests for two models, good and bad: rows, shards, tokens, rejects by reason, loads."""
    dense, cross = kinds[0], kinds[3]
    one = workers.make(metered=True)
    before = told_by(one)
    assert before.value("device_budget_bytes", device="cpu") == swapping.ALL_BYTES
    one.worker.start()
    rows = [None if n % 10 == 3 else " " if n % 10 == 5 else text for n, text in enumerate(swapping.texts(40))]
    spec, to = (
        dense.spec(corpus_of(tmp_path / "in.parquet", rows), f"parquet://{tmp_path}/out"),
        f"parquet://{tmp_path}/out",
    )
    began = time.time()
    job = submit(spec)
    texts = swapping.texts(6, seed=1)
    asked = one.ask([*((dense, text) for text in texts), (dense, " "), *((cross, text) for text in texts)])
    nowhere = request_message(
        Request("encode", "/nowhere/at/all", ["a", "b"]), id=(lost := uuid.uuid4().hex), now=time.time()
    )
    one.worker.requests.send([nowhere, b"{}"])
    one.until_told([*asked, lost])
    until(lambda: ended(job))
    until(lambda: one.worker.requests.counts().dead == 1)
    policy, gauges = one.policy, one.worker.engine.gauges
    found = stopped(one)

    receipts, names = receipts_of(job, to), {kind: kind.folder.name for kind in (dense, cross)}
    assert found.value("shards_total", op="encode", outcome="done") == 5
    assert found.total("shards_total") == 5
    assert found.value("documents_total", op="encode", outcome="done") == totals(job, to).done + 6 == 38
    assert found.value("documents_total", op="encode", outcome="rejected") == totals(job, to).rejected + 1 == 9
    assert found.value("documents_total", op="score", outcome="done") == 6
    assert found.value("documents_rejected_total", reason="null-text") == 4
    assert found.value("documents_rejected_total", reason="empty-text") == 5
    assert found.total("documents_rejected_total") == 9
    assert found.value("requests_total", op="encode", outcome="answered") == 7
    assert found.value("requests_total", op="score", outcome="answered") == 6
    assert found.value("requests_total", op="encode", outcome="refused") == 1
    assert found.total("requests_total") == 14
    assert found.value("request_seconds_count", op="encode") == 8
    assert 0 < found.value("request_seconds_sum", op="score") < 6 * (time.time() - began)

    direct = {kind: swapping.Direct() for kind in (dense, cross)}
    of_requests = {kind: cost(direct[kind], kind, texts) for kind in (dense, cross)}
    assert found.value("tokens_total", op="encode") == sum(one.tokens for one in receipts) + of_requests[dense]
    assert found.value("tokens_total", op="score", model=names[cross]) == of_requests[cross]
    assert found.total("tokens_total") == gauges.cost
    assert found.total("batch_budget_tokens_total") == gauges.offered
    assert found.total("batch_fill_ratio_count") == gauges.batches
    assert found.value("device_busy_seconds_total", device="cpu") == gauges.run.wall / one.worker.engine.streams

    assert found.labels("model_load_seconds_count", "model") == set(names.values())
    assert found.total("model_load_seconds_count", source="disk") == policy.loads[Tier.DISK] == 2
    assert found.total("model_load_seconds_sum") == pytest.approx(sum(policy.load_s.values()))
    assert found.total("model_uses_total", outcome="hit") == policy.holds
    assert found.total("model_uses_total", outcome="miss") == policy.misses >= 2
    assert found.value("models_resident", tier="device") == 2
    assert found.total("model_resident_bytes") == sum(model.weights for model in policy.models.values())
    assert found.total("model_loads_failed_total") == found.total("model_evictions_total") == 0

    parts = [path for path in (tmp_path / "out").glob("*.parquet") if not path.name.endswith("-schema.parquet")]
    assert found.value("rows_written_total", sink="parquet") == pq.read_table(parts).num_rows == 32
    assert found.value("bytes_written_total", sink="parquet") == sum(path.stat().st_size for path in parts)
    assert found.value("uncommitted_rows", sink="parquet") == 0
    assert began <= found.value("last_commit_timestamp_seconds", sink="parquet") <= time.time()
    assert 1 <= found.value("commit_seconds_count", sink="parquet") <= 5
    for stage in ("read", "prepare", "run", "write"):
        assert found.value("stage_seconds_count", stage=stage) == 5
    assert found.value("stage_seconds_sum", stage="run") == pytest.approx(
        sum(one.seconds["run"] for one in receipts), abs=1e-3
    )
    assert found.value("shard_wait_seconds_count") == 5
    assert found.total("redeliveries_total") == found.total("out_of_memory_total") == 0
    assert 0 < found.value("worker_ready_seconds") < time.time() - found.value("worker_start_timestamp_seconds")
    check_declared(found)
    assert lint(found.text) == ""
    for secret in (str(tmp_path), job.job, str(dense.folder.parent)):
        assert secret not in found.text


def cost(direct: swapping.Direct, kind: Kind, texts: list[str]) -> int:
    """Tokens of these texts."""
    _, adapter = direct._adapter(kind)
    columns = [pa.array(texts)] if adapter.inputs == 1 else [pa.array([swapping.QUERY] * len(texts)), pa.array(texts)]
    return int(adapter.prepare(columns).costs.sum())


def check_declared(found: Scraped) -> None:
    """No series but declared ones, with their labels, and values of closed sets where these are closed."""
    known = {one.full_name: one for one in (*EVERYWHERE, *WORKER, *SWEEPING, *EXPORTER)}
    for sample in found.samples:
        if not sample.name.startswith(PREFIX):
            continue
        name = sample.name
        for ending in ("_bucket", "_sum", "_count"):
            name = name if name in known else name.removesuffix(ending)
        assert {*sample.labels} - {"le"} == {*known[name].labels}, sample
        for label, values in known[name].labels.items():
            assert not values or sample.labels[label] in values, sample


def test_rows_of_requests_are_counted_where_they_go(workers: Workers, tmp_path: Path, kinds: list[Kind]) -> None:
    """Into a table: rows, bytes of its files, a commit, and the inputs that failed."""
    one = workers.make(metered=True)
    one.worker.start()
    into = f"lancedb://{tmp_path}/db/docs"
    for number in range(2):
        request = Request("encode", str(kinds[0].folder), ["a text", " "], into=into, ids=[f"a{number}", f"b{number}"])
        one.worker.requests.send([request_message(request, id=(id := uuid.uuid4().hex), now=time.time())])
        until(lambda id=id: one.answer(id))
    found = stopped(one)
    assert found.value("rows_written_total", sink="lancedb") == 2
    files = [path for path in (tmp_path / "db/docs.lance/data").iterdir() if path.is_file()]
    assert found.value("bytes_written_total", sink="lancedb") == sum(path.stat().st_size for path in files)
    assert found.value("commit_seconds_count", sink="lancedb") == 2
    assert found.value("documents_total", op="encode", outcome="done") == 2
    assert found.value("documents_rejected_total", reason="empty-text") == 2
    assert found.value("requests_total", op="encode", outcome="answered") == 2


def test_a_vanished_worker_s_messages_are_redeliveries(workers: Workers, tmp_path: Path, kinds: list[Kind]) -> None:
    """Shards and requests that somebody had before; what runs alone is counted like any other."""
    one = workers.make(metered=True)
    to = f"parquet://{tmp_path}/out"
    job = submit(kinds[0].spec(corpus_of(tmp_path / "in.parquet", swapping.texts(16)), to))
    asked = one.ask([(kinds[0], "a text")])
    for queue in (one.worker.shards, one.worker.requests):
        taken = len(queue.pull(100, 1 << 20))
        assert queue.restore(0) == taken
    one.worker.start()
    one.until_told(asked)
    until(lambda: ended(job))
    found = stopped(one)
    assert (
        found.value("redeliveries_total", queue="shards")
        == found.value("shards_total", op="encode", outcome="done")
        == 2
    )
    assert found.value("redeliveries_total", queue="requests") == 1
    tokens = sum(one.tokens for one in receipts_of(job, to)) + cost(swapping.Direct(), kinds[0], ["a text"])
    assert found.value("tokens_total", op="encode") == tokens


def test_a_shard_that_another_published_counts_no_rows(
    workers: Workers, tmp_path: Path, kinds: list[Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are told by whoever published it; what cannot be written is left, and counts none either."""
    one = workers.make(metered=True)
    to = f"parquet://{tmp_path}/out"
    job = submit(kinds[0].spec(corpus_of(tmp_path / "in.parquet", swapping.texts(24)), to))
    publish, times = publishing.publish, Counter[int]()

    def beaten(opened: Any, shard: Any, **given: Any) -> Any:
        number = shard.work.shard.number
        times[number] += 1
        if number == 0:
            queued.publish(Registry(f"{tmp_path}/jobs").find(job.job).open(), 0)
        if number == 1 and times[1] == 1:
            raise StopJob("no space left on device")
        return publish(opened, shard, **given)

    monkeypatch.setattr(publishing, "publish", beaten)
    monkeypatch.setattr(queued, "ROWS", 8)
    one.worker.settling._lease_s = 0.1  # so long its job is left alone
    one.worker.start()
    until(lambda: times[0] and times[1] and times[2])
    found = stopped(one)
    assert found.value("shards_total", op="encode", outcome="duplicate") == 1
    assert found.value("shards_total", op="encode", outcome="left") == 1
    done = found.value("shards_total", op="encode", outcome="done")
    assert found.value("documents_total", op="encode", outcome="done") == 8 * done
    assert found.value("rows_written_total", sink="parquet") == 8 * done


def test_what_is_given_back_is_counted_once(workers: Workers, tmp_path: Path, kinds: list[Kind]) -> None:
    """Of what a worker had begun when it was stopped, however often it gives all back."""
    one = workers.make(metered=True)
    submit(kinds[0].spec(corpus_of(tmp_path / "in.parquet", swapping.texts(16)), f"parquet://{tmp_path}/out"))
    worker = one.worker
    first, _ = worker.leases.pull(worker.shards, 2)
    begun = worker.desk.accept(first)
    assert begun is not None
    worker.feed._given[first] = begun
    worker._give_back()
    worker._give_back()
    assert worker.shards.counts().waiting == 2
    found = told_by(one)
    assert found.value("shards_total", op="encode", outcome="given_back") == found.total("shards_total") == 1


def test_a_failed_shard_is_no_document(workers: Workers, tmp_path: Path, kinds: list[Kind]) -> None:
    """A source that is gone fails its shards; loads that fail are told by their kind."""
    one = workers.make(metered=True)
    source = corpus_of(tmp_path / "in.parquet", swapping.texts(16))
    job = submit(kinds[0].spec(source, f"parquet://{tmp_path}/out"))
    source.unlink()
    one.worker.start()
    until(lambda: totals(job, f"parquet://{tmp_path}/out").shards_failed == 2)
    found = stopped(one)
    assert found.value("shards_total", op="encode", outcome="failed") == found.total("shards_total") == 2
    assert found.total("documents_total") == found.total("stage_seconds_count", stage="run") == 0


def test_swaps_are_told(workers: Workers, kinds: list[Kind]) -> None:
    """Models that push each other out: loads by where they came from, evictions by model and reason, copies in host memory."""
    one = workers.make(metered=True, host_bytes=1 << 40)
    one.measure(kinds, fitting=2)
    one.worker.start()
    one.until_told(one.ask([(kind, text) for text in swapping.texts(4) for kind in kinds]))
    found, policy = stopped(one), one.policy
    assert found.total("model_evictions_total", reason="room") == policy.evictions["room"] > 0
    assert found.total("model_load_seconds_count", source="host") == policy.loads[Tier.HOST]
    assert found.value("models_resident", tier="host") == sum(model.copied for model in policy.models.values())
    assert found.total("model_resident_bytes", tier="host") == policy.copied_bytes
    assert found.total("model_uses_total", outcome="hit") == policy.holds
    assert found.labels("model_uses_total", "model") == {kind.folder.name for kind in kinds}


def test_failed_loads_are_told(workers: Workers, kinds: list[Kind], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be mended is permanent; one that may pass is transient, and tried again."""
    one = workers.make(metered=True)
    _, adapter, _ = one.worker.models("encode", str(kinds[0].folder), RequestOptions())
    failures = [OSError(5, "Input/output error")]
    load = type(adapter).load

    def failing(model: Any, **given: Any) -> None:
        if failures:
            raise failures.pop()
        load(model, **given)

    monkeypatch.setattr(type(adapter), "load", failing)
    one.worker.models.preload(Preload("encode", str(kinds[0].folder), RequestOptions()))
    failures.append(ValueError("no such weights"))  # pyright: ignore
    _, other, _ = one.worker.models("score", str(kinds[3].folder), RequestOptions())
    monkeypatch.setattr(type(other), "load", failing)
    with pytest.raises(Exception, match="no such weights"):
        one.worker.models.preload(Preload("score", str(kinds[3].folder), RequestOptions()))
    found = told_by(one)
    assert found.value("model_loads_failed_total", kind="transient") == 1
    assert found.value("model_loads_failed_total", kind="permanent") == 1


def test_many_models_make_few_series(workers: Workers, kinds: list[Kind], tmp_path: Path) -> None:
    """After requests for a hundred models there are MOST_MODELS names and other, and what they count together is all of it."""
    one = workers.make(metered=True)
    meter = one.worker.meter
    assert isinstance(meter, WorkerMeter)
    before = len(told_by(one).samples)
    _, adapter, _ = one.worker.models("encode", str(kinds[0].folder), RequestOptions())
    for number in range(100):
        one.residents._names[adapter.weights] = f"/models/{uuid.uuid4().hex}/m{number}"
        meter.batch(adapter, 10, 20)
        meter.loaded(f"/models/m{number}", "disk", 0.1)
    found = told_by(one)
    assert len(found.labels("tokens_total", "model")) == MOST_MODELS + 1
    assert found.value("tokens_total", op="encode", model=OTHER) == 10 * (100 - MOST_MODELS)
    assert found.total("tokens_total") == 1000
    assert found.total("model_load_seconds_count") == 100
    first = len(found.samples)
    for number in range(1000):
        meter.loaded(f"another/{number}", "host", 0.1)
    assert len(told_by(one).samples) - first <= (1 + MOST_MODELS) * (len(metrics.WORK_S) + 3)
    assert before < first < 5000


def test_batches_without_memory_are_told(workers: Workers) -> None:
    """As the engine counts them (tests/test_engine_models.py)."""
    one = workers.make(metered=True)
    one.worker.engine.gauges.split, one.worker.engine.gauges.too_large = 3, 2
    found = told_by(one)
    assert found.value("out_of_memory_total", outcome="split") == 3
    assert found.value("out_of_memory_total", outcome="rejected") == 2


def test_the_price_is_told_where_it_is_known(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown is absent, not nothing."""
    assert not told_by(workers.make(metered=True)).values("worker_price_dollars_per_hour")
    monkeypatch.setenv("LADING_PRICE_PER_HOUR", "0.71")
    monkeypatch.setenv("LADING_CAPACITY", "spot")
    assert told_by(workers.make(metered=True)).value("worker_price_dollars_per_hour", capacity="spot") == 0.71


def test_rows_that_do_not_come_into_view_are_told(
    workers: Workers, tmp_path: Path, kinds: list[Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many, and since when those of an output wait whose commits fail, whatever is committed to others; until they are in view."""
    from lading.workers import folding

    settle, broken, failed = folding.settle, threading.Event(), Counter[str]()
    broken.set()

    def failing(job: Any, *given: Any) -> Any:
        if broken.is_set() and job.sink.output.data.endswith("/out"):
            failed["out"] += 1
            raise StopJob("no space left on device")
        return settle(job, *given)

    def job_to(name: str, rows: int) -> Any:
        return submit(
            kinds[0].spec(corpus_of(tmp_path / f"{name}.parquet", swapping.texts(rows)), f"parquet://{tmp_path}/{name}")
        )

    monkeypatch.setattr(folding, "settle", failing)
    monkeypatch.setattr(folding, "FIRST_PAUSE_S", 0.1)
    one = workers.make(metered=True)
    began = time.time()
    one.worker.start()
    assert not told_by(one).values("uncommitted_since_timestamp_seconds")
    stuck = job_to("out", 16)
    until(lambda: told_by(one).value("uncommitted_rows", sink="parquet") == 16)
    waiting = told_by(one)
    since = waiting.value("uncommitted_since_timestamp_seconds", sink="parquet")
    assert began <= since <= time.time()
    assert waiting.total("commit_seconds_count") == 0
    assert waiting.values("last_commit_timestamp_seconds") == []
    other = job_to("other", 8)
    until(lambda: ended(other) and told_by(one).value("uncommitted_rows", sink="parquet") == 16)
    until(lambda: failed["out"] >= 3)
    # It is another's turn all the time: that is no reason to hope, for one who failed.
    one.worker.broker.client.set(f"lading.folding:{tmp_path}/out", 1)
    until(lambda before=failed["out"]: failed["out"] >= before + 2)
    found = told_by(one)
    assert found.value("last_commit_timestamp_seconds", sink="parquet") > since
    assert found.value("uncommitted_since_timestamp_seconds", sink="parquet") == pytest.approx(since, abs=0.01)
    broken.clear()
    until(lambda: ended(stuck))
    until(lambda: told_by(one).value("uncommitted_rows", sink="parquet") == 0)
    found = told_by(one)
    assert found.values("uncommitted_since_timestamp_seconds") == []
    assert found.value("commit_seconds_count", sink="parquet") >= 2


def test_rows_whose_turn_is_another_s_do_not_age(workers: Workers, tmp_path: Path, kinds: list[Kind]) -> None:
    """Whoever has the turn takes them along: a worker that never gets one has no reason to think that nobody commits."""
    one = workers.make(metered=True)
    one.worker.broker.client.set(f"lading.folding:{tmp_path}/out", 1)
    one.worker.start()
    submit(kinds[0].spec(corpus_of(tmp_path / "in.parquet", swapping.texts(16)), f"parquet://{tmp_path}/out"))
    until(lambda: told_by(one).value("uncommitted_rows", sink="parquet") == 16)
    published = time.time()
    until(lambda: told_by(one).value("uncommitted_since_timestamp_seconds", sink="parquet") > published)
    assert told_by(one).value("uncommitted_rows", sink="parquet") == 16


def test_requests_that_wait_for_their_table_are_told(
    workers: Workers, tmp_path: Path, kinds: list[Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many rows and since when, of a table whose store fails beside one whose does not."""
    from lading.workers import into as tables

    upsert, broken = tables.upsert.upsert, threading.Event()
    broken.set()

    def failing(url: str, *given: Any, **more: Any) -> Any:
        if broken.is_set() and url.endswith("/bad"):
            raise StopJob("no space left on device")
        return upsert(url, *given, **more)

    monkeypatch.setattr(tables.upsert, "upsert", failing)
    monkeypatch.setattr(tables, "AGAIN_S", 0.1)
    one = workers.make(metered=True)

    def asked(table: str) -> str:
        request = Request(
            "encode", str(kinds[0].folder), ["a", "b"], into=f"lancedb://{tmp_path}/db/{table}", ids=["1", "2"]
        )
        one.worker.requests.send([request_message(request, id=(id := uuid.uuid4().hex), now=time.time())])
        return id

    began = time.time()
    one.worker.start()
    stuck = asked("bad")
    until(lambda: told_by(one).value("uncommitted_rows", sink="lancedb") == 2)
    since = told_by(one).value("uncommitted_since_timestamp_seconds", sink="lancedb")
    assert began <= since <= time.time()
    fine = asked("good")
    until(lambda: one.answer(fine))
    found = told_by(one)
    assert found.value("last_commit_timestamp_seconds", sink="lancedb") > since
    assert found.value("uncommitted_since_timestamp_seconds", sink="lancedb") == pytest.approx(since, abs=0.01)
    broken.clear()
    until(lambda: one.answer(stuck))
    until(lambda: told_by(one).value("uncommitted_rows", sink="lancedb") == 0)
    assert told_by(one).values("uncommitted_since_timestamp_seconds") == []
