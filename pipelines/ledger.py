"""The ledger that a LanceDB table carries in its own schema metadata: which shards of which open jobs are in it. Pure.

It changes in the same commit as the rows, so that table and ledger cannot disagree, whatever is killed when.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..config.errors import OutputError

LEDGER_VERSION = 1
JOBS_KEY = "lading.jobs"
TABLE_ID_KEY = "lading.table_id"  # random, made with the table: a table of the same name made later has another
SEQUENCE_KEY = "lading.sequence"  # counts our commits: smaller than remembered means restored to an older version

Pair = tuple[int, int]  # (shard, generation)


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One open job's line in the ledger."""

    replaces: str = ""  # on_existing: replace: the column whose values name the rows to go; "" otherwise
    folded: frozenset[Pair] = frozenset()
    void: frozenset[Pair] = frozenset()  # finished, but the files were gone when it was to be folded

    @property
    def settled(self) -> frozenset[Pair]:
        """What no fold may touch again."""
        return self.folded | self.void


@dataclasses.dataclass(frozen=True, slots=True)
class Ledger:
    """What a table's metadata says about the jobs that write to it."""

    table_id: str  # "" for a table that no job has written to
    sequence: int
    jobs: Mapping[str, Entry]

    @classmethod
    def read(cls, metadata: Mapping[str, str], where: str) -> Ledger:
        """Raises OutputError for a ledger of another version."""
        stored: dict[str, Any] = json.loads(metadata.get(JOBS_KEY, "null")) or {"version": LEDGER_VERSION, "jobs": {}}
        if stored.get("version") != LEDGER_VERSION:
            raise OutputError(
                f"{where}: its ledger has version {stored.get('version')}, this release reads version {LEDGER_VERSION}; "
                "use the release that wrote it"
            )
        jobs = {job: _entry(line) for job, line in stored["jobs"].items()}
        return cls(metadata.get(TABLE_ID_KEY, ""), int(metadata.get(SEQUENCE_KEY, "0")), jobs)

    def metadata(self) -> dict[str, str]:
        """What to write into the schema's metadata, as one commit later."""
        lines = {job: _line(entry) for job, entry in sorted(self.jobs.items())}
        return {
            TABLE_ID_KEY: self.table_id,
            SEQUENCE_KEY: str(self.sequence + 1),
            JOBS_KEY: json.dumps({"version": LEDGER_VERSION, "jobs": lines}, separators=(",", ":")),
        }

    def with_job(self, job: str, entry: Entry) -> Ledger:
        return dataclasses.replace(self, jobs={**self.jobs, job: entry})

    def without(self, job: str) -> Ledger:
        return dataclasses.replace(self, jobs={name: entry for name, entry in self.jobs.items() if name != job})


def to_ranges(numbers: Iterable[int]) -> str:
    """`{0, 1, 2, 5}` as `"0-2,5"`: a ledger grows with the gaps, not with the shards."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def from_ranges(text: str) -> set[int]:
    """The inverse of `to_ranges`."""
    numbers: set[int] = set()
    for run in filter(None, text.split(",")):
        first, _, last = run.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def _line(entry: Entry) -> dict[str, object]:
    line: dict[str, object] = {"folded": _by_generation(entry.folded)}
    if entry.void:
        line["void"] = _by_generation(entry.void)
    if entry.replaces:
        line["replaces"] = entry.replaces
    return line


def _entry(line: Mapping[str, object]) -> Entry:
    return Entry(str(line.get("replaces", "")), _pairs(line.get("folded")), _pairs(line.get("void")))


def _by_generation(pairs: Iterable[Pair]) -> dict[str, str]:
    generations: dict[int, list[int]] = {}
    for shard, generation in pairs:
        generations.setdefault(generation, []).append(shard)
    return {str(generation): to_ranges(shards) for generation, shards in sorted(generations.items())}


def _pairs(stored: object) -> frozenset[Pair]:
    ranges = stored if isinstance(stored, dict) else {}
    return frozenset((shard, int(generation)) for generation, text in ranges.items() for shard in from_ranges(text))
