"""A LanceDB table as a sink: uncommitted fragments, then a fold that commits rows, deletions and ledger together.

How a commit is made exact is lance_commit's matter; what the ledger says is ledger's.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from ..config.errors import OutputError, TableChanged
from ..config.failpoints import failpoint
from . import lance_commit
from .failures import stopping
from .folder import Folder, open_folder
from .generations import Pair
from .lance_commit import Change, lance
from .ledger import TABLE_ID_KEY, Entry, Ledger
from .output import Folded, Output, check_recipes, check_schema, merged_recipes, metadata_of
from .records import Receipt

FragmentMetadata = lance_commit.FragmentMetadata


class LanceSink:
    """See `sinks.Sink`."""

    def __init__(self, output: Output) -> None:
        lance_commit.check_versions()
        self.output = output
        self._uri = output.data
        self._files = open_folder(output.data)
        self._sequence = 0  # the highest seen by this process
        self._schema: pa.Schema | None = None  # of the job

    # -- entering and leaving the table

    def check(self, job: str, schema: pa.Schema, *, on_existing: str) -> None:
        table = lance_commit.open_table(self._uri)
        if table is not None and job not in self._ledger(table).jobs:
            self._check_fit(table, job, schema, on_existing)

    def register(self, job: str, schema: pa.Schema, *, on_existing: str, key: str = "id") -> None:
        folder = self.output.job(job)
        entry = Entry(replaces=key if on_existing == "replace" else "")
        if _remembered(folder, "registered.json") is None and lance_commit.open_table(self._uri) is None:
            fresh = Ledger(uuid.uuid4().hex, 0, {job: entry})
            lance_commit.create_table(self._uri, schema.with_metadata({**metadata_of(schema), **fresh.metadata()}))

        def propose(table: lance.LanceDataset | None) -> Change | None:
            remembered = _remembered(folder, "registered.json")
            if remembered is not None:
                self._checked(table, job, folder)
                return None
            if table is None:
                raise TableChanged(
                    f"{self._uri} was dropped while job {job} was entering it; run the same command again"
                )
            ledger = self._ledger(table)
            if job in ledger.jobs:
                return None
            # Only after the look at the table: whoever left the ledger had closed the job before.
            if folder.exists("closed.json"):
                return None
            self._check_fit(table, job, schema, on_existing)
            existing = metadata_of(table.schema)
            named = {TABLE_ID_KEY: ledger.table_id or uuid.uuid4().hex}
            return Change(
                {**merged_recipes(existing, metadata_of(schema)), **ledger.with_job(job, entry).metadata(), **named}
            )

        lance_commit.commit(self._uri, propose)
        failpoint("register.committed")
        table = lance_commit.open_table(self._uri)
        if table is not None and not folder.exists("closed.json"):
            ledger = self._ledger(table)
            folder.put("registered.json", json.dumps({"version": 1, "table_id": ledger.table_id}).encode())
        failpoint("register.recorded")
        self._schema = schema
        self._checked(table, job, folder)

    def unregister(self, job: str) -> None:
        folder = self.output.job(job)
        if not folder.exists("closed.json"):
            raise ValueError(f"job {job} is not closed")

        def propose(table: lance.LanceDataset | None) -> Change | None:
            if table is None or job not in self._ledger(table).jobs:
                return None
            return Change(self._ledger(table).without(job).metadata())

        lance_commit.commit(self._uri, propose)
        failpoint("unregister.committed")
        table = lance_commit.open_table(self._uri)
        if table is not None:
            ledger = self._ledger(table)
            folder.put("unregistered.json", json.dumps({"version": 1, "sequence": ledger.sequence}).encode())

    def changed(self, job: str) -> str:
        folder = self.output.job(job)
        registered, left = _remembered(folder, "registered.json"), _remembered(folder, "unregistered.json")
        table = lance_commit.open_table(self._uri)
        if registered is None or left is None:
            return ""
        if table is None:
            return f"{self._uri} was dropped after job {job} was finished"
        ledger = self._ledger(table)
        if ledger.table_id != registered["table_id"]:
            return f"{self._uri} was dropped and made anew after job {job} was finished"
        if ledger.sequence < left["sequence"]:
            return f"{self._uri} was restored to a version from before job {job} was finished"
        return ""

    # -- rows

    def stage(
        self, job: str, shard: int, generation: int, attempt: str, table: pa.Table, *, replaces: pa.Array | None = None
    ) -> tuple[dict[str, Any], ...]:
        if self._schema is None:
            raise ValueError("register the job first")
        files: list[dict[str, Any]] = []
        if replaces is not None:
            name = f"replaced/{shard}.{generation}.{attempt}.arrow"
            self.output.job(job).put(name, _to_ipc(replaces))
            files.append({"job": job, "replaces": name})
        if table.num_rows:
            with stopping("write rows to", self._uri):
                target, _ = self._checked(lance_commit.open_table(self._uri), job, self.output.job(job))
                stored = pa.schema([one for one in target.schema if one.name in self._schema.names])
                rows = table.select(stored.names).cast(stored)
                written = lance.fragment.write_fragments(rows, target, schema=stored, mode="append")
                assert isinstance(written, list)
                lance_commit.make_fragments_durable(self._uri, written)
            files += [
                {
                    "fragment": one.to_json(),
                    "rows": one.physical_rows,
                    "bytes": sum(f.file_size_bytes or 0 for f in one.files),
                }
                for one in written
            ]
        failpoint("stage.written")
        return tuple(files)

    def discard(self, files: tuple[dict[str, Any], ...]) -> None:
        for path in self._data_files(files):
            self._files.delete(path)
        for file in files:
            if "replaces" in file:
                self.output.job(file["job"]).delete(file["replaces"])

    def fold(self, job: str, receipts: Iterable[Receipt]) -> Folded:
        began = time.monotonic()
        folder = self.output.job(job)
        receipts = list(receipts)
        given = {(one.shard, one.generation) for one in receipts}
        settled: list[Pair] = []
        void: set[Pair] = set()

        def propose(table: lance.LanceDataset | None) -> Change | None:
            settled.clear()
            void.clear()
            table, ledger = self._checked(table, job, folder)
            entry = ledger.jobs.get(job)
            if entry is None:
                return None
            void.update(entry.void & given)
            waiting = [
                one for one in receipts if one.status == "done" and (one.shard, one.generation) not in entry.settled
            ]
            failpoint("fold.read")
            if not waiting:
                return None
            whole = [one for one in waiting if all(self._files.exists(path) for path in self._data_files(one.files))]
            settled.extend((one.shard, one.generation) for one in whole)
            lost = {(one.shard, one.generation) for one in waiting if one not in whole}
            void.update(lost)
            after = Entry(entry.replaces, entry.folded.union(settled), entry.void | lost)
            added = [
                FragmentMetadata.from_json(json.dumps(file["fragment"]))
                for one in whole
                for file in one.files
                if "fragment" in file
            ]
            gone = [_from_ipc(folder, file["replaces"]) for one in whole for file in one.files if "replaces" in file]
            deleted = pa.concat_arrays(gone) if gone and entry.replaces else None
            return Change(ledger.with_job(job, after).metadata(), added, entry.replaces, deleted)

        conflicts = lance_commit.commit(self._uri, propose)
        failpoint("fold.committed")
        return Folded(len(settled), conflicts, time.monotonic() - began, tuple(sorted(void)))

    def folded(self, job: str) -> set[Pair]:
        return set(self._entry(job).folded)

    def void(self, job: str) -> set[Pair]:
        return set(self._entry(job).void)

    # -- inside

    def _entry(self, job: str) -> Entry:
        table = lance_commit.open_table(self._uri)
        return Entry() if table is None else self._ledger(table).jobs.get(job, Entry())

    def _ledger(self, table: lance.LanceDataset) -> Ledger:
        return Ledger.read(metadata_of(table.schema), self._uri)

    def _checked(self, table: lance.LanceDataset | None, job: str, folder: Folder) -> tuple[lance.LanceDataset, Ledger]:
        """The table and its ledger, if it still is the one that this job registered with. Raises TableChanged."""
        remedy = f"to write the job anew, delete {folder.url} and run the same command"
        if table is None:
            raise TableChanged(f"{self._uri} was dropped while job {job} writes to it; {remedy}")
        ledger = self._ledger(table)
        registered = _remembered(folder, "registered.json")
        if registered is not None and registered["table_id"] != ledger.table_id:
            how = "was dropped and made anew"
            if not ledger.table_id:  # no job ever wrote to what is there now
                how += f", or restored to a version from before job {job} began,"
            raise TableChanged(f"{self._uri} {how} while job {job} writes to it; {remedy}")
        # closed.json is looked at after the table: it is written before the entry goes.
        if job not in ledger.jobs and not folder.exists("closed.json"):
            raise TableChanged(
                f"{self._uri} was restored to a version from before job {job} began, or overwritten; {remedy}"
            )
        if self._schema is not None:
            self._check_columns(table, job, self._schema)
        if ledger.sequence < self._sequence:
            self._sequence = ledger.sequence
            raise TableChanged(
                f"{self._uri} was restored to an older version while job {job} writes to it; run the same command again to "
                "bring back the shards that the older version lacks"
            )
        self._sequence = ledger.sequence
        return table, ledger

    def _check_columns(self, table: lance.LanceDataset, job: str, schema: pa.Schema) -> None:
        """Others may add nullable columns while a job runs; anything else would leave rows that cannot be read."""
        lost = [one.name for one in schema if one.name not in table.schema.names]
        forced = [one.name for one in table.schema if one.name not in schema.names and not one.nullable]
        if lost or forced:
            what = (
                f"column {lost[0]!r} was dropped or renamed"
                if lost
                else f"column {forced[0]!r}, which may not be null, was added"
            )
            raise TableChanged(
                f"{self._uri}: {what} while job {job} writes to it; undo that and run the same command again"
            )

    def _check_fit(self, table: lance.LanceDataset, job: str, schema: pa.Schema, on_existing: str) -> None:
        ledger = self._ledger(table)
        if on_existing == "refuse" and (ledger.jobs or table.count_rows()):
            raise OutputError(
                f"{self.output.url} has {table.count_rows():,} rows that job {job} did not write; use --on-existing append or replace, or another output"
            )
        if table.has_stable_row_ids:
            raise OutputError(
                f"{self._uri} has stable row ids, which exact commits cannot keep; copy it to a table without them"
            )
        check_schema(self.output.url, table.schema, schema)
        check_recipes(self.output.url, metadata_of(table.schema), metadata_of(schema))
        others = [name for name, entry in ledger.jobs.items() if entry.replaces and name != job]
        if on_existing == "replace" and others:
            raise OutputError(
                f"{self.output.url}: job {others[0]} is still replacing rows there; finish it first (if only rejects are left: lading retry --give-up), or delete {self.output.job(others[0]).url}"
            )

    def _data_files(self, files: Iterable[dict[str, Any]]) -> Iterator[str]:
        for file in files:
            if "fragment" in file:
                yield from (f"data/{one['path']}" for one in file["fragment"]["files"])


def _remembered(folder: Folder, name: str) -> dict[str, Any] | None:
    stored = folder.read(name)
    return None if stored is None else json.loads(stored)


def _to_ipc(values: pa.Array) -> bytes:
    batch = pa.record_batch([values], names=["id"])
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return stream.getvalue().to_pybytes()


def _from_ipc(folder: Folder, name: str) -> pa.Array:
    stored = folder.read(name)
    if stored is None:
        raise TableChanged(
            f"{folder.url}/{name} is gone: it lists the ids whose rows were to be replaced; put it back and run the same command again"
        )
    return pa.ipc.open_file(stored).read_all()["id"].combine_chunks()
