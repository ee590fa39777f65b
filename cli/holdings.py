"""What a worker says of its models (schedulers/reports.py), in lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..schedulers.reports import REPORT_VERSION, hit_rate, readable


def lines(worker: str, report: Mapping[str, Any] | None) -> list[str]:
    """Of one worker; `report` None: it has said nothing yet."""
    if report is None:
        return [f"  {worker}: has not said yet what it holds"]
    if not readable(report):
        version = report.get("version")
        return [
            f"  {worker}: its report has version {version!r}, this release reads {REPORT_VERSION}: ask with its own"
        ]
    there, budget = report["resident_bytes"], report["budget_bytes"]
    said = [
        f"  {worker} on {report['device']}: {_size(there)} of {_size(budget)}, {_size(report['host_bytes'])} of copies in host memory"
    ]
    said += [
        _model(one, report["limits"]) for one in sorted(report["models"], key=lambda one: _ORDER.index(one["tier"]))
    ]
    rate = hit_rate(report)
    ran = [_batches(report["batches"])]
    ran += [f"{rate:.0%} of the time the model was there"] if rate is not None else []
    ran += [f"{_batches(report['out_of_memory'])} without memory"] if report["out_of_memory"] else []
    came = [
        f"{count} from {tier} in {report['load_s'].get(tier, 0.0):.2f} s"
        for tier, count in report["loads"].items()
        if count
    ]
    left = [f"{count} ({reason})" for reason, count in report["evictions"].items() if count]
    said.append(f"    ran {', '.join(ran)}")
    said += [f"    came: {', '.join(came)}"] if came else []
    said += [f"    left: {', '.join(left)}"] if left else []
    return said


_ORDER = ("device", "host", "disk")


def _model(one: Mapping[str, Any], limits: Mapping[str, int]) -> str:
    words = [
        one["tier"],
        _size(one["bytes"]) + (f" + {_size(one['working_bytes'])} working" if one["working_bytes"] else ""),
    ]
    words += ["pinned"] if one["pinned"] else []
    words += ["in use"] if one["in_use"] else []
    words += [f"batches of at most {limits[one['model']]:,} tokens"] if one["model"] in limits else []
    return f"    {one['model']}: {', '.join(words)}"


def _batches(count: int) -> str:
    return "1 batch" if count == 1 else f"{count:,} batches"


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
