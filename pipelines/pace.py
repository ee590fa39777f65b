"""How fast rows of a recipe went through a pool's workers, by what earlier jobs left beside their outputs: for shards of so many seconds."""

from __future__ import annotations

import logging
import re

from ..config.errors import LadingError
from ..config.events import tell
from .manifest import parse_receipt
from .records import Receipt
from .registry import Entry, Registry

log = logging.getLogger(__name__)

JOBS, SHARDS = 8, 16  # that are looked at: of the newest jobs, and of each of them
LEAST_S = 1.0  # of work, all those shards together: less says nothing
MOST_ROWS = 1 << 16  # of a shard, which is held in memory until it is stored
STAGES = ("read", "prepare", "device")  # run beside each other: the slowest one takes the time
_MARKER = re.compile(r"\d+\.\d+\.json")


def rows_per_s(registry: Registry, pool: str, recipe: str) -> float | None:
    """Input rows a second of one worker, of the newest job of this recipe (its hash) on this pool that did enough; None: none did."""
    entries = [one for one in (*registry.list_closed(), *registry.list_open()) if one.pool == pool]
    of_recipe = sorted((one for one in entries if one.recipe == recipe), key=lambda one: one.created)
    for entry in reversed(of_recipe[-JOBS:]):
        try:
            receipts = _some(entry)
        except LadingError as error:  # its output is away, or gone: an older job may say
            tell(log, "pace unread", job=entry.job, why=error)
            continue
        seconds = sum(max(one.seconds.get(stage, 0.0) for stage in STAGES) for one in receipts)
        if seconds >= LEAST_S:
            return sum(one.rows_in for one in receipts) / seconds
    return None


def shard_rows(seconds: float, rate: float) -> int:
    """Rows that take about so long at this rate: at least 1, at most MOST_ROWS."""
    return min(max(round(seconds * rate), 1), MOST_ROWS)


def _some(entry: Entry) -> list[Receipt]:
    folder = entry.place.job(entry.job)
    names = [name for name in folder.names("markers") if _MARKER.fullmatch(name)][-SHARDS:]
    stored = [(name, folder.read(f"markers/{name}")) for name in names]
    receipts = [parse_receipt(folder, name, one) for name, one in stored if one is not None]
    return [one for one in receipts if one.status == "done" and one.seconds.get("device")]  # 0 where it ran alone
