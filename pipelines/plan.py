"""What a job set out to do, as stored beside its output: written once, before the first shard. Pure."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from ..config.errors import OutputError
from .records import Input, Shard

PLAN_VERSION = 2  # 1 did not keep the source's schema


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job's spec, the snapshot of its source, and how it was cut."""

    job: str
    spec: dict[str, Any]
    format: str
    inputs: list[Input]
    shards: list[Shard]  # shard n has number n
    duplicates: dict[int, np.ndarray]  # shard -> int64 ordinals that are rejected as duplicates
    on_existing: str
    recipe: dict[str, Any]
    model: dict[str, Any]  # name, folder, origin
    source: str  # schema of what is read (id, then the columns asked for): a serialised Arrow schema, base64
    schema: str  # of the output, likewise
    created: float  # Unix time, for people
    queries: list[Input] = dataclasses.field(
        default_factory=list
    )  # the snapshot of a table of queries; left out without one
    version: int = PLAN_VERSION

    @property
    def source_schema(self) -> pa.Schema:
        return _schema(self.source)

    @property
    def output_schema(self) -> pa.Schema:
        return _schema(self.schema)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; inputs and shards as rows of their fields, since there may be a million."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        queries = [dataclasses.astuple(one) for one in fields.pop("queries")]
        return {
            **fields,
            **({"queries": queries} if queries else {}),
            "inputs": [dataclasses.astuple(one) for one in self.inputs],
            "shards": [dataclasses.astuple(one) for one in self.shards],
            "duplicates": {str(shard): [int(one) for one in ordinals] for shard, ordinals in self.duplicates.items()},
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Plan:
        """The inverse of `to_dict`. Raises OutputError for a plan of another version."""
        check_version(stored, PLAN_VERSION, f"the plan of job {stored.get('job')}")
        duplicates = {int(shard): np.array(ordinals, np.int64) for shard, ordinals in stored["duplicates"].items()}
        inputs, shards = [Input(*one) for one in stored["inputs"]], [Shard(*one) for one in stored["shards"]]
        fields: dict[str, Any] = {**stored, "inputs": inputs, "shards": shards, "duplicates": duplicates}
        fields["queries"] = [Input(*one) for one in stored.get("queries", [])]
        return cls(**fields)


def schema_text(schema: pa.Schema) -> str:
    """A schema as a plan keeps it."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def _schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def check_version(stored: dict[str, Any], known: int, where: str) -> None:
    """Raises OutputError, naming both versions, if a stored format is not the one this release reads."""
    if stored.get("version") != known:
        raise OutputError(
            f"{where} has format version {stored.get('version')}, this release reads version {known}; use the release that wrote it"
        )
