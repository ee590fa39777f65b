"""The job spec: one schema for YAML files, the quick verbs and Python callers."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    paths: tuple[str, ...]  # globs, folders, or fsspec URLs; lance://PATH for a Lance table
    format: str = ""  # parquet | jsonl | csv | lance | text; "" is: by the file's ending
    id: str = ""  # column that names a row; "" is: a hash of path, position and content
    keep: tuple[str, ...] | None = None  # columns carried through; None is: the step's text columns
    limit: int = 0  # only the first N rows, for a try; 0 is all
    check_ids: bool = True  # scan a named id column for duplicates while planning
    version: int = 0  # lance: the version to read; 0 pins the newest at planning


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec:
    verb: str  # encode | score | extract
    model: str  # folder, or a name in the hub's cache or on the hub
    text: tuple[str, ...]  # the text column; score: the two columns of the pair
    column: str = ""  # name of the result column; "" is: vector | score | entities
    revision: str = ""  # of a hub name
    max_tokens: int = 0  # 0: what the checkpoint says
    precision: str = "float32"
    dims: int = 0  # encode; 0: the model's own
    vector_type: str = "float32"  # encode: float32 | float16 | int8 | binary
    prompt: str = "document"  # encode: document | query | none | another prompt name of the checkpoint
    prompt_text: str = ""  # encode: a literal prompt instead
    activation: str = ""  # score: identity | sigmoid; "" is: what the checkpoint says


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SinkSpec:
    to: str  # lancedb://FOLDER/TABLE or parquet://FOLDER
    on_existing: str = "refuse"  # refuse | append | replace; not part of the job's id


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    max_rejects: int | None = None  # stop the job above this many rejected rows; None is no limit
    long_text: str = "truncate"  # truncate | chunk | reject
    chunk_tokens: int = 0  # 0: max_tokens
    chunk_overlap: int = 0
    shard_rows: int = 4096  # rows that are committed, retried and lost together


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    source: SourceSpec
    steps: tuple[StepSpec, ...]
    sink: SinkSpec
    policy: PolicySpec = dataclasses.field(default_factory=PolicySpec)
    version: int = 1
