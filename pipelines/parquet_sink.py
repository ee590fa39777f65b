"""A folder of Parquet files as a sink: staged beside it, then renamed into it. The folder never holds anything else.

Readers (pyarrow, DuckDB, Polars, datasets) can scan the folder at any moment; side files would break some of them.
"""

from __future__ import annotations

import io
import json
import re
import time
import uuid
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..config.errors import OutputError, TableChanged
from ..config.failpoints import failpoint
from .failures import stopping
from .folder import Folder, open_folder
from .generations import Pair
from .output import Folded, Output, check_recipes, check_schema, metadata_of
from .records import Receipt

ROW_GROUP_ROWS = 10_000

PART = re.compile(r"part-(?P<job>[^-]+)-(?P<rest>schema|\d+\.\d+)\.parquet")


class ParquetSink:
    """See `sinks.Sink`. A part is `part-<job>-<shard>.<generation>.parquet`; `part-<job>-schema.parquet` has no rows and
    tells readers the columns of an output that is still empty."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self._data = open_folder(output.data)
        self._known: set[Pair] = set()  # settled, as far as this process knows; what is settled stays so
        self._schema: pa.Schema | None = None
        self._leaves: dict[str, str] = {}

    # -- entering and leaving the folder

    def check(self, job: str, schema: pa.Schema, *, on_existing: str) -> None:
        if on_existing == "replace":
            raise OutputError(
                f"{self.output.url}: rows can be replaced in LanceDB tables only; use --to lancedb://FOLDER/TABLE, or append"
            )
        names = self._data.names()
        others = [name for name in names if not name.startswith(f"part-{job}-")]
        if not others:
            return
        if on_existing == "refuse":
            raise OutputError(
                f"{self.output.url} holds files that job {job} did not write, like {others[0]}; use --on-existing append or another output"
            )
        foreign = [name for name in others if not name.endswith(".parquet")]
        if foreign:
            raise OutputError(
                f"{self.output.url} holds {foreign[0]}, which is no Parquet file and breaks readers of the folder; use another output"
            )
        # One file of each job, and each file of nobody's: parts of a job are all alike.
        first = {match["job"] if (match := PART.fullmatch(name)) else name: name for name in reversed(others)}
        for name in first.values():
            existing = self._schema_of(name)
            check_schema(f"{self.output.url}/{name}", existing, schema)
            check_recipes(f"{self.output.url}/{name}", metadata_of(existing), metadata_of(schema))

    def register(self, job: str, schema: pa.Schema, *, on_existing: str, key: str = "id") -> None:
        folder = self.output.job(job)
        self._schema, self._leaves = schema, _compression(schema)
        if folder.exists("registered.json"):
            if not self._data.names():
                raise TableChanged(
                    f"{self.output.data} was emptied while job {job} writes to it; to write it anew, delete {folder.url}"
                )
            return
        self.check(job, schema, on_existing=on_existing)
        failpoint("register.before-commit")
        with stopping("write to", self.output.data):
            name, _ = self._write(folder, schema.empty_table())
            self._data.adopt(folder, name, f"part-{job}-schema.parquet")
            folder.delete(name)
        failpoint("register.committed")
        try:
            self.check(job, schema, on_existing=on_existing)
        except OutputError:
            # Another job began here at the same moment and was seen too late: both may give way, neither may mix in.
            self._data.delete(f"part-{job}-schema.parquet")
            raise
        folder.put("registered.json", b'{"version":1}')
        failpoint("register.recorded")

    def unregister(self, job: str) -> None:
        if not self.output.job(job).exists("closed.json"):
            raise ValueError(f"job {job} is not closed")
        failpoint("unregister.committed")

    def changed(self, job: str) -> str:
        if not self.output.job(job).exists("closed.json"):
            return ""
        there = set(self._data.names())
        lost = [name for name in (_part(job, pair) for pair in sorted(self.folded(job))) if name not in there]
        kept = [name for name in lost if self._had_rows(job, name)]
        return f"{len(kept)} parts of job {job} are gone from {self.output.data}, like {kept[0]}" if kept else ""

    # -- rows

    def stage(
        self, job: str, shard: int, generation: int, attempt: str, table: pa.Table, *, replaces: pa.Array | None = None
    ) -> tuple[dict[str, Any], ...]:
        if self._schema is None:
            raise ValueError("register the job first")
        if replaces is not None:
            raise ValueError("Parquet files cannot replace rows")
        files: tuple[dict[str, Any], ...] = ()
        if table.num_rows:
            with stopping("write rows to", self.output.job(job).url):
                name, size = self._write(self.output.job(job), table.select(self._schema.names).cast(self._schema))
            files = ({"job": job, "staged": name, "rows": table.num_rows, "bytes": size},)
        failpoint("stage.written")
        return files

    def discard(self, files: tuple[dict[str, Any], ...]) -> None:
        for file in files:
            self.output.job(file["job"]).delete(file["staged"])

    def fold(self, job: str, receipts: Iterable[Receipt]) -> Folded:
        began = time.monotonic()
        folder = self.output.job(job)
        new, void = 0, []
        failpoint("fold.read")
        for receipt in receipts:
            pair = (receipt.shard, receipt.generation)
            if receipt.status != "done" or pair in self._known:
                continue
            with stopping("bring rows into", self.output.data):
                stored = folder.read(_settled(pair))
                standing = stored or self._fold_one(folder, job, receipt)
            if json.loads(standing)["outcome"] == "void":
                void.append(pair)
            else:
                self._known.add(pair)
                new += stored is None
        return Folded(new, 0, time.monotonic() - began, tuple(void))

    def _fold_one(self, folder: Folder, job: str, receipt: Receipt) -> bytes:
        """Move the winner's file into the folder, then record that, once and for all. Any number may do this at once:
        a file can be renamed only once, and whoever finds neither it nor the part looks at the record."""
        pair = (receipt.shard, receipt.generation)
        outcome = "folded"
        staged: list[str] = [file["staged"] for file in receipt.files]
        failpoint("fold.before-commit")
        if staged and not self._data.exists(_part(job, pair)):
            moved = self._data.adopt(folder, staged[0], _part(job, pair))
            if not moved and not self._data.exists(_part(job, pair)):
                outcome = "void"
        failpoint("fold.committed")
        standing = folder.put(
            _settled(pair), json.dumps({"version": 1, "outcome": outcome, "rows": receipt.rows_out}).encode()
        )
        for path in staged:
            folder.delete(path)  # an object store's copy leaves it
        return standing

    def folded(self, job: str) -> set[Pair]:
        return self._settled_as(job, "folded")

    def void(self, job: str) -> set[Pair]:
        return self._settled_as(job, "void")

    # -- inside

    def _settled_as(self, job: str, outcome: str) -> set[Pair]:
        folder = self.output.job(job)
        found: set[Pair] = set()
        for name in folder.names("folded"):
            if json.loads(folder.read(f"folded/{name}") or b"{}").get("outcome") == outcome:
                shard, _, generation = name.removesuffix(".json").partition(".")
                found.add((int(shard), int(generation)))
        return found

    def _had_rows(self, job: str, part: str) -> bool:
        match = PART.fullmatch(part)
        stored = match and self.output.job(job).read(f"folded/{match['rest']}.json")
        return bool(stored) and json.loads(stored)["rows"] > 0

    def _schema_of(self, name: str) -> pa.Schema:
        try:
            with self._data.open(name) as file:
                return pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise OutputError(
                f"{self._data.url}/{name} cannot be read as Parquet ({error}); remove it or use another output"
            ) from error

    def _write(self, folder: Folder, table: pa.Table) -> tuple[str, int]:
        """A new file in the job's staging folder, durable; its name below the job's folder, which others may mount elsewhere, and
        its bytes."""
        name = f"staging/{uuid.uuid4().hex}.parquet"
        with folder.stream(name) as file:
            pq.write_table(
                table,
                file,
                row_group_size=ROW_GROUP_ROWS,
                compression=self._leaves,  # pyright: ignore[reportArgumentType]
                use_dictionary=[leaf for leaf, codec in self._leaves.items() if codec != "none"],  # pyright: ignore[reportArgumentType]
            )
            size = file.tell()
        return name, size


def _part(job: str, pair: Pair) -> str:
    return f"part-{job}-{pair[0]}.{pair[1]}.parquet"


def _settled(pair: Pair) -> str:
    return f"folded/{pair[0]}.{pair[1]}.json"


def _compression(schema: pa.Schema) -> dict[str, str]:
    """Codec by leaf column: none for floating vectors (zstd saves 9 % of them and costs reading time), zstd for the rest."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    columns = pq.read_metadata(empty).schema
    vectors = {
        one.name
        for one in schema
        if pa.types.is_fixed_size_list(one.type) and pa.types.is_floating(one.type.value_type)
    }
    leaves = [columns.column(place).path for place in range(len(columns))]
    return {leaf: "none" if leaf.split(".")[0] in vectors else "zstd" for leaf in leaves}
