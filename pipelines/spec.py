"""The job spec: one schema for YAML files, the quick verbs and Python callers.

What can be judged from the words alone is judged here; whether columns, models and outputs exist is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..config.errors import SpecError, nearest
from ..config.outputs import DEFAULT_COLUMN
from ..config.strict_yaml import load_mapping

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
    version: int = SPEC_VERSION


# The verbs, and the keys of a step that only one of them has.
VERBS: dict[str, frozenset[str]] = {
    "encode": frozenset({"dims", "vector_type", "prompt", "prompt_text"}),
    "score": frozenset({"activation"}),
    "extract": frozenset(),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "format": ("parquet", "jsonl", "csv", "lance", "text"),
    "precision": ("float32", "bfloat16", "float16"),
    "vector_type": ("float32", "float16", "int8", "binary"),
    "activation": ("identity", "sigmoid"),
    "on_existing": ("refuse", "append", "replace"),
    "long_text": ("truncate", "chunk", "reject"),
}
_NOT_EMPTY = frozenset({"paths", "model", "text", "to"})
_AT_LEAST = {"shard_rows": 1}  # every other number may be 0
_SECTIONS: dict[str, type[Any]] = {"source": SourceSpec, "sink": SinkSpec, "policy": PolicySpec}
_SINKS = {"lancedb": "lancedb://FOLDER/TABLE", "parquet": "parquet://FOLDER"}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # to Python, true is 1


def _is_strings(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) for one in value)


# By a field's annotation: is this value one, and what to call it.
_TYPES: dict[str, tuple[Callable[[object], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "text"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_is_int, "a whole number"),
    "int | None": (lambda value: value is None or _is_int(value), "a whole number"),
    "tuple[str, ...]": (_is_strings, "a list of texts"),
    "tuple[str, ...] | None": (lambda value: value is None or _is_strings(value), "a list of texts"),
}


def load(path: str | Path) -> JobSpec:
    """The job spec in a YAML file. Raises SpecError with file, key (or line) and the nearest valid spelling."""
    return from_dict(load_mapping(Path(path), SpecError), where=str(path))


def from_dict(given: dict[str, Any], where: str = "job.yaml") -> JobSpec:
    """The checked spec that plain data (parsed YAML or JSON) spells out. Raises SpecError; `where` names the file in it."""
    version = given.get("version", SPEC_VERSION)
    if not _is_int(version) or version != SPEC_VERSION:
        _fail(where, "version", f"spec version {version!r} is not {SPEC_VERSION}, the one this release reads")
    _known(given, ("version", "source", "steps", "sink", "policy"), where, "")
    sections: dict[str, Any] = {}
    for name, cls in _SECTIONS.items():
        if name in given:
            sections[name] = _build(cls, given[name], where, name)
        elif name != "policy":
            _fail(where, name, "is missing")
    steps = given.get("steps")
    if not isinstance(steps, list) or not steps:
        _fail(where, "steps", "expected a list of one step, like `- encode: {text: body, model: MODEL}`")
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
    policy = _plain(spec.policy)
    return plain | ({"policy": policy} if policy else {})


def identity(spec: JobSpec) -> dict[str, Any]:
    """`to_dict` without what may change between two runs of the same job: the part of a spec that the job's id covers."""
    plain = to_dict(spec)
    plain["sink"].pop("on_existing", None)
    return plain


def validate(spec: JobSpec) -> None:
    """Check a spec that was made in Python as one read from a file is. Raises SpecError."""
    _checked(spec, "job spec")


def _fail(where: str, key: str, what: str) -> NoReturn:
    raise SpecError(f"{where}: {key}: {what}" if key else f"{where}: {what}")


def _known(given: dict[Any, Any], valid: Any, where: str, path: str) -> None:
    for key in given:
        if key not in valid:
            name = f"{path}.{key}" if path else str(key)
            _fail(where, name, f"unknown key{nearest(str(key), valid)}")


def _plain(section: Any) -> dict[str, Any]:
    kept = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if value != field.default:
            kept[field.name] = list(value) if isinstance(value, tuple) else value
    return kept


def _build(cls: type[Any], given: object, where: str, path: str, **fixed: str) -> Any:
    """A section from its mapping: keys known, required ones there, a single text where a list may stand. Types come later."""
    if not isinstance(given, dict):
        _fail(where, path, f"expected keys and values, found {_show(given)}")
    given = dict(given)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.name not in fixed}
    valid = set(fields)
    if cls is StepSpec:
        for verb, own in VERBS.items():
            valid -= own if verb != fixed["verb"] else set()
            for key in own & given.keys() if verb != fixed["verb"] else ():
                _fail(where, f"{path}.{key}", f"only {verb} has this key")
    if "path" in given and cls is SourceSpec:
        if "paths" in given:
            _fail(where, f"{path}.path", "give either path or paths")
        given["paths"] = given.pop("path")
    _known(given, valid, where, path)
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in given:
            _fail(where, f"{path}.{name}", "is missing")
    for name, value in given.items():
        if str(fields[name].type).startswith("tuple"):
            given[name] = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    return cls(**fixed, **given)


def _step(given: object, where: str, path: str) -> StepSpec:
    if not isinstance(given, dict) or len(given) != 1:
        _fail(where, path, f"expected one verb ({', '.join(VERBS)}) with its keys below it, found {_show(given)}")
    ((verb, keys),) = given.items()
    if verb not in VERBS:
        _fail(where, f"{path}.{verb}", f"unknown verb{nearest(str(verb), VERBS)}")
    return _build(StepSpec, keys, where, f"{path}.{verb}", verb=verb)


def _show(value: object) -> str:
    if isinstance(value, bool):
        return f"{str(value).lower()} (in YAML, yes, no, on and off mean that too: quote a name)"
    if isinstance(value, dict):
        return f"the keys {', '.join(map(str, value))}" if value else "no keys"
    return "nothing" if value is None else repr(value)


def _checked(spec: JobSpec, where: str) -> JobSpec:
    if spec.version != SPEC_VERSION:
        _fail(where, "version", f"spec version {spec.version!r} is not {SPEC_VERSION}, the one this release reads")
    if not isinstance(spec.steps, tuple) or not all(isinstance(step, StepSpec) for step in spec.steps):
        _fail(where, "steps", "expected a tuple of StepSpec")
    if len(spec.steps) != 1:
        _fail(where, "steps", f"a job has exactly one step for now, found {len(spec.steps)}: make one job of each")
    for name, cls in _SECTIONS.items():
        if not isinstance(getattr(spec, name), cls):
            _fail(where, name, f"expected {cls.__name__}, found {_show(getattr(spec, name))}")
        _check_values(getattr(spec, name), where, name)
    step = spec.steps[0]
    if step.verb not in VERBS:
        _fail(where, "steps[0]", f"unknown verb {step.verb!r}{nearest(str(step.verb), VERBS)}")
    path = f"steps[0].{step.verb}"
    _check_values(step, where, path)
    _check_step(step, where, path)
    _check_source(spec.source, where)
    _check_sink(spec, where)
    _check_chunks(spec, where)
    _check_columns(spec, where, path)
    return spec


def _check_values(section: Any, where: str, path: str) -> None:
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{path}.{field.name}"
        fits, wanted = _TYPES[str(field.type)]
        if not fits(value):
            _fail(where, key, f"expected {wanted}, found {_show(value)}")
        if field.name in _NOT_EMPTY and (not value or "" in tuple(value)):
            _fail(where, key, "is empty")
        if _is_int(value) and value < _AT_LEAST.get(field.name, 0):
            _fail(where, key, f"must be at least {_AT_LEAST.get(field.name, 0)}, found {value}")
        choices = _CHOICES.get(field.name, ())
        if choices and value not in (*choices, field.default):
            _fail(where, key, f"{value!r} is none of the choices{nearest(value, choices)}")


def _check_step(step: StepSpec, where: str, path: str) -> None:
    for verb, own in VERBS.items():
        for field in dataclasses.fields(step):
            if verb != step.verb and field.name in own and getattr(step, field.name) != field.default:
                _fail(where, f"{path}.{field.name}", f"only {verb} has this key")
    wanted = 2 if step.verb == "score" else 1
    if len(step.text) != wanted:
        names = "two columns, like [query, document]" if wanted == 2 else "one column"
        _fail(where, f"{path}.text", f"{step.verb} takes {names}, found {len(step.text)}")
    if step.prompt_text and step.prompt != "document":
        _fail(
            where,
            f"{path}.prompt_text",
            f"give either prompt_text or a prompt's name, not both (prompt: {step.prompt})",
        )
    if step.vector_type == "binary" and step.dims % 8:
        _fail(where, f"{path}.dims", f"binary packs 8 dimensions into a byte, and {step.dims} is no multiple of 8")


def _check_source(source: SourceSpec, where: str) -> None:
    lance = source.format == "lance" or any(
        p.startswith("lance://") or p.rstrip("/").endswith(".lance") for p in source.paths
    )
    if source.version and not lance:
        _fail(where, "source.version", "only a Lance table has versions (lance://PATH, or format: lance)")
    if not source.check_ids and not source.id:
        _fail(where, "source.check_ids", "without source.id there are no ids to check: leave it out")


def _check_sink(spec: JobSpec, where: str) -> None:
    scheme, separator, rest = spec.sink.to.partition("://")
    if not separator:
        _fail(where, "sink.to", f"{spec.sink.to!r} does not say what to write: {' or '.join(_SINKS.values())}")
    if scheme not in _SINKS:
        _fail(where, "sink.to", f"unknown kind of output {scheme!r}{nearest(scheme, _SINKS)}")
    folder, _, table = rest.rstrip("/").rpartition("/")
    if not rest.strip("/") or (scheme == "lancedb" and not (folder and table)):
        _fail(where, "sink.to", f"{spec.sink.to!r} is incomplete: {_SINKS[scheme]}")
    if spec.sink.on_existing == "replace":
        if scheme != "lancedb":
            _fail(where, "sink.on_existing", f"replace goes by row id, which only a LanceDB table can do, not {scheme}")
        if not spec.source.id or not spec.source.check_ids:
            _fail(
                where,
                "sink.on_existing",
                "replace needs source.id, the column that names a row, with check_ids left on",
            )


def _check_chunks(spec: JobSpec, where: str) -> None:
    policy, chunked = spec.policy, spec.policy.long_text == "chunk"
    if chunked and spec.steps[0].verb != "encode":
        _fail(where, "policy.long_text", f"only encode can chunk, {spec.steps[0].verb} can truncate or reject")
    for key in ("chunk_tokens", "chunk_overlap"):
        if getattr(policy, key) and not chunked:
            _fail(where, f"policy.{key}", "needs long_text: chunk")
    tokens = policy.chunk_tokens or spec.steps[0].max_tokens
    if tokens and policy.chunk_overlap >= tokens:
        _fail(where, "policy.chunk_overlap", f"{policy.chunk_overlap} must be less than the {tokens} tokens of a chunk")


def _check_columns(spec: JobSpec, where: str, path: str) -> None:
    """No column of the output may be named twice."""
    step, chunked = spec.steps[0], spec.policy.long_text == "chunk"
    taken = {"id", *(("doc_id", "chunk", "start", "end") if chunked else ())}
    kept = spec.source.keep if spec.source.keep is not None else step.text
    for name in set(kept) & (taken - {"id"}):
        _fail(
            where,
            "source.keep" if spec.source.keep is not None else f"{path}.text",
            f"chunks have a column {name!r} of their own",
        )
    result = step.column or DEFAULT_COLUMN[step.verb]
    results = {result, *((f"{result}_scale",) if step.vector_type in ("int8", "binary") else ())}
    for name in sorted(results & (taken | set(kept))):
        _fail(where, f"{path}.column", f"the result's column {name!r} is also a column of the output: choose another")
