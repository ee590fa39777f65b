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
    from ..config.settings import Settings
    from ..pipelines.spec import JobSpec

Decorator = Callable[[Any], Any]

FORMATS = ("parquet", "jsonl", "csv", "lance", "text")
COUNT = click.IntRange(min=1)
SECONDS = click.FloatRange(min=0)


def _choice(*words: str) -> click.Choice[str]:
    return click.Choice(words)


def model_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """For the shell's completion: names of the catalogue that begin so, or whose part after the owner does."""
    from ..config.catalogue import load
    from ..config.errors import UsageError

    typed = incomplete.lower()
    try:
        entries = load()
    except (
        UsageError
    ):  # of a broken models.yaml the command itself will tell: a message here would end up in the typed line
        return []
    return [
        one.name for key, one in entries.items() if key.startswith(typed) or key.partition("/")[2].startswith(typed)
    ]


def with_metrics(settings: Settings, port: int | None, bind: str | None) -> Settings:
    """The settings with what METRICS were given."""
    given: dict[str, Any] = {"metrics_port": port, "metrics_bind": bind}
    return dataclasses.replace(settings, **{name: value for name, value in given.items() if value is not None})


def _names(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...]:
    """dense,sparse -> both; nothing where the option is left out."""
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


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
    click.option(
        "--shard-seconds",
        metavar="S",
        type=SECONDS,
        help="As many rows as take a worker about so long, where an earlier job of the recipe was measured.  [default: --shard-rows]",
    ),
)

MODEL: tuple[Decorator, ...] = (
    click.option(
        "--model",
        metavar="MODEL",
        required=True,
        shell_complete=model_names,
        help="A folder, or a name in the hub's cache or on the hub (name@revision).",
    ),
    click.option("--revision", metavar="REV", help="Of a hub name."),
    click.option(
        "--as",
        "known_as",
        metavar="NAME",
        shell_complete=model_names,
        help="The model's name in the catalogue (lading models), for what its files do not say.  [default: its name on the hub]",
    ),
    click.option("--adapter", metavar="NAME", help="A LoRA adapter on it: a folder, or NAME@REV on the hub."),
    click.option("--max-tokens", metavar="N", type=COUNT, help="Per text.  [default: what the checkpoint says]"),
    click.option(
        "--column",
        metavar="COL",
        help="Name of the result column.  [default: vector, sparse, multi_vector, score or entities]",
    ),
)

PROMPT: tuple[Decorator, ...] = (
    click.option(
        "--prompt",
        metavar="NAME",
        help="document, query, none, or another of the checkpoint's prompts.  [default: document]",
    ),
)

ENCODE: tuple[Decorator, ...] = (
    *PROMPT,
    click.option("--prompt-text", metavar="TEXT", help="A literal prompt instead."),
    click.option(
        "--pooling",
        type=_choice("mean", "cls", "last", "max", "mean_sqrt_len", "weighted_mean"),
        help="How token vectors become one.  [default: what the checkpoint says]",
    ),
    click.option(
        "--normalize/--no-normalize",
        default=None,
        help="Whether vectors have length 1.  [default: what the checkpoint says]",
    ),
)

INSTRUCTION: tuple[Decorator, ...] = (
    click.option(
        "--instruction", metavar="TEXT", help="What the prompt says of the task.  [default: the checkpoint's own]"
    ),
)

ACTIVATION: tuple[Decorator, ...] = (
    click.option(
        "--activation", type=_choice("identity", "sigmoid"), help="Over the score.  [default: what the checkpoint says]"
    ),
    click.option(
        "--template",
        metavar="NAME",
        help="How a language model is asked: qwen3, mxbai-v2, bge-gemma.  [default: by the checkpoint]",
    ),
    click.option("--instruction", metavar="TEXT", help="What relevance means, for a language model."),
)

# Queries that are not in the source: one for all rows, or a table that rows refer to.
QUERIES: tuple[Decorator, ...] = (
    click.option(
        "--query", metavar="TEXT", help="One query for all rows; --text then names the document's column alone."
    ),
    click.option("--queries", metavar="PATH", multiple=True, help="A table of queries that rows refer to; repeat it."),
    click.option("--queries-id", metavar="COL", help="Its column that names a query.  [default: qid]"),
    click.option("--queries-text", metavar="COL", help="Its column of texts.  [default: text]"),
    click.option(
        "--queries-by",
        metavar="COL",
        help="The source's column that names the row's query.  [default: as --queries-id]",
    ),
)


def _long_text(*choices: str) -> tuple[Decorator, ...]:
    return (
        click.option("--long-text", type=_choice(*choices), help="What to do with long texts.  [default: truncate]"),
        click.option(
            "--truncation-side",
            type=_choice("right", "left"),
            help="The end of a long text that is cut off.  [default: what the checkpoint says, else right]",
        ),
    )


LONG_TEXT: tuple[Decorator, ...] = _long_text("truncate", "reject")
CHUNKS: tuple[Decorator, ...] = (
    *_long_text("truncate", "chunk", "reject"),
    click.option("--chunk-tokens", metavar="N", type=COUNT, help="Tokens per chunk.  [default: max-tokens]"),
    click.option(
        "--chunk-overlap",
        metavar="N",
        type=click.IntRange(min=0),
        help="Tokens that neighbouring chunks share.  [default: 0]",
    ),
)

COUNTS: tuple[Decorator, ...] = (
    click.option(
        "--token-columns",
        is_flag=True,
        default=None,
        help="Also store each row's number of tokens, and whether it was truncated.",
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

OUTPUTS: tuple[Decorator, ...] = (
    click.option(
        "--outputs",
        metavar="NAMES",
        callback=_names,
        help="dense, sparse, multi_vector, or several: dense,sparse.  [default: what the model is made for]",
    ),
)

VECTOR: tuple[Decorator, ...] = (
    *OUTPUTS,
    click.option("--top-k", metavar="N", type=COUNT, help="sparse: the largest weights only.  [default: all]"),
    click.option(
        "--threshold", metavar="X", type=click.FloatRange(min=0), help="sparse: weights above this only.  [default: 0]"
    ),
    click.option(
        "--token-pooling",
        metavar="N",
        type=COUNT,
        help="multi_vector: tokens joined into one vector for so many.  [default: 1]",
    ),
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

METRICS: tuple[Decorator, ...] = (
    click.option(
        "--metrics-port",
        metavar="PORT",
        type=click.IntRange(0, 65535),
        help="Serve /metrics, /healthz and /readyz there; further processes on the ports after it.  [default: LADING_METRICS_PORT, else none]",
    ),
    click.option(
        "--metrics-bind",
        metavar="ADDRESS",
        help="The address for that.  [default: LADING_METRICS_BIND, else 127.0.0.1]",
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
    from ..pipelines.spec import JobSpec, PolicySpec, QueriesSpec, QueueSpec, SinkSpec, SourceSpec, StepSpec

    step = StepSpec(verb=verb, **_fields(StepSpec, given))
    queries = {
        "paths" if name == "queries" else name.removeprefix("queries_"): value
        for name, value in given.items()
        if name.startswith("queries")
    }
    return JobSpec(
        source=SourceSpec(**_fields(SourceSpec, given)),
        steps=(step,),
        sink=SinkSpec(**_fields(SinkSpec, given)),
        policy=PolicySpec(**_fields(PolicySpec, given)),
        queue=QueueSpec(**_fields(QueueSpec, given)),
        queries=QueriesSpec(**_fields(QueriesSpec, queries)),
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
