"""What the values of a job spec must satisfy: types, choices, and what goes together. Pure; the shape is spec.py's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from ..config.catalogue import POOLINGS
from ..config.columns import OUTPUTS, named_columns
from ..config.errors import SpecError, nearest
from ..config.outputs import token_fields

if TYPE_CHECKING:
    from .spec import JobSpec, SourceSpec, StepSpec

# The verbs, and the keys of a step that only one of them has.
VERBS: dict[str, frozenset[str]] = {
    "encode": frozenset(
        {
            "dims",
            "vector_type",
            "prompt",
            "prompt_text",
            "instruction",
            "pooling",
            "normalize",
            "outputs",
            "top_k",
            "threshold",
            "token_pooling",
        }
    ),
    "score": frozenset({"activation", "template", "instruction", "query"}),
    "extract": frozenset(),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "format": ("parquet", "jsonl", "csv", "lance", "text"),
    "precision": ("float32", "bfloat16", "float16", "int8"),
    "vector_type": ("float32", "float16", "int8", "binary"),
    "activation": ("identity", "sigmoid"),
    "pooling": POOLINGS,
    "on_existing": ("refuse", "append", "replace"),
    "long_text": ("truncate", "chunk", "reject"),
    "truncation_side": ("right", "left"),
}
_NOT_EMPTY = frozenset({"paths", "model", "text", "to"})
_AT_LEAST = {"shard_rows": 1, "token_pooling": 1, "priority": -math.inf}  # every other number may be 0
_SINKS = {"lancedb": "lancedb://FOLDER/TABLE", "parquet": "parquet://FOLDER"}


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # to Python, true is 1


def is_number(value: object) -> bool:
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_strings(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) for one in value)


# By a field's annotation: is this value one, and what to call it.
_TYPES: dict[str, tuple[Callable[[object], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "text"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "bool | None": (lambda value: value is None or isinstance(value, bool), "true or false"),
    "int": (is_int, "a whole number"),
    "float": (is_number, "a number"),
    "int | None": (lambda value: value is None or is_int(value), "a whole number"),
    "tuple[str, ...]": (_is_strings, "a list of texts"),
    "tuple[str, ...] | None": (lambda value: value is None or _is_strings(value), "a list of texts"),
}


def check_rules(spec: JobSpec, where: str) -> None:
    """Raise SpecError, naming `where` and the key, unless every value of a well-shaped spec of one step makes sense."""
    for name in ("source", "sink", "policy", "queue", "queries"):
        _check_values(getattr(spec, name), where, name)
    step = spec.steps[0]
    path = f"steps[0].{step.verb}"
    _check_values(step, where, path)
    _check_step(step, where, path, queries=bool(spec.queries.paths))
    _check_queries(spec, where, path)
    _check_source(spec.source, where)
    _check_sink(spec, where)
    _check_chunks(spec, where)
    _check_columns(spec, where, path)


def fail(where: str, key: str, what: str) -> NoReturn:
    """Every complaint about a spec: the file, the dotted key, what is wrong with it."""
    raise SpecError(f"{where}: {key}: {what}")


def check_known(given: dict[Any, Any], valid: Iterable[str], where: str, path: str) -> None:
    """Fail on the first key that is none of `valid`; `path` is where the mapping stands."""
    for key in given:
        if key not in valid:
            name = f"{path}.{key}" if path else str(key)
            fail(where, name, f"unknown key{nearest(str(key), valid)}")


def show(value: object) -> str:
    """What was found, as the reader of a YAML file would call it."""
    if isinstance(value, bool):
        return f"{str(value).lower()} (in YAML, yes, no, on and off mean that too: quote a name)"
    if isinstance(value, dict):
        return f"the keys {', '.join(map(str, value))}" if value else "no keys"
    return "nothing" if value is None else repr(value)


def _check_values(section: Any, where: str, path: str) -> None:
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{path}.{field.name}"
        fits, wanted = _TYPES[str(field.type)]
        if not fits(value):
            fail(where, key, f"expected {wanted}, found {show(value)}")
        if (
            field.name in _NOT_EMPTY
            and (value or field.default is dataclasses.MISSING)
            and (not value or "" in tuple(value))
        ):
            fail(where, key, "is empty")
        if is_number(value) and value < _AT_LEAST.get(field.name, 0):
            fail(where, key, f"must be at least {_AT_LEAST.get(field.name, 0)}, found {value}")
        choices = _CHOICES.get(field.name, ())
        if choices and value not in (*choices, field.default):
            fail(where, key, f"{value!r} is none of the choices{nearest(value, choices)}")


def _check_queries(spec: JobSpec, where: str, path: str) -> None:
    queries, step = spec.queries, spec.steps[0]
    if not queries.paths:
        for field in dataclasses.fields(queries):
            if getattr(queries, field.name) != field.default:
                fail(where, "queries.paths", "is missing: where the queries are")
    elif step.verb != "score":
        fail(where, "queries", f"only score has queries, not {step.verb}")
    elif step.query:
        fail(where, f"{path}.query", "give either one query for all rows, or queries, a table of them")
    elif not queries.id or not queries.text:
        fail(where, "queries", "id and text name columns, and one is empty")


def _check_step(step: StepSpec, where: str, path: str, *, queries: bool) -> None:
    for verb, own in VERBS.items():
        for field in dataclasses.fields(step):
            if field.name in own - VERBS[step.verb] and getattr(step, field.name) != field.default:
                fail(where, f"{path}.{field.name}", f"only {verb} has this key")
    given = queries or bool(step.query)  # from elsewhere than the source
    wanted = 2 if step.verb == "score" and not given else 1
    if len(step.text) != wanted:
        names = "two columns, like [query, document]" if wanted == 2 else "one column"
        if step.verb == "score" and given:
            names += ", the document's, where the query comes from elsewhere"
        fail(where, f"{path}.text", f"{step.verb} takes {names}, found {len(step.text)}")
    if step.prompt_text and step.prompt != "document":
        fail(
            where,
            f"{path}.prompt_text",
            f"give either prompt_text or a prompt's name, not both (prompt: {step.prompt})",
        )
    for output in step.outputs:
        if output not in OUTPUTS:
            fail(where, f"{path}.outputs", f"{output!r} is none of {', '.join(OUTPUTS)}{nearest(output, OUTPUTS)}")
    if step.vector_type == "binary" and step.dims % 8:
        fail(where, f"{path}.dims", f"binary packs 8 dimensions into a byte, and {step.dims} is no multiple of 8")


def _check_source(source: SourceSpec, where: str) -> None:
    lance = source.format == "lance" or any(
        p.startswith("lance://") or p.rstrip("/").endswith(".lance") for p in source.paths
    )
    if source.version and not lance:
        fail(where, "source.version", "only a Lance table has versions (lance://PATH, or format: lance)")
    if not source.check_ids and not source.id:
        fail(where, "source.check_ids", "without source.id there are no ids to check: leave it out")


def _check_sink(spec: JobSpec, where: str) -> None:
    scheme, separator, rest = spec.sink.to.partition("://")
    if not separator:
        fail(where, "sink.to", f"{spec.sink.to!r} does not say what to write: {' or '.join(_SINKS.values())}")
    if scheme not in _SINKS:
        fail(where, "sink.to", f"unknown kind of output {scheme!r}{nearest(scheme, _SINKS)}")
    folder, _, table = rest.rstrip("/").rpartition("/")
    if not rest.strip("/") or (scheme == "lancedb" and not (folder and table)):
        fail(where, "sink.to", f"{spec.sink.to!r} is incomplete: {_SINKS[scheme]}")
    if spec.sink.on_existing == "replace":
        if scheme != "lancedb":
            fail(where, "sink.on_existing", f"replace goes by row id, which only a LanceDB table can do, not {scheme}")
        if not spec.source.id or not spec.source.check_ids:
            fail(
                where,
                "sink.on_existing",
                "replace needs source.id, the column that names a row, with check_ids left on",
            )


def _check_chunks(spec: JobSpec, where: str) -> None:
    policy, chunked = spec.policy, spec.policy.long_text == "chunk"
    if chunked and spec.steps[0].verb != "encode":
        fail(where, "policy.long_text", f"only encode can chunk, {spec.steps[0].verb} can truncate or reject")
    if policy.truncation_side == "left" and policy.long_text != "truncate":
        fail(where, "policy.truncation_side", "left needs long_text: truncate")
    for key in ("chunk_tokens", "chunk_overlap"):
        if getattr(policy, key) and not chunked:
            fail(where, f"policy.{key}", "needs long_text: chunk")
    tokens = policy.chunk_tokens or spec.steps[0].max_tokens
    if tokens and policy.chunk_overlap > tokens // 2:
        fail(where, "policy.chunk_overlap", f"{policy.chunk_overlap} is more than half of a chunk's {tokens} tokens")


def _check_columns(spec: JobSpec, where: str, path: str) -> None:
    """No column of the output may be named twice."""
    step, keep = spec.steps[0], spec.source.keep
    texts = (spec.queries.key, *step.text) if spec.queries.paths else step.text
    kept, kept_by = (texts, f"{path}.text") if keep is None else (keep, "source.keep")
    own = {"doc_id", "chunk", "start", "end"} if spec.policy.long_text == "chunk" else set[str]()
    for name in sorted(own & set(kept)):
        fail(where, kept_by, f"chunks have a column {name!r} of their own: carry other columns with source.keep")
    if "id" in kept and spec.source.id != "id":
        fail(
            where,
            kept_by,
            "the output's own row id is called 'id': name this column in source.id, or do not carry it (source.keep)",
        )
    # What the model is made for is not known yet; output_schema looks again when it is.
    outputs = [output for output in OUTPUTS if output in step.outputs] or ["dense"]
    columns = named_columns(step.verb, outputs, step.column)
    results = set(columns.values())
    if "dense" in columns and step.vector_type in ("int8", "binary"):
        results.add(f"{columns['dense']}_scale")
    counts = {field.name for field in token_fields(step.column)} if spec.policy.token_columns else set[str]()
    for name in sorted(counts & (own | results | set(kept) | {"id"})):
        fail(
            where,
            "policy.token_columns",
            f"its column {name!r} is also a column of the output: do not carry that one (source.keep), or name the "
            f"result ({path}.column), which these columns are then named after",
        )
    for name in sorted(results & (own | set(kept) | {"id"})):
        fail(where, f"{path}.column", f"the result's column {name!r} is also a column of the output: choose another")
