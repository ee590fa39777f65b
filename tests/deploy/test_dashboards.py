"""deploy/dashboards: what is committed is what the code builds, and every query names what is exposed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.dashboards.build import FOLDER, built
from deploy.dashboards.panels import DASHBOARDS
from tests.deploy import promql
from tests.deploy.test_rules import known_with, rules

pytestmark = pytest.mark.deploy

NAMES = [f"{one.uid.removeprefix('lading-')}.json" for one in DASHBOARDS]
MACROS = {
    "$__rate_interval": "5m",
    "$__range_s": "3600",
    "$__range": "1h",
}  # in this order: one is the beginning of another


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those that show something."""
    return (panel for panel in board["panels"] if panel["type"] != "row")


def queries(board: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Panel, expression and legend, Grafana's macros filled in and $pool left."""
    for panel in panels(board):
        for target in panel["targets"]:
            expression = target["expr"]
            for macro, value in MACROS.items():
                expression = expression.replace(macro, value)
            yield panel["title"], expression, target["legendFormat"]


def checked(content: str) -> None:
    """Raises Wrong unless all that a dashboard asks for is exposed, of the chosen pools alone."""
    known = known_with([rule for rule in rules() if "record" in rule])
    for title, expression, legend in queries(json.loads(content)):
        labels = promql.labels_of(expression, known)
        promql.filled_by(legend, r"\{\{\s*(\w+)", labels)
        if unchosen := promql.unchosen(expression, known, "$pool"):
            raise promql.Wrong(f"{title}: shows all pools, whichever are chosen: {', '.join(unchosen)}")


def test_the_committed_files_are_what_the_code_builds() -> None:
    """To the letter, twice over, and nothing lies beside them: `python -m deploy.dashboards.build` writes them."""
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == built() == built()
    assert sorted(built()) == sorted(NAMES) == ["jobs.json", "models.json", "pools.json", "sinks.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_names_what_is_exposed(name: str) -> None:
    """Series, labels and values are those that processes declare or rules record; legends name labels that the result has."""
    checked((FOLDER / name).read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_is_whole(name: str) -> None:
    """Panels tell what they show in which unit, under titles and ids of their own; the pool can be chosen; nothing overlaps."""
    board = json.loads((FOLDER / name).read_text())
    assert board["uid"] == f"lading-{name.removesuffix('.json')}"
    assert not board["editable"]
    assert [one["name"] for one in board["templating"]["list"]] == ["datasource", "pool"]
    assert len({one["id"] for one in board["panels"]}) == len(board["panels"])
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in panels(board):
        assert len(panel["description"]) > 25, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"], panel["title"]
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_declared_series_is_shown_or_alerted_on() -> None:
    """What nobody looks at is not worth its bytes. Of a histogram any part will do."""
    asked = {name for rule in rules() for name in promql.names_of(rule["expr"])}
    for name in NAMES:
        for _, expression, _ in queries(json.loads((FOLDER / name).read_text())):
            asked |= promql.names_of(expression)
    parts = {name: {name} for name in promql.declared()}
    for name in [one for one in parts if one.endswith("_bucket")]:
        stem = name.removesuffix("_bucket")
        for part in ("bucket", "sum", "count"):
            parts[f"{stem}_{part}"] = {f"{stem}_{one}" for one in ("bucket", "sum", "count")}
    assert [name for name, alike in parts.items() if not alike & asked] == []


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("jobs.json", "lading_jobs_open", "lading_jobs_running"),
        ("jobs.json", "sum by (outcome) (rate(lading_documents_total", "sum by (result) (rate(lading_documents_total"),
        ("jobs.json", "{{reason}}", "{{code}}"),
        ("pools.json", "lading_queue_depth{pool=~\\\"$pool\\\"}", "lading_queue_depth"),
        ("pools.json", "pool:lading_device_busy:ratio5m", "pool:lading_device_busy:ratio1m"),
        ("models.json", "outcome=\\\"hit\\\"", "outcome=\\\"found\\\""),
        ("models.json", "sum by (le, pool) (rate(lading_batch_fill", "sum by (pool) (rate(lading_batch_fill"),
        ("sinks.json", "rate(lading_rows_written_total", "rate(lading_uncommitted_rows"),
    ],
)  # fmt: skip
def test_a_query_that_drifts_is_noticed(name: str, before: str, after: str) -> None:
    """A series, a label, a legend, a value, a recorded name that is nowhere, a pool that is not asked for, a quantile without le."""
    content = (FOLDER / name).read_text()
    assert before in content
    with pytest.raises(promql.Wrong):
        checked(content.replace(before, after))
