"""The job spec: one schema for YAML files, the quick verbs and Python callers.

What can be judged from the words alone is judged here; whether columns, models and outputs exist is not.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..config.errors import SpecError, nearest
from ..config.strict_yaml import load_mapping
from .spec_rules import VERBS, check_known, check_rules, fail, is_int, show

SPEC_VERSION = 1


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
    adapter: str = ""  # a LoRA adapter on the model: folder, or name or name@revision on the hub
    max_tokens: int = 0  # 0: what the checkpoint says
    precision: str = "float32"
    dims: int = 0  # encode; 0: the model's own
    vector_type: str = "float32"  # encode: float32 | float16 | int8 | binary
    prompt: str = "document"  # encode: document | query | none | another prompt name of the checkpoint
    prompt_text: str = ""  # encode: a literal prompt instead
    outputs: tuple[str, ...] = ()  # encode: dense, sparse, multi_vector; none is: what the model is made for
    top_k: int = 0  # sparse: the largest weights only; 0: all
    threshold: float = 0.0  # sparse: weights above this only
    token_pooling: int = 1  # multi_vector: tokens joined into one vector for so many
    instruction: str = ""  # encode, score: put into the prompt's slot
    activation: str = ""  # score: identity | sigmoid; "" is: what the checkpoint says
    pooling: str = (
        ""  # encode: mean | cls | last | max | mean_sqrt_len | weighted_mean; "" is: what the checkpoint says
    )
    normalize: bool | None = None  # encode; None is: what the checkpoint says
    known_as: str = ""  # its name in the catalogue, for what its files do not say; "" is: its name on the hub
    template: str = ""  # score by a language model: qwen3 | mxbai-v2 | bge-gemma; "" is: what the checkpoint says
    query: str = ""  # score: the query of every row, in place of a column; `text` then names the documents alone


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueriesSpec:
    """A table of queries that rows of the source refer to, for `score`. No paths: there is none."""

    paths: tuple[str, ...] = ()
    format: str = ""  # as of a source
    id: str = "qid"  # column that names a query
    text: str = "text"  # column of its text
    by: str = ""  # column of the source that names the row's query; "" is: called as `id`

    @property
    def key(self) -> str:
        """The source's column."""
        return self.by or self.id


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SinkSpec:
    to: str  # lancedb://FOLDER/TABLE or parquet://FOLDER
    on_existing: str = "refuse"  # refuse | append | replace; not part of the job's id


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    max_rejects: int | None = (
        None  # stop the job above this many rejected rows; None is no limit; not part of the job's id
    )
    long_text: str = "truncate"  # truncate | chunk | reject
    truncation_side: str = ""  # truncate: right | left, the end that is cut off; "" is: what the checkpoint says
    chunk_tokens: int = 0  # 0: max_tokens
    chunk_overlap: int = 0
    token_columns: bool = False  # also store each row's number of tokens, and whether it was truncated
    shard_rows: int = 4096  # rows that are committed, retried and lost together
    shard_seconds: float = 0.0  # as many rows as take about so long, where that is known; 0: shard_rows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """Where a submitted job waits; no part of the job's id."""

    pool: str = ""  # "" is: the smallest that can hold the model
    priority: int = 0  # jobs of higher priority go first


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    source: SourceSpec
    steps: tuple[StepSpec, ...]
    sink: SinkSpec
    policy: PolicySpec = dataclasses.field(default_factory=PolicySpec)
    queue: QueueSpec = dataclasses.field(default_factory=QueueSpec)
    queries: QueriesSpec = dataclasses.field(default_factory=QueriesSpec)
    version: int = SPEC_VERSION


_SECTIONS: dict[str, type[Any]] = {
    "source": SourceSpec,
    "sink": SinkSpec,
    "policy": PolicySpec,
    "queue": QueueSpec,
    "queries": QueriesSpec,
}
_OPTIONAL = ("policy", "queue", "queries")


def load(path: str | Path) -> JobSpec:
    """The job spec in a YAML file. Raises SpecError with file, key (or line) and the nearest valid spelling."""
    return from_dict(load_mapping(Path(path), SpecError), where=str(path))


def from_dict(given: dict[str, Any], where: str = "job.yaml") -> JobSpec:
    """The checked spec that plain data (parsed YAML or JSON) spells out. Raises SpecError; `where` names the file in it."""
    version = given.get("version", SPEC_VERSION)
    if not is_int(version) or version != SPEC_VERSION:
        fail(where, "version", f"spec version {version!r} is not {SPEC_VERSION}, the one this release reads")
    check_known(given, ("steps", "version", *_SECTIONS), where, "")
    sections: dict[str, Any] = {}
    for name, cls in _SECTIONS.items():
        if name in given:
            sections[name] = _build(cls, given[name], where, name)
        elif name not in _OPTIONAL:
            fail(where, name, "is missing")
    steps = given.get("steps")
    if not isinstance(steps, list) or not steps:
        fail(where, "steps", "expected a list of one step, like `- encode: {text: body, model: MODEL}`")
    sections["steps"] = tuple(_step(one, where, f"steps[{number}]") for number, one in enumerate(steps))
    return _checked(JobSpec(**sections), where)


def to_dict(spec: JobSpec) -> dict[str, Any]:
    """Plain data that `from_dict` turns back into an equal spec: what holds its default is left out, paths stay as written."""
    steps = []
    for step in spec.steps:
        kept = _plain(step)
        verb = kept.pop("verb")
        steps.append({verb: kept})
    plain = {"version": spec.version, "source": _plain(spec.source), "steps": steps, "sink": _plain(spec.sink)}
    return plain | {name: kept for name in _OPTIONAL if (kept := _plain(getattr(spec, name)))}


def identity(spec: JobSpec) -> dict[str, Any]:
    """`to_dict` without what may change between two runs of the same job: the part of a spec that the job's id covers."""
    plain = to_dict(spec)
    plain.pop("queue", None)
    plain["sink"].pop("on_existing", None)
    plain.get("policy", {}).pop("max_rejects", None)  # raised to let a stopped job go on
    if not plain.get("policy", True):
        del plain["policy"]
    return plain


def validate(spec: JobSpec) -> None:
    """Check a spec that was made in Python as one read from a file is. Raises SpecError."""
    _checked(spec, "job spec")


def _plain(section: Any) -> dict[str, Any]:
    kept = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if value != field.default:
            value = float(value) if field.type == "float" else value  # 1 and 1.0 are one job
            kept[field.name] = list(value) if isinstance(value, tuple) else value
    return kept


def _build(
    cls: type[Any], given: object, where: str, path: str, *, refused: frozenset[str] = frozenset(), **fixed: str
) -> Any:
    """A section from its mapping: keys known, required ones there, a single text where a list may stand. Types come later."""
    if not isinstance(given, dict):
        fail(where, path, f"expected keys and values, found {show(given)}")
    given = dict(given)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.name not in fixed}
    if "path" in given and cls in (SourceSpec, QueriesSpec):
        if "paths" in given:
            fail(where, f"{path}.path", "give either path or paths")
        given["paths"] = given.pop("path")
    check_known(given, fields.keys() - refused, where, path)
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in given:
            fail(where, f"{path}.{name}", "is missing")
    for name, value in given.items():
        if str(fields[name].type).startswith("tuple"):
            given[name] = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    return cls(**fixed, **given)


def _step(given: object, where: str, path: str) -> StepSpec:
    if not isinstance(given, dict) or len(given) != 1:
        fail(where, path, f"expected one verb ({', '.join(VERBS)}) with its keys below it, found {show(given)}")
    ((verb, keys),) = given.items()
    if verb not in VERBS:
        fail(where, f"{path}.{verb}", f"unknown verb{nearest(str(verb), VERBS)}")
    foreign: dict[str, str] = {}
    for other, own in VERBS.items():
        for key in own - VERBS[verb]:
            foreign[key] = f"{foreign[key]} and {other}" if key in foreign else other
    for key in keys if isinstance(keys, dict) else ():
        if key in foreign:
            fail(
                where,
                f"{path}.{verb}.{key}",
                f"only {foreign[key]} {'have' if ' ' in foreign[key] else 'has'} this key",
            )
    return _build(StepSpec, keys, where, f"{path}.{verb}", refused=frozenset(foreign), verb=verb)


def _checked(spec: JobSpec, where: str) -> JobSpec:
    """`spec`, if it is one: Python callers may hand in anything."""
    if spec.version != SPEC_VERSION:
        fail(where, "version", f"spec version {spec.version!r} is not {SPEC_VERSION}, the one this release reads")
    for name, cls in _SECTIONS.items():
        if not isinstance(getattr(spec, name), cls):
            fail(where, name, f"expected {cls.__name__}, found {show(getattr(spec, name))}")
    steps: Any = spec.steps
    if not isinstance(steps, tuple) or not all(isinstance(step, StepSpec) for step in steps):
        fail(where, "steps", f"expected a tuple of StepSpec, found {show(steps)}")
    if len(steps) != 1:
        fail(where, "steps", f"a job has exactly one step for now, found {len(steps)}: make one job of each")
    if steps[0].verb not in VERBS:
        fail(where, "steps[0].verb", f"unknown verb {steps[0].verb!r}{nearest(str(steps[0].verb), VERBS)}")
    check_rules(spec, where)
    return spec
