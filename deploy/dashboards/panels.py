"""What the four dashboards show: rows of panels, each with its queries, its unit, and what it tells. Knows nothing of Grafana's JSON.

POOL in a query stands for the pools that are chosen on top of the dashboard. `$__rate_interval`, `$__range` and `$__range_s` are
Grafana's. Gauges of the exporter are taken by `max by`, since there may be several exporters.
"""

from __future__ import annotations

import dataclasses

RATE = "$__rate_interval"


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""  # labels in {{ }}
    right: bool = False  # on an axis of its own, from 0


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """`unit` is one of Grafana's; `width` in 24ths; a panel of `now` shows the latest value alone, another the course of time."""

    title: str
    unit: str
    tells: str
    queries: tuple[Query, ...]
    width: int = 8
    now: bool = False
    stacked: bool = False
    top: float | None = None  # of the axis, where the unit has a natural end


@dataclasses.dataclass(frozen=True, slots=True)
class Dashboard:
    uid: str
    title: str
    tells: str
    rows: dict[str, tuple[Panel, ...]]


def _now(title: str, unit: str, tells: str, expr: str) -> Panel:
    return Panel(title, unit, tells, (Query(expr),), width=4, now=True)


def _p95(series: str, *by: str) -> str:
    """The 95th percentile of a histogram, over the last hour: most of ours get a handful of observations a minute."""
    return f"histogram_quantile(0.95, sum by (le, {', '.join(by)}) (rate({series}[1h])))"


JOBS = Dashboard(
    "lading-jobs",
    "Lading: jobs",
    "What is being done, how fast, what went wrong with it, and what it costs.",
    {
        "Now": (
            _now("Open jobs", "short", "Jobs that are not over, by the scheduler that leads.", "max(lading_jobs_open)"),
            _now("Shards left", "short", "Shards of open jobs that are not done, those that are not in Redis yet included.",
                 "sum(max by (pool) (lading_shards_left{POOL}))"),
            _now("Time left", "s", "Shards left, at the speed of the last hour. Of all chosen pools together.",
                 "sum(max by (pool) (lading_shards_left{POOL})) / sum(rate(lading_shards_total{POOL, outcome=\"done\"}[1h]) > 0)"),
            _now("Oldest message", "s", "How long the next message of a queue has waited, where that is longest.",
                 "max(lading_queue_oldest_age_seconds{POOL})"),
            _now("Dead letters", "short", "Messages that were given up, and wait for somebody: lading dead list POOL.",
                 "sum(max by (pool, queue) (lading_dead_letters{POOL}))"),
            _now("Cost of what is shown", "currencyUSD", "Dollars that workers were paid in the time that this dashboard shows; pools whose price is not "
                 "set are left out.",
                 "sum(avg_over_time(pool:lading_dollars_per_hour:sum{POOL}[$__range])) * $__range_s / 3600"),
        ),
        "Speed": (
            Panel("Documents by outcome", "count:docs/s", "Rows of shards that were published, and inputs of requests that were answered.",
                  (Query(f"sum by (outcome) (rate(lading_documents_total{{POOL}}[{RATE}]))", "{{outcome}}"),), stacked=True),
            Panel("Documents by pool", "count:docs/s", "The same, by pool and what was asked.",
                  (Query(f"sum by (pool, op) (rate(lading_documents_total{{POOL}}[{RATE}])) > 0", "{{pool}} {{op}}"),), stacked=True),
            Panel("Shards left by pool", "short", "Shards of open jobs that are not done. A line that does not fall while the pool has workers is the first "
                  "thing to look at.",
                  (Query("max by (pool) (lading_shards_left{POOL})", "{{pool}}"),)),
        ),
        "Waiting": (
            Panel("Oldest message by queue", "s", "Age of the message that is next in each queue. Long where a pool has much to do; that it grows by a second a "
                  "second means that nothing is taken.",
                  (Query("max by (pool, queue) (lading_queue_oldest_age_seconds{POOL})", "{{pool}} {{queue}}"),)),
            Panel("Wait of shards, p95", "s", "From the sending of a shard's message until a worker took it up, over an hour.",
                  (Query(_p95("lading_shard_wait_seconds_bucket{POOL}", "pool"), "{{pool}}"),)),
            Panel("Answer to requests, p95", "s", "From the sending of a request until its answer was stored, over an hour.",
                  (Query(_p95("lading_request_seconds_bucket{POOL}", "pool", "op"), "{{pool}} {{op}}"),)),
        ),
        "Trouble": (
            Panel("Rejects by reason", "count:docs/s", "Rows that are not in the result, by the code of the reason (docs/cli.md).",
                  (Query(f"sum by (reason) (rate(lading_documents_rejected_total{{POOL}}[{RATE}])) > 0", "{{reason}}"),), stacked=True),
            Panel("Dead letters by queue", "short", "Messages that nobody could do, and that lie until somebody replays or drops them.",
                  (Query("max by (pool, queue) (lading_dead_letters{POOL})", "{{pool}} {{queue}}"),)),
            Panel("Shards by outcome", "short", "Ends of shards in an hour. failed: for good; given_back: the worker was stopped; left: the output could not "
                  "be written; duplicate: another worker was first.",
                  (Query("sum by (outcome) (increase(lading_shards_total{POOL}[1h]))", "{{outcome}}"),)),
            Panel("Requests by outcome", "count:req/s", "Requests that were told their end. refused: for what they ask.",
                  (Query(f"sum by (outcome) (rate(lading_requests_total{{POOL}}[{RATE}]))", "{{outcome}}"),), stacked=True),
            Panel("Jobs that ended", "short", "In an hour, in all pools. failed: with failed shards, or past a limit of its own.",
                  (Query("sum by (op, outcome) (increase(lading_jobs_total[1h])) > 0", "{{op}} {{outcome}}"),)),
            Panel("Time of jobs, p95", "s", "From a job's submission to its end, of the jobs that ended in the last hour, in all pools.",
                  (Query(_p95("lading_job_duration_seconds_bucket", "op"), "{{op}}"),)),
        ),
        "Cost": (
            Panel("Dollars per hour", "currencyUSD", "What the workers that are up cost, by the price in their settings.",
                  (Query("pool:lading_dollars_per_hour:sum{POOL}", "{{pool}}"),), width=12, stacked=True),
            Panel("Dollars per million tokens", "currencyUSD", "All dollars of an hour, those of idle and starting workers too, over all tokens of that hour.",
                  (Query("pool:lading_dollars_per_million_tokens:1h{POOL}", "{{pool}}"),), width=12),
        ),
    },
)  # fmt: skip

POOLS = Dashboard(
    "lading-pools",
    "Lading: pools",
    "What waits for each pool, who works for it, how they scale, and what that costs.",
    {
        "Scaling": (
            Panel("Work and workers", "short", "Messages that wait and that are in flight, and the workers that live, on the right. Workers should follow "
                  "work, and both end at zero.",
                  (Query("sum by (pool) (max by (pool, queue) (lading_queue_depth{POOL}))", "{{pool}} waiting"),
                   Query("sum by (pool) (max by (pool, queue) (lading_queue_inflight{POOL}))", "{{pool}} in flight"),
                   Query("max by (pool) (lading_pool_workers{POOL})", "{{pool}} workers", right=True)), width=16),
            Panel("Share of the most workers", "percentunit", "Living workers of those that the pool is meant for (max_workers in pools.yaml). Long at 1: the pool is "
                  "too small, or the price of patience.",
                  (Query("max by (pool) (lading_pool_workers{POOL}) / max by (pool) (lading_pool_max_workers{POOL} > 0)", "{{pool}}"),), top=1.0),
            Panel("Waiting by queue", "short", "Messages that wait. Of shards a window at the most is in Redis, whatever the job's size.",
                  (Query("max by (pool, queue) (lading_queue_depth{POOL})", "{{pool}} {{queue}}"),)),
            Panel("In flight by queue", "short", "Messages that workers have taken and not settled. Without workers they come back after lease_s.",
                  (Query("max by (pool, queue) (lading_queue_inflight{POOL})", "{{pool}} {{queue}}"),)),
            Panel("Cold start, p95", "s", "From the start of a worker's process to its first batch, of the workers that are up.",
                  (Query("quantile by (pool) (0.95, lading_worker_ready_seconds{POOL})", "{{pool}}"),)),
        ),
        "Cost": (
            Panel("Dollars per million tokens", "currencyUSD", "All dollars of an hour, those of idle and starting workers too, over all tokens of that hour.",
                  (Query("pool:lading_dollars_per_million_tokens:1h{POOL}", "{{pool}}"),)),
            Panel("Dollars per hour by capacity", "currencyUSD", "What the workers that are up cost: spot, or on demand where spot had none.",
                  (Query("sum by (pool, capacity) (lading_worker_price_dollars_per_hour{POOL})", "{{pool}} {{capacity}}"),), stacked=True),
            Panel("Dollars per hour for nothing", "currencyUSD", "The same, for the share of the time that the devices ran no batch.",
                  (Query("pool:lading_dollars_per_hour:sum{POOL} * (1 - pool:lading_device_busy:ratio5m{POOL})", "{{pool}}"),), stacked=True),
        ),
        "Work": (
            Panel("Busy", "percentunit", "Share of the time that the devices which are up ran batches.",
                  (Query("pool:lading_device_busy:ratio5m{POOL}", "{{pool}}"),), top=1.0),
            Panel("Tokens", "count:tokens/s", "Tokens (or what else the rows of a model cost) that went through the devices.",
                  (Query(f"sum by (pool) (rate(lading_tokens_total{{POOL}}[{RATE}]))", "{{pool}}"),), stacked=True),
            Panel("Time of a shard by stage", "s", "Mean seconds that a shard spends in each stage, over an hour; run is added up over what a device does at "
                  "once. read or write far above run: the device waits for them.",
                  (Query("sum by (stage) (rate(lading_stage_seconds_sum{POOL}[1h])) / sum by (stage) (rate(lading_stage_seconds_count{POOL}[1h]))",
                         "{{stage}}"),), stacked=True),
        ),
        "Losses": (
            Panel("Second deliveries", "short", "Messages taken in an hour that an earlier worker had and vanished with.",
                  (Query("sum by (pool, queue) (increase(lading_redeliveries_total{POOL}[1h]))", "{{pool}} {{queue}}"),)),
            Panel("Age of workers", "s", "Since the start of the youngest and the oldest process of a pool. Young ones only, again and again: they crash, or "
                  "are taken away.",
                  (Query("time() - max by (pool) (lading_worker_start_timestamp_seconds{POOL})", "{{pool}} youngest"),
                   Query("time() - min by (pool) (lading_worker_start_timestamp_seconds{POOL})", "{{pool}} oldest"))),
            Panel("Pass of the scheduler, p95", "s", "Seconds of a look over queues and jobs, over an hour, wherever it runs. Far above sweep_interval_s: many "
                  "jobs, or a slow store.",
                  (Query(_p95("lading_sweep_seconds_bucket", "instance"), "{{instance}}"),)),
        ),
        "Versions": (
            Panel("Processes by release", "short", "Processes that are scraped, of all pools, by release. Two for long: a rollout hangs.",
                  (Query("count by (version, torch) (lading_build_info)", "{{version}}, torch {{torch}}"),), width=24, stacked=True),
        ),
    },
)  # fmt: skip

MODELS = Dashboard(
    "lading-models",
    "Lading: models",
    "Which models the workers hold, how often these come and go, and how full their batches are.",
    {
        "Memory": (
            Panel("On the device, and its budget", "bytes", "Weights on the devices of a pool, summed over its workers, and what these may take.",
                  (Query("sum by (pool, model) (lading_model_resident_bytes{POOL, tier=\"device\"})", "{{pool}} {{model}}"),
                   Query("sum by (pool) (lading_device_budget_bytes{POOL}) > 0", "{{pool}} budget")), width=12),
            Panel("In host memory", "bytes", "Copies of weights in host memory, from where models come back in a moment.",
                  (Query("sum by (pool, model) (lading_model_resident_bytes{POOL, tier=\"host\"})", "{{pool}} {{model}}"),), stacked=True, width=6),
            Panel("Models per worker", "short", "Mean number of models that a worker holds.",
                  (Query("avg by (pool, tier) (lading_models_resident{POOL})", "{{pool}} {{tier}}"),), width=6),
        ),
        "Coming and going": (
            Panel("Load by source, p95", "s", "Seconds until a model was on the device, over an hour: from host memory, or from disk.",
                  (Query(_p95("lading_model_load_seconds_bucket{POOL}", "pool", "source"), "{{pool}} {{source}}"),)),
            Panel("Time spent on loading", "percentunit", "Share of the workers' time in which a model was coming. Others run meanwhile. Above a fifth, with "
                  "evictions: thrashing.",
                  (Query("pool:lading_model_load:ratio30m{POOL}", "{{pool}}"),)),
            Panel("Evictions by reason", "short", "Models that left in an hour. room: for others; memory: a batch had none; idle: nobody asked; base: with the model "
                  "that they adapt.",
                  (Query("sum by (pool, reason) (increase(lading_model_evictions_total{POOL}[1h]))", "{{pool}} {{reason}}"),)),
            Panel("Evictions by model", "short", "The ten models that leave most often, in an hour.",
                  (Query("topk(10, sum by (pool, model) (increase(lading_model_evictions_total{POOL}[1h])) > 0)", "{{pool}} {{model}}"),)),
            Panel("Hits", "percentunit", "Share of the uses that found their model on the device.",
                  (Query("sum by (pool) (rate(lading_model_uses_total{POOL, outcome=\"hit\"}[30m])) / sum by (pool) (rate(lading_model_uses_total{POOL}[30m]))",
                         "{{pool}}"),), top=1.0),
            Panel("Loads that failed", "short", "In an hour. transient: tried again; permanent: told to who asked.",
                  (Query("sum by (pool, kind) (increase(lading_model_loads_failed_total{POOL}[1h]))", "{{pool}} {{kind}}"),)),
        ),
        "Batches": (
            Panel("Fill by model", "percentunit", "Tokens of the batches over what these had room for. What is missing to 1 was left empty.",
                  (Query("sum by (pool, model) (rate(lading_tokens_total{POOL}[30m])) / sum by (pool, model) (rate(lading_batch_budget_tokens_total{POOL}[30m]))",
                         "{{pool}} {{model}}"),), top=1.0),
            Panel("Left empty", "percentunit", "The same by pool, seen from the other side: what packing wasted.",
                  (Query("pool:lading_padding:ratio30m{POOL}", "{{pool}}"),), top=1.0),
            Panel("Emptiest tenth of the batches", "percentunit", "A tenth of the batches is less full than this. Low is as it should be where requests come one by "
                  "one.",
                  (Query("histogram_quantile(0.1, sum by (le, pool) (rate(lading_batch_fill_ratio_bucket{POOL}[30m])))", "{{pool}}"),), top=1.0),
            Panel("Tokens by model", "count:tokens/s", "Tokens that went through the devices, by model.",
                  (Query(f"sum by (model) (rate(lading_tokens_total{{POOL}}[{RATE}]))", "{{model}}"),), width=12, stacked=True),
            Panel("Out of memory", "short", "In an hour. split: batches that ran in parts, nothing is lost; rejected: rows that are not in the result.",
                  (Query("sum by (pool, outcome) (increase(lading_out_of_memory_total{POOL}[1h]))", "{{pool}} {{outcome}}"),), width=12),
        ),
    },
)  # fmt: skip

SINKS = Dashboard(
    "lading-sinks",
    "Lading: sinks",
    "What is written and brought into view, and how full Redis is.",
    {
        "Writing": (
            Panel("Rows", "count:rows/s", "Rows published to outputs, or put into tables by requests.",
                  (Query(f"sum by (pool, sink) (rate(lading_rows_written_total{{POOL}}[{RATE}]))", "{{pool}} {{sink}}"),), stacked=True),
            Panel("Bytes", "Bps", "Bytes of the files with those rows.",
                  (Query(f"sum by (pool, sink) (rate(lading_bytes_written_total{{POOL}}[{RATE}]))", "{{pool}} {{sink}}"),), stacked=True),
            Panel("Bytes of a row", "bytes", "Bytes over rows, over half an hour: the vectors, mostly.",
                  (Query("sum by (pool, sink) (rate(lading_bytes_written_total{POOL}[30m])) / sum by (pool, sink) (rate(lading_rows_written_total{POOL}[30m]))",
                         "{{pool}} {{sink}}"),)),
        ),
        "Commits": (
            Panel("Commit, p95", "s", "Seconds of a commit that brought rows into view, over an hour. It grows with the number of a table's versions and "
                  "fragments: lading optimize.",
                  (Query(_p95("lading_commit_seconds_bucket{POOL}", "pool", "sink"), "{{pool}} {{sink}}"),)),
            Panel("Commits", "count:commits/s", "Commits that brought rows into view.",
                  (Query(f"sum by (pool, sink) (rate(lading_commit_seconds_count{{POOL}}[{RATE}]))", "{{pool}} {{sink}}"),)),
            Panel("Conflicts", "short", "Commits in an hour that another writer was faster than, and that were tried again.",
                  (Query("sum by (pool, sink) (increase(lading_commit_conflicts_total{POOL}[1h]))", "{{pool}} {{sink}}"),)),
            Panel("Rows not in view", "short", "Rows that are published, or wait for their table, and that no reader sees yet. It should come back to zero.",
                  (Query("sum by (pool, sink) (lading_uncommitted_rows{POOL})", "{{pool}} {{sink}}"),)),
            Panel("Longest wait", "s", "How long rows have waited to come into view, of the output whose rows wait longest. Nothing while none wait.",
                  (Query("time() - min by (pool, sink) (lading_uncommitted_since_timestamp_seconds{POOL})", "{{pool}} {{sink}}"),)),
            Panel("Since the last commit", "s", "Since the pool's last commit to any output of that kind.",
                  (Query("time() - max by (pool, sink) (lading_last_commit_timestamp_seconds{POOL})", "{{pool}} {{sink}}"),)),
        ),
        "Redis": (
            Panel("Memory", "bytes", "What Redis uses, and what it may use. Full, it takes no more shards and requests.",
                  (Query("max(lading_redis_memory_used_bytes)", "used"), Query("max(lading_redis_memory_max_bytes) > 0", "limit")), width=6),
            Panel("Dropped keys", "short", "Keys that Redis dropped for lack of memory in an hour. Any is one too many.",
                  (Query("max(increase(lading_redis_evicted_keys_total[1h]))", "dropped"),), width=6),
            _now("Answers", "bool_yes_no", "Whether Redis answered the exporter just now.", "min(lading_redis_up)"),
            _now("Keeps queues when full", "bool_yes_no", "Whether its maxmemory-policy is noeviction.", "min(lading_redis_noeviction)"),
            _now("Keeps a log", "bool_yes_no", "Whether it keeps an append-only file. Without one a restart loses all requests; jobs are sent again.",
                 "min(lading_redis_aof_enabled)"),
        ),
    },
)  # fmt: skip

DASHBOARDS = (JOBS, POOLS, MODELS, SINKS)
