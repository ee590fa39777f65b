"""What a worker says of the models it holds, for people and for admission: a JSON object that workers/worker.py makes. Pure."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

REPORT_VERSION = 1


def readable(report: Mapping[str, Any]) -> bool:
    """Whether this release knows what it says."""
    return report.get("version") == REPORT_VERSION


def worker_name(host: str, process: int, drawn: str) -> str:
    """Of a worker, in every place where workers are named: no two are the same, however often a process has the same number."""
    return f"{host}-{process}-{drawn}".replace(".", "-")


def process_of(name: str, host: str) -> int | None:
    """The number of a worker's process, if it is one of this host."""
    before, _, rest = name.rpartition("-")[0].rpartition("-")
    return int(rest) if before == host.replace(".", "-") and rest.isdecimal() else None


def held(report: Mapping[str, Any]) -> float:
    """How many messages a worker had in its hands; infinite where its report does not say."""
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        if readable(report):
            return float(sum(report["held"].values()))
    return math.inf


def on_device(reports: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The weights (Recipe.weights) that some worker has on its device. What cannot be read holds nothing."""
    found: set[str] = set()
    for report in reports.values():
        if readable(report):
            with contextlib.suppress(KeyError, TypeError):
                found |= {str(one["weights"]) for one in report["models"] if one["tier"] == "device"}
    return frozenset(found)


def hit_rate(report: Mapping[str, Any]) -> float | None:
    """Of the times that work wanted its model on the device, the share at which it was there; None: nothing wanted one yet."""
    wanted = report["batches"] + report["misses"]
    return report["batches"] / wanted if wanted else None
