"""Where results go: the contract of a sink, the places that belong to an output, and the way from a URL to both.

Knows nothing of models; how a sink commits is the matter of parquet_sink, lance_sink and lance_commit.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from typing import Any, Protocol

import pyarrow as pa

from ..config.errors import OutputError, nearest
from .folder import Folder, open_folder
from .provenance import RECIPES
from .records import Receipt

KINDS = ("lancedb", "parquet")

Pair = tuple[int, int]  # (shard, generation)


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """One output and everything that lies beside it. Paths are absolute local ones or fsspec URLs."""

    kind: str  # lancedb | parquet
    url: str  # as a user would write it
    data: str  # what readers open: the `.lance` folder, or the folder of Parquet files
    manifest: str  # `<output>.lading`

    def __str__(self) -> str:
        return self.manifest.removesuffix(".lading")

    def job(self, job: str) -> Folder:
        """The folder of one job: plan, markers, rejects, staging."""
        return open_folder(f"{self.manifest}/jobs/{job}")


@dataclasses.dataclass(frozen=True, slots=True)
class Folded:
    """What one fold did."""

    shards: int  # newly brought into view
    conflicts: int  # lost compare-and-swaps that were tried again
    seconds: float
    void: tuple[
        Pair, ...
    ] = ()  # of the given ones, those whose staged files were gone: hand them to Manifest.reopen_void


class Sink(Protocol):
    """Exactly once in two atomic steps: `stage` (invisible) + the marker (manifest.publish), then `fold`.

    Any number of processes may do any of this at the same time; nobody holds a lock. Every process calls
    `register` first. The last fold before a job is closed is handed all receipts of the job.
    """

    output: Output

    def check(self, job: str, schema: pa.Schema, *, on_existing: str) -> None:
        """Raises OutputError if `register` of a new job would refuse. Writes nothing but a probe beside the output."""
        ...

    def register(self, job: str, schema: pa.Schema, *, on_existing: str, key: str = "id") -> None:
        """Make the output (an empty table or dataset with this schema and its metadata) or check that it fits;
        enter the job.

        Idempotent. `key` is the column whose values `stage(replaces=...)` names: with chunks, the document's
        id. Raises OutputError: another schema, dimension or recipe; rows of another job under `refuse`;
        `replace` where it cannot be; not writable. Raises TableChanged: dropped, remade or restored under the job.
        """
        ...

    def stage(
        self, job: str, shard: int, generation: int, attempt: str, table: pa.Table, *, replaces: pa.Array | None = None
    ) -> tuple[dict[str, Any], ...]:
        """Write an attempt's rows where no reader sees them, durably; what to put into Receipt.files.

        `replaces` (on_existing: replace) holds the ids of all input rows covered, rejected ones included,
        duplicates and null ids left out: their old rows go in the commit that brings the new ones. It is
        staged too, so that anyone can fold, whatever became of this process. Raises StopJob: disk full.
        """
        ...

    def discard(self, files: tuple[dict[str, Any], ...]) -> None:
        """Remove the files of an attempt whose marker lost."""
        ...

    def fold(self, job: str, receipts: Iterable[Receipt]) -> Folded:
        """Bring the files of finished receipts into view, those already folded left alone. Idempotent.

        Raises TableChanged. Fold no more often than about once a second per table when many processes
        write: closer folds starve foreign deletes and compaction.
        """
        ...

    def folded(self, job: str) -> set[Pair]:
        """What is in view of this job, while it is open."""
        ...

    def void(self, job: str) -> set[Pair]:
        """Finished generations whose files were gone when they were to be folded, while the job is open."""
        ...

    def unregister(self, job: str) -> None:
        """The job is complete and closed: drop its ledger entry. Idempotent."""
        ...

    def changed(self, job: str) -> str:
        """Why the output no longer is what this closed job left (dropped, remade, restored), "" if it is."""
        ...


def output_paths(url: str) -> Output:
    """The places of `lancedb://FOLDER/TABLE` or `parquet://FOLDER`, where FOLDER may be a path or an fsspec URL.

    Raises OutputError for anything else.
    """
    kind, separator, rest = url.partition("://")
    if not separator or kind not in KINDS:
        hint = nearest(kind, KINDS) if separator else ""
        raise OutputError(f"output {url!r}: write lancedb://FOLDER/TABLE or parquet://FOLDER{hint}")
    place = _absolute(rest)
    if not rest.strip("./"):
        raise OutputError(f"output {url!r} names no place: write lancedb://FOLDER/TABLE or parquet://FOLDER")
    if kind == "lancedb":
        place = place.removesuffix(".lance")
    data = f"{place}.lance" if kind == "lancedb" else place
    return Output(kind, f"{kind}://{place}", data, f"{place}.lading")


def find_output(path_or_url: str) -> Output:
    """The existing output that a user names by URL or by bare path (`./db/docs`, `./db/docs.lance`, `./vectors`).

    Raises OutputError if there is none, or if a table and a folder of that name both exist.
    """
    if path_or_url.partition("://")[0] in KINDS:
        return output_paths(path_or_url)
    place = path_or_url.rstrip("/").removesuffix(".lance").removesuffix(".lading")
    candidates = [output_paths(f"{kind}://{place}") for kind in KINDS]
    there = [output for output in candidates if _exists(output.data)]
    if len(there) > 1:
        raise OutputError(
            f"{place} is both a LanceDB table and a Parquet folder: name {' or '.join(o.url for o in there)}"
        )
    if not there:
        raise OutputError(
            f"no output at {place}: neither {candidates[0].data} nor the folder {candidates[1].data} exists"
        )
    return there[0]


def open_sink(url: str | Output) -> Sink:
    """The sink behind `lancedb://FOLDER/TABLE` or `parquet://FOLDER`; touches nothing yet."""
    output = output_paths(url) if isinstance(url, str) else url
    if output.kind == "lancedb":
        from .lance_sink import LanceSink  # pylance is only loaded where it is used

        return LanceSink(output)
    from .parquet_sink import ParquetSink

    return ParquetSink(output)


def check_recipes(where: str, existing: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises OutputError if a result column of the existing output was made by another recipe."""
    theirs, ours = (json.loads(metadata.get(RECIPES, "{}")) for metadata in (existing, wanted))
    for column in theirs.keys() & ours.keys():
        if theirs[column]["hash"] != ours[column]["hash"]:
            raise OutputError(
                f"{where}: column {column!r} was made by recipe {theirs[column]['hash']}, this job's is {ours[column]['hash']}; "
                "rows of two recipes do not compare: use the same model and options, or another output"
            )


def merged_recipes(existing: dict[str, str], wanted: dict[str, str]) -> dict[str, str]:
    """The recipes entry of the metadata with this job's columns added to those already there."""
    columns = {**json.loads(wanted.get(RECIPES, "{}")), **json.loads(existing.get(RECIPES, "{}"))}
    return {RECIPES: json.dumps(columns, sort_keys=True)} if columns else {}


def check_schema(where: str, existing: pa.Schema, wanted: pa.Schema) -> None:
    """Raises OutputError, naming every difference in columns and types, unless the order alone differs.

    Whether list items may be null is not compared: LanceDB does not keep it.
    """
    faults: list[str] = []
    for field in wanted:
        place = existing.get_field_index(field.name)
        if place < 0:
            faults.append(f"column {field.name!r} is missing there")
        elif _plain(existing.field(place).type) != _plain(field.type):
            faults.append(f"column {field.name!r} is {existing.field(place).type} there and {field.type} in this job")
        elif field.nullable and not existing.field(place).nullable:
            faults.append(f"column {field.name!r} may not be null there, but may be in this job")
    faults += [f"column {name!r} is only there" for name in existing.names if name not in wanted.names]
    if faults:
        raise OutputError(
            f"{where} has another schema: {'; '.join(faults)}. Use another output, or the same columns and dims"
        )


def metadata_of(schema: pa.Schema) -> dict[str, str]:
    """Schema metadata as text."""
    return {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type with every nested field nullable, unnamed list items and no field metadata."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind


def _absolute(place: str) -> str:
    place = place.rstrip("/") or "/"
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def _exists(place: str) -> bool:
    if "://" not in place:
        return os.path.isdir(place)
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(place)
    return filesystem.exists(path)
