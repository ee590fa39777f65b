"""The verb that shows what is known of models, compares one with the reference library, and fetches them before they are needed."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, cast

import click

from ..config.logs import redacted
from . import options as opt

if TYPE_CHECKING:
    from ..config.catalogue import Entry
    from ..config.hub import Checkpoint
    from ..config.recipe import Recipe
    from ..schedulers.pools import Pool

TASKS = ("encode", "score", "extract")
MODEL: tuple[opt.Decorator, ...] = (
    click.argument("model", metavar="MODEL", shell_complete=opt.model_names),
    click.option("--revision", metavar="REV", default="", help="Of a hub name.  [default: its main branch]"),
    click.option(
        "--as",
        "known_as",
        metavar="NAME",
        default="",
        shell_complete=opt.model_names,
        help="Its name in the catalogue.  [default: its name on the hub]",
    ),
    click.option("--task", type=click.Choice(TASKS), help="What for.  [default: what the model is for]"),
    click.option(
        "--precision",
        type=click.Choice(("float32", "bfloat16", "float16")),
        default="float32",
        help="What it computes in.  [default: float32]",
    ),
)
HEADINGS = ("model", "task", "outputs", "architecture", "dims", "tokens", "licence", "grade")


@click.group(invoke_without_command=True)
@click.option("--task", metavar="TASK", help="Only those for it.  [default: all]")
@opt.options(opt.JSON)
@click.pass_context
def models(ctx: click.Context, task: str | None, as_json: bool) -> None:
    """List the models of the catalogue; show or verify one, fetch several.

    A model need not be listed to be used: what a checkpoint's own files say is enough, and comes first.
    """
    if ctx.invoked_subcommand:
        return
    from ..config.catalogue import TASKS as KNOWN
    from ..config.catalogue import load
    from ..config.errors import UsageError, nearest

    if task is not None and task not in KNOWN:
        raise UsageError(f"--task: {task!r} is no task{nearest(task, KNOWN)}")
    found = [one for one in load().values() if task in (None, one.task)]
    if as_json:
        click.echo(json.dumps([_listed(one) for one in found]))
        return
    rows = [HEADINGS, *(_cells(one) for one in found)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADINGS))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(one: Entry) -> tuple[str, ...]:
    sizes = (f"{one.dims or ''}", f"{one.max_tokens or ''}")
    return (
        one.name,
        one.task,
        ", ".join(one.outputs),
        one.architecture,
        *sizes,
        one.licence,
        _grade_words(one.grade, one.runs),
    )


def _grade_words(grade: str, runs: bool) -> str:
    return grade if runs else f"{grade}, not run by this release"


def _listed(one: Entry) -> dict[str, Any]:
    fields = ("name", "task", "outputs", "architecture", "dims", "max_tokens", "parameters", "licence", "grade")
    return {name: getattr(one, name) or None for name in fields} | {"runs": one.runs}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """What `show` prints. `recipe`, `hash` and `found` are None of a model that is not on this machine."""

    name: str
    grade: str
    found: str | None  # what was found, and where
    recipe: dict[str, Any] | None
    hash: str | None
    origins: dict[str, str]  # field of the recipe -> where its value came from
    facts: dict[str, Any] | None  # of the catalogue
    parameters: int | None
    memory_bytes: dict[str, int]  # precision -> of the weights
    pool: str | None  # that would take it in the precision asked for
    pool_reason: str  # why none would, else ""


@models.command()
@opt.options(MODEL, opt.JSON)
def show(model: str, revision: str, known_as: str, task: str | None, precision: str, as_json: bool) -> None:
    """Show all that is known of MODEL: a folder, or a name on the hub.

    The recipe it would be run by and where each value came from, its grade, the memory it needs, the pool it would go to. Nothing is
    downloaded: of a name that is not in the hub's cache, the catalogue's facts are shown.
    """
    from ..config import catalogue
    from ..config.checkpoint import locate, resolve_with_origins
    from ..config.errors import ModelError
    from ..config.kinds import verb_for
    from ..config.weights import BYTES, parameters

    checkpoint: Checkpoint | None = None
    recipe: Recipe | None = None
    origins: dict[str, str] = {}
    entry = catalogue.find(known_as or model.partition("@")[0])
    try:
        checkpoint = locate(model, revision, offline=True)
    except ModelError:
        if entry is None:
            raise
    if checkpoint is not None:
        entry = catalogue.of(checkpoint, known_as)
        verb = task or verb_for(checkpoint, entry)
        recipe, origins = resolve_with_origins(checkpoint, task=verb, known_as=known_as, precision=precision)
        count = parameters(checkpoint.folder)
    else:
        count = entry.parameters if entry else 0
    memory = {one: count * size for one, size in BYTES.items()} if count else {}
    pool, reason = _pool(precision, memory.get(precision, 0))
    name = entry.name if entry else checkpoint.name if checkpoint else model
    shown = _Shown(
        name=name,
        grade=_grade(entry, checkpoint, recipe),
        found=checkpoint.describe() if checkpoint else None,
        recipe=recipe.to_dict() if recipe else None,
        hash=recipe.hash if recipe else None,
        origins=origins,
        facts=entry.to_dict() if entry else None,
        parameters=count or None,
        memory_bytes=memory,
        pool=pool.name if pool else None,
        pool_reason=reason,
    )
    click.echo(json.dumps(dataclasses.asdict(shown)) if as_json else "\n".join(_lines(shown, recipe)))


def _grade(entry: Entry | None, checkpoint: Checkpoint | None, recipe: Recipe | None) -> str:
    """Of a folder only what its files show: whose weights are in it is not known."""
    from ..config.catalogue import grade_of

    if entry is not None and (checkpoint is None or checkpoint.origin != "folder"):
        return entry.grade
    if recipe is None:
        return "facts only"
    outputs = {"encode": recipe.outputs, "score": ("score",), "extract": ("entities",)}
    return grade_of(recipe.architecture, outputs[recipe.task])


def _pool(precision: str, weight_bytes: int) -> tuple[Pool | None, str]:
    from ..config.errors import UsageError
    from ..schedulers.pools import load
    from ..schedulers.routing import route

    if not weight_bytes:
        return None, "nobody knows how large it is"
    pools = load()
    try:
        return route(precision, weight_bytes, pools), ""
    except UsageError as error:
        return None, str(error)


def _lines(shown: _Shown, recipe: Recipe | None) -> list[str]:
    facts = shown.facts or {}
    lines = [f"model   {shown.name}", f"grade   {_grade_words(shown.grade, facts.get('runs') is not False)}"]
    if recipe is None:
        lines.append("found   not on this machine: what follows are the catalogue's facts alone")
        hidden = ("name", "grade", "runs", "sources", "notes")
        lines += [f"  {name:<13} {_words(value)}" for name, value in facts.items() if name not in hidden]
    else:
        lines.append(f"found   {shown.found}")
        lines.append(f"recipe  {shown.hash}, {recipe.task}")
        values = {name: _words(cast("object", getattr(recipe, name))) for name in shown.origins}
        width = min(max(map(len, values.values())), 40)
        lines += [f"  {name:<15} {value:<{width}}  {shown.origins[name]}" for name, value in values.items()]
    if shown.memory_bytes:
        sizes = ", ".join(f"{size / 1e6:,.1f} MB in {precision}" for precision, size in shown.memory_bytes.items())
        lines.append(f"memory  {sizes}: the weights of {shown.parameters:,} parameters")
    lines.append(f"pool    {shown.pool or 'none: ' + shown.pool_reason}")
    if facts.get("licence"):
        lines.append(f"licence {facts['licence']}")
    return lines + ([f"notes   {facts['notes']}"] if facts.get("notes") else [])


def _words(value: object) -> str:
    """A value in a line: texts with their spaces shown."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(str(one) for one in cast("list[object]", value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {text!r}" for name, text in cast("dict[str, object]", value).items())
    return repr(value) if isinstance(value, str) and (not value or " " in value) else str(value)


@models.command()
@opt.options(MODEL, opt.PROMPT, opt.OUTPUTS, opt.DEVICE, opt.JSON)
def verify(
    model: str,
    revision: str,
    known_as: str,
    task: str | None,
    precision: str,
    prompt: str | None,
    outputs: tuple[str, ...],
    device: str,
    as_json: bool,
) -> int:
    """Compare MODEL with sentence-transformers, text by text, on its own weights.

    Of a model that treats queries otherwise than documents, --prompt query compares those. A model that is not on this machine is
    downloaded, unless the setting offline is on. Ends with 0 if every result is within the bound, with 3 if one is not.
    """
    from ..config import catalogue
    from ..config.checkpoint import locate, resolve
    from ..config.errors import UsageError
    from ..config.kinds import verb_for
    from ..workers.reference import check_installed
    from ..workers.verify import FAILED, verify

    check_installed()
    checkpoint = locate(model, revision)
    verb = task or verb_for(checkpoint, catalogue.of(checkpoint, known_as))
    if verb != "encode" and (prompt or outputs):
        raise UsageError(f"{'--prompt' if prompt else '--outputs'} is for encode, and {model} is compared for {verb}")
    side = prompt or "document"
    recipe = resolve(checkpoint, task=verb, known_as=known_as, precision=precision, prompt=side, outputs=outputs)
    done = verify(checkpoint, recipe, side=side, device=device)
    click.echo(json.dumps(done.to_dict()) if as_json else "\n".join(done.lines()))
    return 0 if done.passed else FAILED


@models.command()
@click.argument("names", metavar="[MODEL[@REVISION]]...", nargs=-1, shell_complete=opt.model_names)
@click.option("--adapter", "adapters", metavar="NAME", multiple=True, help="A LoRA adapter, likewise; repeat it.")
@click.option("--pool", metavar="POOL", default="", help="Also those that this pool's workers preload (pools.yaml).")
@opt.options(opt.JSON)
def pull(names: tuple[str, ...], adapters: tuple[str, ...], pool: str, as_json: bool) -> int:
    """Fetch models from the hub into its cache, weights too, so that no worker waits for a download.

    What is there already is looked at and left alone, folders too. Nothing is loaded. With --json, one object per line. Ends with 0 if
    all are there, with 2 if one cannot be had as it was named, with 3 if the hub or the disk failed: then the same command goes on.
    """
    from ..config.errors import UsageError
    from ..config.pulling import Wanted
    from ..config.pulling import pull as pull_one
    from ..schedulers.pools import find, load

    wanted = [*(Wanted(name) for name in names), *(Wanted(name, kind="adapter") for name in adapters)]
    if pool:
        preload = find(load(), pool).preload
        wanted += [Wanted(one.model, one.options.revision) for one in preload]
        wanted += [Wanted(one.options.adapter, kind="adapter") for one in preload if one.options.adapter]
        if not wanted and not as_json:
            click.echo(f"pool {pool} preloads no models (pools.yaml)")
    elif not wanted:
        raise UsageError(
            "name models to fetch, or a pool whose preload is fetched: lading models pull MODEL, --pool POOL"
        )
    states: set[str] = set()
    for one in dict.fromkeys(wanted):
        done = pull_one(one)
        states.add(done.state)
        if as_json:
            click.echo(json.dumps(done.to_dict()))
        elif done.reason:
            click.echo(f"lading: {redacted(done.reason)}", err=True)
        else:
            click.echo(f"{done.model}: {done.state}, {(done.bytes or 0) / 1e6:,.1f} MB in {done.folder}")
    return 3 if "unfinished" in states else 2 if "refused" in states else 0


VERBS = (models,)
