"""Tidies an output: compacts, indexes, drops old versions and what lost attempts left. Never needed for correctness.

Safe while jobs write: what would conflict is tried again or skipped, and said.
"""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from ..config.errors import OutputError
from ..config.words import counted
from .failures import stopping
from .folder import Folder
from .manifest import jobs
from .output import Output, find_output, metadata_of
from .provenance import RECIPES

INDEX_ROWS = 10_000  # below this a scan answers in milliseconds, exactly
KEEP_VERSIONS_H = 24  # readers may hold an older version for as long
LOST_AFTER_H = 1  # files of a closed job that were not touched for so long belong to no living attempt
RECALL_QUERIES = 50
RECALL_TOP = 10
COMMIT_ATTEMPTS = 10


@dataclasses.dataclass(slots=True)
class Optimized:
    """What was done, for people and for `--json`."""

    output: str
    fragments_before: int = 0
    fragments_after: int = 0
    indexes: list[str] = dataclasses.field(default_factory=list)  # made or brought up to date
    recall: dict[str, float] = dataclasses.field(
        default_factory=dict
    )  # vector column -> share of the true nearest found
    bytes_removed: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)  # what was not done, and why

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        said = []
        if self.fragments_before:
            said.append(f"{counted(self.fragments_before, 'fragment')} compacted to {self.fragments_after:,}")
        said += [f"index on {name}" for name in self.indexes]
        said += [
            f"{column}: {share:.0%} of the true {RECALL_TOP} nearest are found through the index"
            for column, share in self.recall.items()
        ]
        said.append(f"{counted(self.bytes_removed, 'byte')} of old versions and lost attempts removed")
        return said + self.notes


def optimize(output: str) -> Optimized:
    """Tidy the output named by URL or bare path. Raises OutputError where there is none, or a folder of anything else."""
    found = find_output(output)
    names = jobs(found)
    if found.kind == "parquet" and not names:
        raise OutputError(
            f"{output} is no output of lading's: no job has written to it (looked in {found.manifest}/jobs)"
        )
    done = Optimized(str(found))
    closed = [job for job in names if found.job(job).exists("closed.json")]
    running = sorted(set(names) - set(closed))
    if found.kind == "lancedb":
        with stopping("optimize", found.data):
            _optimize_table(found, done, running)
    for job in closed:
        _clean(found.job(job), done)
    if running:
        done.notes.append(f"job {running[0]} is not finished: its staged files and all old versions were kept")
    return done


def _clean(folder: Folder, done: Optimized) -> None:
    """What no reader and no fold of a closed job can ask for any more; slow attempts that go on get time to notice."""
    for subfolder in ("staging", "tmp", "check", "replaced"):
        done.bytes_removed += folder.clean(subfolder, LOST_AFTER_H * 3600)


def _optimize_table(output: Output, done: Optimized, running: list[str]) -> None:
    from . import lance_commit

    lance_commit.check_versions()
    table = lance_commit.open_table(output.data)
    if table is None:
        raise OutputError(f"{output.data} is no LanceDB table")
    done.fragments_before = len(table.get_fragments())
    _retried(output.data, lambda newest: newest.optimize.compact_files(), done)
    for column, kind, options in _wanted_indexes(table, done):
        there = any(column in index.field_names for index in table.describe_indices())
        if there or _retried(output.data, lambda newest, c=column, k=kind, o=options: _index(newest, c, k, o), done):
            done.indexes.append(f"{column} ({kind})")
    _retried(output.data, lambda newest: newest.optimize.optimize_indices(), done)
    if not running:
        # delete_unverified stays False: files that no version names may belong to a writer at work.
        removed = lance_commit.lance.dataset(output.data).cleanup_old_versions(
            older_than=timedelta(hours=KEEP_VERSIONS_H)
        )
        done.bytes_removed += removed.bytes_removed
    table = lance_commit.lance.dataset(output.data)
    done.fragments_after = len(table.get_fragments())
    for column, kind, _ in _wanted_indexes(table, Optimized("")):
        if kind.startswith("IVF") and not pa.types.is_integer(table.schema.field(column).type.value_type):
            done.recall[column] = _recall(table, column)


def _wanted_indexes(table: Any, done: Optimized) -> list[tuple[str, str, dict[str, Any]]]:
    """(column, kind, options) of the indexes worth having on this table."""
    rows = table.count_rows()
    if rows < INDEX_ROWS:
        done.notes.append(
            f"a search in {counted(rows, 'row')} is exact and takes milliseconds; vector indexes are made from {INDEX_ROWS:,} rows on"
        )
    wanted: list[tuple[str, str, dict[str, Any]]] = []
    for field in table.schema:
        if field.name in ("id", "doc_id"):
            wanted.append((field.name, "BTREE", {}))
        elif _is_result_text(table, field):
            wanted.append((field.name, "INVERTED", {}))
        elif pa.types.is_fixed_size_list(field.type) and rows >= INDEX_ROWS:
            item = field.type.value_type
            if item == pa.int8():
                done.notes.append(
                    f"{field.name}: LanceDB cannot search or index int8 vectors; use float16 or binary for search"
                )
                continue
            metric = "hamming" if item == pa.uint8() else "cosine"
            # Flat cells: cheap to build, exact inside the probed cells; PQ found 12 % of the nearest at default probes.
            wanted.append((field.name, "IVF_FLAT", {"metric": metric, "num_partitions": max(1, round(rows**0.5 / 4))}))
    return wanted


def _is_result_text(table: Any, field: pa.Field) -> bool:
    recipes = json.loads(metadata_of(table.schema).get(RECIPES, "{}"))
    return pa.types.is_string(field.type) and any(field.name in entry.get("text", ()) for entry in recipes.values())


def _index(table: Any, column: str, kind: str, options: dict[str, Any]) -> None:
    if kind.startswith("IVF"):
        table.create_index(column, kind, **options)
    else:
        table.create_scalar_index(column, kind)


def _retried(uri: str, act: Any, done: Optimized) -> bool:
    """Run `act` on the newest version, again when a writer was first; given up, and noted, where one always was."""
    from . import lance_commit

    for attempt in range(COMMIT_ATTEMPTS):
        table = lance_commit.lance.dataset(uri)
        try:
            act(table)
            return True
        except (OSError, RuntimeError) as error:
            # Of puts that meet S3 may refuse both: a conflict, though the table has not moved.
            met = isinstance(error, lance_commit.CommitConflictError)
            if not (met or lance_commit.lance.dataset(uri).version != table.version):
                raise
            time.sleep(0.1 * 2 ** min(attempt, 4))
    done.notes.append(
        f"other writers were first {COMMIT_ATTEMPTS} times, so not all was done: repeat the command when they are done"
    )
    return False


def _recall(table: Any, column: str) -> float:
    """Share of the true nearest rows that a search through the index finds, over some of the table's own vectors."""
    rows = table.count_rows()
    places = np.random.default_rng(0).choice(rows, min(RECALL_QUERIES, rows), replace=False)
    queries = [one for one in table.take(places.tolist(), columns=[column])[column].to_pylist() if one is not None]
    hit = wanted = 0
    for query in queries:
        exact, found = (
            set(
                table.scanner(
                    columns=["_distance"],
                    with_row_id=True,
                    nearest={"column": column, "q": query, "k": RECALL_TOP, "use_index": through, "metric": "cosine"},
                )
                .to_table()["_rowid"]
                .to_pylist()
            )
            for through in (False, True)
        )
        hit, wanted = hit + len(exact & found), wanted + len(exact)
    return hit / wanted if wanted else 1.0
