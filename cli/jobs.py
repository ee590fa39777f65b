"""The verbs that run a job (encode, score, extract, run) and the one that only shows it (plan)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ..config.words import counted
from . import options as opt
from .interrupt import orderly_stop
from .progress import reporting

if TYPE_CHECKING:
    from ..pipelines.spec import JobSpec

DRY_RUN: tuple[opt.Decorator, ...] = (
    click.option("--dry-run", is_flag=True, help="Show what would run, as lading plan does; write nothing."),
)
SUBMIT: tuple[opt.Decorator, ...] = (
    click.option("--submit", is_flag=True, help="Queue the job for a pool's workers instead of running it here."),
)
ENDING = (*opt.RUN, *DRY_RUN, *SUBMIT, *opt.QUEUE, *opt.JSON, *opt.QUIET)


@click.command()
@opt.options(
    opt.SOURCE,
    opt.text(of="Column to embed.", default="text"),
    opt.MODEL,
    opt.ENCODE,
    opt.INSTRUCTION,
    opt.VECTOR,
    opt.CHUNKS,
    opt.COUNTS,
    opt.SINK,
    opt.LIMIT,
    ENDING,
)
def encode(**given: Any) -> int:
    """Embed texts: one vector per row, or per chunk."""
    return _quick("encode", given)


@click.command()
@opt.options(
    opt.SOURCE,
    opt.text(
        of="One column of the pair; give it twice: query, then document. Once, if the query is not in the source."
    ),
    opt.QUERIES,
    opt.MODEL,
    opt.ACTIVATION,
    opt.LONG_TEXT,
    opt.COUNTS,
    opt.SINK,
    opt.LIMIT,
    ENDING,
)
def score(**given: Any) -> int:
    """Score pairs of texts with a reranker: one float per row."""
    return _quick("score", given)


@click.command()
@opt.options(
    opt.SOURCE,
    opt.text(of="Column to read.", default="text"),
    opt.MODEL,
    opt.LONG_TEXT,
    opt.COUNTS,
    opt.SINK,
    opt.LIMIT,
    ENDING,
)
def extract(**given: Any) -> int:
    """Find entities with a token classifier.

    The result column is a list of (text, label, score, start, end), character offsets, per row.
    """
    return _quick("extract", given)


@click.command()
@click.argument("job", metavar="JOB.yaml", type=click.Path(dir_okay=False))
@opt.options(opt.LIMIT, opt.VECTOR, ENDING)
def run(job: str, **given: Any) -> int:
    """Run the job that a YAML file declares. The same command resumes it."""
    return _carry_out(declared(job, given), given)


@click.command()
@click.argument("job", metavar="JOB.yaml", type=click.Path(dir_okay=False))
@opt.options(opt.LIMIT, opt.VECTOR, opt.JSON)
def plan(job: str, **given: Any) -> int:
    """Show what a job would do; writes nothing.

    Checks all that run checks, then prints rows, shards, sampled tokens, bytes out and where the model came from.
    """
    return _show(declared(job, given), as_json=given["as_json"])


VERBS = (encode, score, extract, run, plan)


def _quick(verb: str, given: dict[str, Any]) -> int:
    return _carry_out(opt.quick_spec(verb, given), given)


def declared(path: str, given: dict[str, Any]) -> JobSpec:
    from ..pipelines.spec import load

    return opt.override(load(path), given)


def _carry_out(spec: JobSpec, given: dict[str, Any]) -> int:
    """Check, run and sum up. The summary goes to standard output, everything on the way to standard error."""
    as_json, quiet = given["as_json"], given["quiet"]
    if given["dry_run"]:
        return _show(spec, as_json=as_json)
    if given["submit"]:
        return enqueue(spec, given)
    from ..pipelines.job import draft

    drafted = draft(spec)  # a wrong spec is refused before torch is loaded
    if not quiet:
        click.echo(f"model: {drafted.checkpoint.describe()}", err=True)
    from ..workers.run import run as run_job

    with orderly_stop() as stop, reporting(quiet=quiet) as on_progress:
        summary = run_job(
            drafted,
            device=given["device"],
            batch_tokens=given["batch_tokens"] or 0,
            threads=given["threads"] or 0,
            stop=stop,
            on_progress=on_progress,
        )
    if as_json:
        click.echo(json.dumps(summary.to_dict()))
    elif not quiet or summary.exit_code:
        click.echo("\n".join(summary.lines()), err=bool(quiet))
    return summary.exit_code


def enqueue(spec: JobSpec, given: dict[str, Any]) -> int:
    """Check, submit and say where the job is."""
    from ..config.errors import UsageError
    from ..config.settings import load
    from ..pipelines.job import draft
    from ..pipelines.submit import Queues, submit

    for name in ("batch_tokens", "threads"):
        if given.get(name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for a run here; the workers of a pool have theirs in pools.yaml"
            )
    device = "" if given["device"] == "auto" else given["device"].partition(":")[0]
    queues = Queues.of(load())
    done = submit(draft(spec, queues.measured(spec, device)), queues, device=device)
    if given["as_json"]:
        click.echo(json.dumps(done.to_dict()))
    elif done.state == "nothing to do":
        click.echo(f"nothing to do: job {done.job} is finished, in {done.output}")
    elif not given["quiet"]:
        sent = counted(done.sent, "shard", of=done.shards)
        click.echo(f"submitted: job {done.job}, {sent} sent to pool {done.pool}\n  manifest: {done.manifest}")
        click.echo(f"  lading watch {done.job}", err=True)
    return 0


def _show(spec: JobSpec, *, as_json: bool) -> int:
    from ..config.settings import load
    from ..pipelines.job import draft
    from ..pipelines.submit import Queues
    from ..workers.estimate import estimate

    estimated = estimate(draft(spec, Queues.of(load()).measured(spec)) if spec.policy.shard_seconds else draft(spec))
    click.echo(json.dumps(estimated.to_dict()) if as_json else "\n".join(estimated.lines()))
    return 0
