"""The options of the verbs, and the way from what was typed to a JobSpec.

An option's destination is the name of the spec's field, and an option left out leaves the field to the spec: defaults
live in `pipelines/spec.py` alone (the help repeats them; a test compares).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..pipelines.spec import JobSpec

Decorator = Callable[[Any], Any]

FORMATS = ("parquet", "jsonl", "csv", "lance", "text")
COUNT = click.IntRange(min=1)


def _choice(*words: str) -> click.Choice[str]:
    return click.Choice(words)


SOURCE: tuple[Decorator, ...] = (
    click.argument("paths", metavar="SOURCE...", nargs=-1, required=True),
    click.option("--format", type=_choice(*FORMATS), help="What the sources are.  [default: by their endings]"),
    click.option(
        "--id", metavar="COL", help="Column that names a row.  [default: a hash of path, position and content]"
    ),
    click.option(
        "--keep", metavar="COL", multiple=True, help="Column to carry through; repeat it.  [default: the text columns]"
    ),
    click.option(
        "--check-ids/--no-check-ids", default=None, help="Look for duplicate ids before the work.  [default: check-ids]"
    ),
    click.option(
        "--shard-rows", metavar="N", type=COUNT, help="Rows that are committed and retried together.  [default: 4096]"
    ),
)

MODEL: tuple[Decorator, ...] = (
    click.option(
        "--model", metavar="MODEL", required=True, help="A folder, or a name in the hub's cache or on the hub."
    ),
    click.option("--revision", metavar="REV", help="Of a hub name."),
    click.option("--adapter", metavar="NAME", help="A LoRA adapter on it: a folder, or NAME@REV on the hub."),
    click.option("--max-tokens", metavar="N", type=COUNT, help="Per text.  [default: what the checkpoint says]"),
    click.option("--column", metavar="COL", help="Name of the result column.  [default: vector, score or entities]"),
)

ENCODE: tuple[Decorator, ...] = (
    click.option(
        "--prompt",
        metavar="NAME",
        help="document, query, none, or another of the checkpoint's prompts.  [default: document]",
    ),
    click.option("--prompt-text", metavar="TEXT", help="A literal prompt instead."),
)

ACTIVATION: tuple[Decorator, ...] = (
    click.option(
        "--activation", type=_choice("identity", "sigmoid"), help="Over the score.  [default: what the checkpoint says]"
    ),
)


def _long_text(*choices: str) -> Decorator:
    return click.option("--long-text", type=_choice(*choices), help="What to do with long texts.  [default: truncate]")


LONG_TEXT: tuple[Decorator, ...] = (_long_text("truncate", "reject"),)
CHUNKS: tuple[Decorator, ...] = (
    _long_text("truncate", "chunk", "reject"),
    click.option("--chunk-tokens", metavar="N", type=COUNT, help="Tokens per chunk.  [default: max-tokens]"),
    click.option(
        "--chunk-overlap",
        metavar="N",
        type=click.IntRange(min=0),
        help="Tokens that neighbouring chunks share.  [default: 0]",
    ),
)

SINK: tuple[Decorator, ...] = (
    click.option("--to", metavar="URL", required=True, help="lancedb://FOLDER/TABLE or parquet://FOLDER."),
    click.option(
        "--max-rejects",
        metavar="N",
        type=click.IntRange(min=0),
        help="Stop above this many rejected rows.  [default: no limit]",
    ),
)

# Those that `run` and `plan` take too, over what the file says.
LIMIT: tuple[Decorator, ...] = (
    click.option("--limit", metavar="N", type=COUNT, help="Only the first N rows, for a try.  [default: all]"),
    click.option(
        "--on-existing",
        type=_choice("refuse", "append", "replace"),
        help="When another job made the output.  [default: refuse]",
    ),
    click.option(
        "--precision",
        type=_choice("float32", "bfloat16", "float16", "int8"),
        help="What the model computes in.  [default: float32]",
    ),
)

VECTOR: tuple[Decorator, ...] = (
    click.option(
        "--dims", metavar="N", type=COUNT, help="Length of the vectors (Matryoshka).  [default: the model's own]"
    ),
    click.option(
        "--vector-type",
        type=_choice("float32", "float16", "int8", "binary"),
        help="What is stored.  [default: float32]",
    ),
)

DEVICE: tuple[Decorator, ...] = (
    click.option("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or cuda:1.  [default: auto]"),
)

RUN: tuple[Decorator, ...] = (
    *DEVICE,
    click.option(
        "--batch-tokens",
        metavar="N",
        type=COUNT,
        help="Tokens the device takes at once.  [default: by the device]",
    ),
    click.option("--threads", metavar="N", type=COUNT, help="CPU threads of the model.  [default: all cores]"),
)

# Of a job that is submitted.
QUEUE: tuple[Decorator, ...] = (
    click.option(
        "--pool",
        metavar="NAME",
        help="Whose workers do it (pools.yaml).  [default: the smallest that can hold the model]",
    ),
    click.option(
        "--priority", metavar="N", type=int, help="Higher ones go first; equal ones share the pool.  [default: 0]"
    ),
)

JSON: tuple[Decorator, ...] = (click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts."),)
QUIET: tuple[Decorator, ...] = (
    click.option("-q", "--quiet", is_flag=True, help="Neither progress nor summary; errors still come."),
)


def options(*groups: tuple[Decorator, ...]) -> Decorator:
    """One decorator from many, in the order in which the help shows them."""

    def decorate(function: Any) -> Any:
        for one in reversed([one for group in groups for one in group]):
            function = one(function)
        return function

    return decorate


def text(*, of: str, default: str = "") -> tuple[Decorator, ...]:
    """The option that names the text column, or twice, the columns of a pair."""
    said = f"{of}  [default: {default}]" if default else of
    values = [default] if default else None
    return (click.option("--text", metavar="COL", multiple=True, required=not default, default=values, help=said),)


def quick_spec(verb: str, given: Mapping[str, Any]) -> JobSpec:
    """The job that a quick verb's options describe. `given` holds the options by field name."""
    from ..pipelines.spec import JobSpec, PolicySpec, QueueSpec, SinkSpec, SourceSpec, StepSpec

    step = StepSpec(verb=verb, **_fields(StepSpec, given))
    return JobSpec(
        source=SourceSpec(**_fields(SourceSpec, given)),
        steps=(step,),
        sink=SinkSpec(**_fields(SinkSpec, given)),
        policy=PolicySpec(**_fields(PolicySpec, given)),
        queue=QueueSpec(**_fields(QueueSpec, given)),
    )


def override(spec: JobSpec, given: Mapping[str, Any]) -> JobSpec:
    """The same job with the options that were given in place of what its file says."""
    from ..pipelines.spec import QueueSpec, SinkSpec, SourceSpec, StepSpec

    return dataclasses.replace(
        spec,
        source=dataclasses.replace(spec.source, **_fields(SourceSpec, given)),
        steps=tuple(dataclasses.replace(step, **_fields(StepSpec, given)) for step in spec.steps),
        sink=dataclasses.replace(spec.sink, **_fields(SinkSpec, given)),
        queue=dataclasses.replace(spec.queue, **_fields(QueueSpec, given)),
    )


def _fields(part: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given options that are fields of `part`; what was left out (None, or nothing repeated) is not given."""
    names = {field.name for field in dataclasses.fields(part)}
    return {name: value for name, value in given.items() if name in names and value not in (None, ())}
