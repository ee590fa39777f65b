"""The one place that commits to a LanceDB table: a compare-and-swap on the table's version, and a creation that cannot overwrite.

Leans on documented operations of one Lance release (docs/exactly-once.md); tests/test_lance_commit.py holds the
behaviour down. Knows versions, fragments and metadata; nothing of jobs.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..config.errors import OutputError, StopJob
from ..config.failpoints import failpoint
from .failures import reason, stopping
from .folder import make_durable, make_folder, open_folder

with warnings.catch_warnings():
    # Workers fork before their first use of Lance, never after.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    import lance
    from lance.commit import CommitConflictError
    from lance.fragment import FragmentMetadata
    from lance.schema import LanceSchema

# The Lance inside each lancedb release: what our commits lean on was seen to hold there.
LANCE_OF_LANCEDB = {"0.40.0": "13.0.0"}
HIGH_WATER_KEY = "lading.hw"
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit does: rows that go, fragments that come, metadata that says so. All or nothing."""

    metadata: dict[str, str]  # set; other keys stay
    added: list[FragmentMetadata] = field(default_factory=list)
    key: str = ""  # with `deleted`: rows whose `key` is among these values go
    deleted: pa.Array | None = None


def check_versions() -> None:
    """Raises OutputError unless pylance is the release that lancedb carries inside."""
    lancedb, pylance = (importlib.metadata.version(name) for name in ("lancedb", "pylance"))
    if LANCE_OF_LANCEDB.get(lancedb) != pylance:
        pairs = ", ".join(f"lancedb {ours} with pylance {theirs}" for ours, theirs in LANCE_OF_LANCEDB.items())
        raise OutputError(
            f"lancedb {lancedb} with pylance {pylance} is not a pair that was tested for exact commits; install {pairs}"
        )


def open_table(uri: str) -> lance.LanceDataset | None:
    """The newest version of the table, None if there is no table. Raises StopJob if the store fails."""
    with stopping("read", uri):
        try:
            return lance.dataset(uri)
        except ValueError as error:
            if "was not found" in str(error):
                return None
            remedy = "If a power cut left its newest file in _versions empty, remove that file"
            if "://" in uri:
                remedy = "See that the store can be reached, and what the environment's credentials allow,"
            raise StopJob(f"{uri} does not open: {reason(error)}. {remedy} and run the same command again") from error


def create_table(uri: str, schema: pa.Schema) -> bool:
    """Make an empty table; False if there is one already, whoever made it and whenever.

    `lance.write_dataset(mode="create")` would not do: of two racers, the second silently replaces what the
    first made, rows included. An Overwrite of version 0 without retries is put-if-absent.
    """
    if "://" not in uri:
        with stopping("create", uri):
            make_folder(os.path.dirname(uri))
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            table = lance.LanceDataset.commit(
                uri, lance.LanceOperation.Overwrite(schema, []), read_version=0, max_retries=0
            )
        except OSError as error:
            if open_table(uri) is not None:
                return False
            # Said of a table that is not there: S3 refuses puts that meet, see _swap.
            if "already exists" not in str(error) or time.monotonic() > deadline:
                with stopping("create", uri):
                    raise
            time.sleep(random.uniform(0, 0.2))
        else:
            _make_durable(table)
            return True


def commit(uri: str, propose: Callable[[lance.LanceDataset | None], Change | None]) -> int:
    """Show `propose` the newest version until the Change it returns for one is committed on exactly that one.

    `propose` sees None where there is no table; it returns None where nothing is to be done (any more).
    Returns how many times another writer was first. Raises StopJob if the store fails, or if others were
    first for PATIENCE_S.
    """
    conflicts = 0
    deadline = time.monotonic() + PATIENCE_S
    while True:
        table = open_table(uri)
        change = propose(table)
        if change is None:
            return conflicts
        assert table is not None
        with stopping("commit to", uri):
            if _swap(table, change):
                return conflicts
        conflicts += 1
        if time.monotonic() > deadline:
            raise StopJob(
                f"{uri}: other writers were first {conflicts} times in {PATIENCE_S:.0f} s; run the same command again when they are done"
            )
        time.sleep(random.uniform(0, min(1.0, 0.01 * 2 ** min(conflicts, 7))))


def make_fragments_durable(uri: str, fragments: Iterable[FragmentMetadata]) -> None:
    """fsync the data files of uncommitted fragments (Lance does not), where the disk is ours to sync."""
    if "://" not in uri:
        make_durable(f"{uri}/data/{file.path}" for fragment in fragments for file in fragment.files)


def _swap(table: lance.LanceDataset, change: Change) -> bool:
    """Commit on top of exactly this version; False if the table has moved on meanwhile."""
    fragments = [fragment.metadata for fragment in table.get_fragments()]
    if change.deleted is not None and len(change.deleted):
        fragments = _without_rows(table, fragments, change.key, change.deleted)
    high_water = _number(table, change.added)
    metadata = {**change.metadata, HIGH_WATER_KEY: str(high_water)}
    # Merge is meant for adding columns, so it conflicts with every change of rows or schema: with no retries, a
    # compare-and-swap. Append would be rebased over anything. preserves_nullability lets foreign appends that
    # began before us rebase over our commit, and still refuses ours after theirs.
    operation = lance.LanceOperation.Merge(
        [*fragments, *change.added], _with_metadata(table.lance_schema, metadata), preserves_nullability=True
    )
    failpoint("fold.before-commit" if change.added else "register.before-commit")
    try:
        committed = lance.LanceDataset.commit(table.uri, operation, read_version=table.version, max_retries=0)
    except OSError as error:
        # Which error says "conflict" depends on what the other writer did; that the table moved on says it surely.
        # (Should it have been our own commit whose answer was lost, the next look at the ledger says that.) Of puts that
        # meet S3 may refuse each, or one before the other can be seen: a conflict, though the table has not moved.
        if not isinstance(error, CommitConflictError) and lance.dataset(table.uri).version == table.version:
            raise
        return False
    _make_durable(committed)
    return True


def _number(table: lance.LanceDataset, added: list[FragmentMetadata]) -> int:
    """Give new fragments ids that no fragment ever had; the highest id so far.

    An id used again under an index that still lists it would hide the new rows from indexed searches.
    """
    used = [int((table.schema.metadata or {}).get(HIGH_WATER_KEY.encode(), b"-1"))]
    used += [fragment.fragment_id for fragment in table.get_fragments()]
    used += [one for index in table.describe_indices() for segment in index.segments for one in segment.fragment_ids]
    highest = max(used)
    for fragment in added:
        highest += 1
        fragment.id = highest
    return highest


def _with_metadata(schema: LanceSchema, changed: dict[str, str]) -> LanceSchema:
    """The table's own schema, field ids included, with some metadata keys set.

    Going through pyarrow would renumber the fields, which Lance refuses once a column was dropped. The
    pickled form of a LanceSchema is its metadata (JSON, values as lists of bytes) and one message per field.
    """
    rebuild: Any
    rebuild, (stored, *fields) = schema.__reduce__()  # pyright: ignore[reportAssignmentType]
    metadata = {**json.loads(stored), **{key: list(value.encode()) for key, value in changed.items()}}
    return rebuild(json.dumps(metadata), *fields)


def _without_rows(
    table: lance.LanceDataset, fragments: list[FragmentMetadata], key: str, values: pa.Array
) -> list[FragmentMetadata]:
    """The fragments with every row gone whose `key` is among `values`; nothing is committed.

    Deletion files are written in Lance's documented format (an Arrow file, one uint32 column `row_id`), because
    `fragment.delete` returns no metadata for a fragment that loses its last row, and Merge must be given all.
    """
    gone = _row_addresses(table, key, values)
    by_fragment = {int(one): (gone[gone >> 32 == one] & 0xFFFFFFFF) for one in np.unique(gone >> 32)}
    kept: list[FragmentMetadata] = []
    for fragment in fragments:
        offsets = by_fragment.get(fragment.id)
        kept.append(fragment if offsets is None else _delete(table, fragment, offsets))
    return kept


def _row_addresses(table: lance.LanceDataset, key: str, values: pa.Array) -> np.ndarray:
    """uint64 addresses (fragment << 32 | offset) of the live rows whose `key` is among `values`."""
    found: list[np.ndarray] = []
    for start in range(0, len(values), 4096):
        literals = (_literal(value) for value in values.slice(start, 4096).to_pylist())
        rows = table.scanner(columns=[], filter=f"`{key}` IN ({','.join(literals)})", with_row_address=True).to_table()
        found.append(rows["_rowaddr"].to_numpy())
    return np.unique(np.concatenate(found))


def _literal(value: str | int) -> str:
    """The value in Lance's SQL, where nothing but the quote is special in a text, and a sign is not part of a number."""
    # As an expression of pyarrow's it would need no words, but a table with a time or duration column cannot take one.
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value) if value > -(2**63) else f"({value + 1} - 1)"  # 2**63 alone is read as a float


def _delete(table: lance.LanceDataset, fragment: FragmentMetadata, offsets: np.ndarray) -> FragmentMetadata:
    stored = fragment.to_json()
    physical: int = stored["physical_rows"]
    source = table.get_fragment(fragment.id)
    assert source is not None
    addresses = source.scanner(columns=[], with_row_address=True).to_table()["_rowaddr"].to_numpy()
    live = addresses & 0xFFFFFFFF
    deleted = np.setdiff1d(np.arange(physical, dtype=np.uint32), np.setdiff1d(live, offsets).astype(np.uint32))
    number = uuid.uuid4().int >> 65
    name = f"_deletions/{fragment.id}-{table.version}-{number}.arrow"
    schema = pa.schema([pa.field("row_id", pa.uint32(), nullable=False)])
    with open_folder(table.uri).stream(name) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(deleted)], schema=schema))
    stored["deletion_file"] = {
        "read_version": table.version,
        "id": number,
        "file_type": "array",
        "num_deleted_rows": len(deleted),
        "base_id": None,
    }
    return FragmentMetadata.from_json(json.dumps(stored))


def _make_durable(table: lance.LanceDataset) -> None:
    """fsync a version just committed: a power cut that emptied the newest manifest would leave a table that does not open."""
    if "://" in table.uri:
        return
    names = [f"_versions/{2**64 - 1 - table.version:020d}.manifest", f"_versions/{table.version}.manifest"]
    files = [f"{table.uri}/{name}" for name in names]
    transactions = f"{table.uri}/_transactions"
    files += [f"{transactions}/{name}" for name in os.listdir(transactions) if name.startswith(f"{table.version - 1}-")]
    # Of the two names of a manifest one is there; and a racer that lost takes its transaction file back at any moment.
    with stopping("make durable", table.uri):
        make_durable(files, may_be_gone=True)
