"""The places that belong to an output, and whether what is there fits: its schema and recipes. Commits nothing."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pyarrow as pa

from ..config.errors import OutputError, nearest
from .folder import Folder, folder_names, open_folder
from .generations import Pair
from .provenance import RECIPES

KINDS = ("lancedb", "parquet")
MOST_SHOWN = 10


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

    def check_places(self) -> None:
        """Raises OutputError where something that is no folder stands in the place of a folder that the output needs."""
        for place in (self.data, f"{self.manifest}/jobs"):
            for path in () if "://" in place else (Path(place), *Path(place).parents):
                if os.path.lexists(path) and not path.is_dir():
                    raise OutputError(
                        f"{self.url} needs a folder at {path}, where there is a file: move it away or use another output"
                    )


@dataclasses.dataclass(frozen=True, slots=True)
class Folded:
    """What one fold did."""

    shards: int  # newly brought into view
    conflicts: int  # lost compare-and-swaps that were tried again
    seconds: float
    # Of the given ones, those whose staged files were gone: hand them to Manifest.reopen_void.
    void: tuple[Pair, ...] = ()


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
        place = place.removesuffix(".lance").rstrip("/")
    if "://" in place and "/" not in place.partition("://")[2]:
        # `<output>.lading` would be another bucket.
        raise OutputError(f"output {url!r} is a whole bucket: name a place in it, like {url.rstrip('/')}/docs")
    data = f"{place}.lance" if kind == "lancedb" else place
    return Output(kind, f"{kind}://{place}", data, f"{place}.lading")


def find_output(path_or_url: str) -> Output:
    """The existing output that a user names by URL or by bare path (`./db/docs`, `./db/docs.lance`, `./vectors`).

    Raises OutputError if there is none, if a table and a folder of that name both exist, or if it is the folder that
    outputs lie in.
    """
    if path_or_url.partition("://")[0] in KINDS:
        return output_paths(path_or_url)
    place = _absolute(path_or_url).removesuffix(".lance").removesuffix(".lading")
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
    if there[0].kind == "parquet" and not _exists(there[0].manifest):
        _refuse_above(path_or_url, there[0].data)
    return there[0]


def _refuse_above(named: str, folder: str) -> None:
    """Raises OutputError, which names them, if there are outputs in this folder, which itself is none."""
    names = folder_names(folder)
    tables, beside = (
        {name.removesuffix(ending) for name in names if name.endswith(ending)} for ending in (".lance", ".lading")
    )
    if inside := sorted(tables | beside):
        what = ("table" if tables >= beside else "output") + "s" * (len(inside) > 1)
        shown = ", ".join(inside[:MOST_SHOWN]) + (", ..." if len(inside) > MOST_SHOWN else "")
        raise OutputError(f"{named} holds the {what} {shown}: name one, like {named.rstrip('/')}/{inside[0]}")


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
    return open_folder(place).exists("") if "://" in place else os.path.isdir(place)
