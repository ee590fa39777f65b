"""deploy/prometheus: the rules are valid, name what is exposed and nothing else, each alert has its tests, and these notice changes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import promql
from tests.deploy.tools import tool

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/rules.yaml"
TESTS = sorted((ROOT / "deploy/prometheus/tests").glob("*.yaml"))
RUNBOOK = "docs/runbook.md"
TEMPLATE = re.compile(r"\{\{(.*?)\}\}")

ALERTS = {
    "QueueStalled", "ScaleFromZeroFailed", "DeadLetters", "OomGaveUp", "RedeliveryStorm", "CommitFailing", "ModelThrash", "RedisNearFull",
    "IdleGpu", "PaddingWaste", "MetricsAbsent",
}  # fmt: skip


def rules(path: Path = RULES) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def known_with(recorded: list[dict[str, Any]]) -> promql.Known:
    """What processes expose, and what the rules record of it. Raises Wrong where a rule names anything else."""
    known = promql.declared()
    for rule in recorded:
        known[rule["record"]] = promql.Shown(False, promql.labels_of(rule["expr"], known))
    return known


def checked(path: Path) -> None:
    """Raises Wrong unless every rule names series that exist, with labels that they have, in its expression and in its texts."""
    recorded = [rule for rule in rules(path) if "record" in rule]
    known = known_with(recorded)
    for rule in rules(path):
        labels = promql.labels_of(rule["expr"], known)
        if rule["expr"].startswith("absent("):
            continue
        for text in rule.get("annotations", {}).values():
            promql.filled_by(text, r"\$labels\.(\w+)", labels | set(rule["labels"]))


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("promtool"), *map(str, arguments)], capture_output=True, text=True)


def test_promtool_accepts_the_rules() -> None:
    """`promtool check rules` finds nothing, not even to be warned of."""
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_do_what_their_tests_say() -> None:
    """`promtool test rules` passes."""
    done = promtool("test", "rules", *TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_name_what_is_exposed() -> None:
    """Series, labels and values of labels are those that processes declare; texts name labels that the alert has."""
    checked(RULES)


def test_the_alerts_are_complete_and_alike() -> None:
    """Eleven names; each rule has a severity, texts, and a runbook entry; those of one name differ in one label."""
    alerts = [rule for rule in rules() if "alert" in rule]
    assert {rule["alert"] for rule in alerts} == {f"Lading{name}" for name in ALERTS}
    known = known_with([rule for rule in rules() if "record" in rule])
    told: set[tuple[str, ...]] = set()
    for rule in alerts:
        name = rule["alert"].removeprefix("Lading")
        assert rule["labels"]["severity"] in ("page", "ticket", "info")
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK}#{name.lower()}"
        everywhere = rule["alert"] == "LadingRedisNearFull" or rule["labels"].get("missing") == "queues"
        assert everywhere or "pool" in promql.labels_of(rule["expr"], known)
        told.add((rule["alert"], *(value for label, value in rule["labels"].items() if label != "severity")))
    assert len(told) == len(alerts)


def test_recorded_series_are_used() -> None:
    """By an alert or by a panel: a recorded series that nobody reads is computed for nothing."""
    used = {name for rule in rules() for name in promql.names_of(rule["expr"])}
    panels = "".join(path.read_text() for path in (ROOT / "deploy/dashboards").glob("*.json"))
    for rule in rules():
        assert "record" not in rule or rule["record"] in used or rule["record"] in panels, rule["record"]


def test_each_alert_fires_in_one_test_and_is_silent_in_another() -> None:
    """Each rule has a case in the file of its name in which it fires, with all its texts, and the file has one in which none does."""
    for rule in rules():
        if "alert" not in rule:
            continue
        path = ROOT / f"deploy/prometheus/tests/{rule['alert'].removeprefix('Lading')}.yaml"
        cases = [
            (test["name"], case["exp_alerts"])
            for test in yaml.safe_load(path.read_text())["tests"]
            for case in test["alert_rule_test"]
            if case["alertname"] == rule["alert"]
        ]
        fired = {
            name for name, alerts in cases for one in alerts if rule["labels"].items() <= one["exp_labels"].items()
        }
        assert fired, f"{rule['alert']} {rule['labels']} fires in no test"
        assert {name for name, _ in cases} - {name for name, alerts in cases if alerts}, (
            f"{rule['alert']}: no silent test"
        )


# What a tired person might change, and what then is wrong with the alert.
MUTATIONS = {
    "QueueStalled": [
        ("(lading_queue_oldest_age_seconds) > 900", "(lading_queue_oldest_age_seconds) > 9000"),
        ("(lading_queue_oldest_age_seconds) > 900", "(lading_queue_oldest_age_seconds) > 600"),
        ("max by (pool) (lading_queue_oldest_age_seconds)", "max(lading_queue_oldest_age_seconds)"),
        ("\n          unless sum by (pool) (increase(lading_tokens_total[5m])) > 0", ""),
        ("\n          unless sum by (pool) (increase(lading_documents_total[5m])) > 0", ""),
        ("unless sum by (pool) (increase(lading_tokens_total[5m]))", "unless on () sum (increase(lading_tokens_total[5m]))"),
        ("(max_over_time(lading_pool_workers[10m])) > 0", "(lading_pool_workers) > 0"),
        ("\n          and max by (pool) (max_over_time(lading_pool_workers[10m])) > 0", ""),
        ("for: 10m", "for: 5m"),
    ],
    "ScaleFromZeroFailed": [
        (" + max by (pool, queue) (lading_queue_inflight)", ""),
        ("sum by (pool) (max by (pool, queue) (lading_queue_depth) + max by (pool, queue) (lading_queue_inflight))",
         "sum by (pool) (lading_queue_depth + lading_queue_inflight)"),
        ("(max_over_time(lading_pool_workers[10m])) == 0", "(max_over_time(lading_pool_workers[10m])) >= 0"),
        ("sum by (pool) (max by (pool, queue) (lading_queue_depth)", "sum(max by (pool, queue) (lading_queue_depth)"),
        ("(lading_queue_inflight)) > 0", "(lading_queue_inflight)) >= 0"),
        ("for: 15m", "for: 10m"),
    ],
    "DeadLetters": [
        ("max by (pool, queue) (lading_dead_letters) > 0", "max by (pool, queue) (lading_dead_letters) > 1"),
        ("max by (pool, queue) (lading_dead_letters) > 0", "max by (pool) (lading_dead_letters) > 0"),
        ("max by (pool, queue) (lading_dead_letters) > 0", "max by (pool, queue) (delta(lading_dead_letters[1h])) > 0"),
    ],
    "OomGaveUp": [
        ('increase(lading_out_of_memory_total{outcome="rejected"}[1h])', "increase(lading_out_of_memory_total[1h])"),
        ('\n              unless lading_out_of_memory_total{outcome="rejected"} offset 1h', ""),
        ('\n            or increase(lading_out_of_memory_total{outcome="rejected"}[1h])', ""),
    ],
    "RedeliveryStorm": [
        (") > 0.05", ") > 0.1"),
        (") > 0.05", ") > 0.04"),
        ("for: 15m", "for: 10m"),
        ("\n            + sum by (pool) (rate(lading_shards_total[15m]))", "\n            + 0"),
        ("rate(lading_shards_total[15m])", "rate(lading_shards_total[60m])"),
    ],
    "CommitFailing": [
        ("(lading_uncommitted_since_timestamp_seconds) > 900", "(lading_uncommitted_since_timestamp_seconds) > 9000"),
        ("(lading_uncommitted_since_timestamp_seconds) > 900", "(lading_uncommitted_since_timestamp_seconds) > 600"),
        ("min by (pool, sink) (lading_uncommitted_since", "max by (pool, sink) (lading_uncommitted_since"),
        ("min by (pool, sink) (lading_uncommitted_since", "min by (pool, sink, instance) (lading_uncommitted_since"),
        ("min by (pool, sink) (lading_uncommitted_since_timestamp_seconds)", "max by (pool, sink) (lading_last_commit_timestamp_seconds)"),
        ('\n          unless sum by (pool) (increase(lading_shards_total{outcome="done"}[10m])) > 0', ""),
        ('unless sum by (pool) (increase(lading_shards_total{outcome="done"}[10m]))',
         'unless on () sum (increase(lading_shards_total{outcome="done"}[10m]))'),
    ],
    "ModelThrash": [
        ("pool:lading_model_load:ratio30m > 0.2", "pool:lading_model_load:ratio30m > 0.3"),
        ("pool:lading_model_load:ratio30m > 0.2", "pool:lading_model_load:ratio30m > 0.1"),
        ('{reason="room"}', ""),
        ('\n          and sum by (pool) (increase(lading_model_evictions_total{reason="room"}[30m])) > 0', ""),
        ("(avg_over_time(lading_pool_workers[30m]))", "(lading_pool_workers > 0) / 2"),
    ],
    "RedisNearFull": [
        ("> 0) > 0.8", "> 0) > 0.9"),
        ("> 0) > 0.8", "> 0) > 0.7"),
        ("(lading_redis_memory_max_bytes > 0)", "lading_redis_memory_max_bytes"),
        ("increase(lading_redis_evicted_keys_total[1h]) > 0", "lading_redis_evicted_keys_total > 0"),
        ("for: 5m", "for: 1m"),
        ("lading_redis_noeviction == 0 and lading_redis_memory_max_bytes > 0", "lading_redis_noeviction == 0"),
    ],
    "IdleGpu": [
        ('{device=~"cuda.*"}', ""),
        ('rate(lading_device_busy_seconds_total{device=~"cuda.*"}[5m]) < 0.05',
         'avg by (pool, device, instance) (rate(lading_device_busy_seconds_total{device=~"cuda.*"}[5m])) < 0.5'),
        ("[5m]) < 0.05", "[5m]) < 0.01"),
        ("for: 20m", "for: 15m"),
    ],
    "PaddingWaste": [
        ("pool:lading_padding:ratio30m > 0.3", "pool:lading_padding:ratio30m > 0.4"),
        ("pool:lading_padding:ratio30m > 0.3", "pool:lading_padding:ratio30m > 0.25"),
        ("\n          and avg_over_time(pool:lading_device_busy:ratio5m[30m]) > 0.5", ""),
        ("1 - sum by (pool) (rate(lading_tokens_total[30m]))", "1 - sum (rate(lading_tokens_total[30m]))"),
    ],
    "MetricsAbsent": [
        ("for: 5m", "for: 3m"),
        ("expr: absent(lading_queue_depth)", "expr: count(lading_queue_depth) == 0"),
        ("\n          unless count by (pool) (lading_queue_depth)", ""),
        ("\n          unless on () absent(lading_queue_depth)", ""),
        ("(min_over_time(lading_pool_workers[10m])) > 0", "(lading_pool_workers) > 0"),
    ],
    "recorded": [
        ("\n          or max by (pool) (lading_pool_workers == 0)", ""),
        ("/ 1e6 > 0)", "/ 1e6)"),
        ("avg_over_time(pool:lading_dollars_per_hour:sum[1h])", "pool:lading_dollars_per_hour:sum"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_change_of_a_rule_is_noticed(name: str, tmp_path: Path) -> None:
    """A threshold, a time, a label or a condition that changes makes the tests of that alert fail."""
    text = RULES.read_text()
    (tmp_path / "tests").mkdir()
    tests = tmp_path / f"tests/{name}.yaml"
    tests.write_text((ROOT / f"deploy/prometheus/tests/{name}.yaml").read_text())
    for before, after in MUTATIONS[name]:
        assert before in text
        changed = tmp_path / "rules.yaml"
        changed.write_text(text.replace(before, after))
        assert promtool("check", "rules", changed).returncode == 0, after
        assert promtool("test", "rules", tests).returncode != 0, f"nobody notices {after!r} in place of {before!r}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("lading_queue_oldest_age_seconds", "lading_queue_age_seconds"),
        ("(lading_dead_letters)", "(lading_dead_letters_total)"),
        ("max by (pool, queue) (lading_dead_letters)", "max by (pool, lane) (lading_dead_letters)"),
        ('{outcome="rejected"}', '{outcome="gave_up"}'),
        ('{outcome="rejected"}', '{result="rejected"}'),
        ("rate(lading_model_load_seconds_sum[30m])", "rate(lading_model_load_seconds[30m])"),
        ("rate(lading_tokens_total[30m])", "rate(lading_models_resident[30m])"),
        ("pool:lading_model_load:ratio30m > 0.2", "pool:lading_model_loading:ratio30m > 0.2"),
        ("and lading_redis_memory_max_bytes", "and lading_jobs_total"),
        ("unless on () absent", "unless on (pool) absent"),
        ("of pool {{ $labels.pool }} vanish", "of pool {{ $labels.pool }} on {{ $labels.instance }} vanish"),
    ],
)
def test_a_name_that_is_not_exposed_is_noticed(before: str, after: str, tmp_path: Path) -> None:
    """A series, a label, a value of a label that is nowhere, a rate of a gauge, sides that never match, a text without its label."""
    text = RULES.read_text()
    assert before in text
    changed = tmp_path / "rules.yaml"
    changed.write_text(text.replace(before, after))
    with pytest.raises(promql.Wrong):
        checked(changed)
