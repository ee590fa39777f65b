"""Writes the dashboards as Grafana reads them: python -m deploy.dashboards.build, from the repository's root.

Knows how a panel looks, and nothing of what it shows (panels.py). The JSON is committed, and a test compares.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    AxisPlacement,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DynamicConfigValue,
    VariableOption,
    VariableRefresh,
)

from .panels import DASHBOARDS, Dashboard, Panel, Query

FOLDER = Path(__file__).parent
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT, HEIGHT_NOW = 8, 4
TAG = "lading"


def built() -> dict[str, str]:
    """File name -> content, of every dashboard."""
    return {f"{one.uid.removeprefix('lading-')}.json": _json(one) for one in DASHBOARDS}


def _json(one: Dashboard) -> str:
    made = (
        dashboard.Dashboard(one.title)
        .uid(one.uid)
        .description(one.tells)
        .tags([TAG])
        .readonly()
        .time("now-6h", "now")
        .refresh("1m")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("pool")
            .label("Pool")
            .datasource(SOURCE)
            .query("label_values(lading_pool_max_workers, pool)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".+")
            .current(VariableOption(text="All", value="$__all", selected=True))
        )
        .link(
            dashboard.DashboardLink("Lading")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(True)
        )
    )
    number = itertools.count(1)
    for title, panels in one.rows.items():
        made.with_row(dashboard.Row(title).id(next(number)))
        for panel in panels:
            made.with_panel((_now(panel) if panel.now else _course(panel)).id(next(number)))
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(made.build()) + "\n"


def _now(panel: Panel) -> stat.Panel:
    made = stat.Panel().title(panel.title).description(panel.tells).unit(panel.unit).datasource(SOURCE)
    made.height(HEIGHT_NOW).span(panel.width).graph_mode(BigValueGraphMode.NONE).no_value("unknown")
    for query in panel.queries:
        made.with_target(_target(query, "A").instant())
    return made


def _course(panel: Panel) -> timeseries.Panel:
    made = timeseries.Panel().title(panel.title).description(panel.tells).unit(panel.unit).datasource(SOURCE)
    made.height(HEIGHT).span(panel.width).min(0).fill_opacity(10)
    made.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
    )
    made.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if panel.stacked:
        made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if panel.top is not None:
        made.max(panel.top)
    for place, query in zip("ABCDEF", panel.queries, strict=False):
        made.with_target(_target(query, place))
        if query.right:
            made.override_by_query(place, [DynamicConfigValue("custom.axisPlacement", AxisPlacement.RIGHT.value)])
    return made


def _target(query: Query, place: str) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(re.sub(r"\bPOOL\b", 'pool=~"$pool"', query.expr)).ref_id(place)
    return made.datasource(SOURCE).legend_format(query.legend or "__auto")


if __name__ == "__main__":
    for name, content in built().items():
        (FOLDER / name).write_text(content)
