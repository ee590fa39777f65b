"""From a spec to a job: everything is checked and resolved here, before any work. Needs no torch.

`draft` writes nothing and is what `lading plan` shows; `start` makes the output and the job's folder, or finds
the ones that are there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from ..config.checkpoint import Checkpoint, locate, resolve
from ..config.errors import ModelError
from ..config.events import tell
from ..config.lora import full_name
from ..config.recipe import Recipe
from ..config.wishes import WISHES
from . import sources
from .manifest import Manifest
from .open_job import Job
from .pace import shard_rows
from .plan import Plan, schema_text
from .provenance import metadata, output_schema, read_columns
from .queries import Queries
from .records import Input, Shard, rows_of
from .sinks import Sink, open_sink
from .spec import JobSpec, PolicySpec, StepSpec, identity, to_dict, validate

log = logging.getLogger(__name__)

JOB_ID_DIGITS = 12


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """A checked job. `shards` and `duplicates` come from the plan of an earlier run where there is one."""

    spec: JobSpec
    id: str
    format: str
    inputs: list[Input]
    source: pa.Schema  # of what is read: id, then the columns asked for
    shards: list[Shard]
    duplicates: dict[int, np.ndarray]
    checkpoint: Checkpoint
    recipe: Recipe
    schema: pa.Schema
    sink: Sink
    manifest: Manifest | None  # of an earlier run of the same job
    queries: Queries | None  # of a score whose queries are not in the source

    @property
    def rows(self) -> int | None:
        """Input rows, where planning can know them without reading everything."""
        return rows_of(self.shards)


def job_id(spec: JobSpec, format: str, inputs: list[Input], queries: list[Input]) -> str:
    """Hash of the spec as written and the snapshot of the source: the same question about the same data."""
    asked: dict[str, Any] = {
        "spec": identity(spec),
        "format": format,
        "inputs": [dataclasses.astuple(one) for one in inputs],
    }
    if queries:
        asked["queries"] = [dataclasses.astuple(one) for one in queries]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:JOB_ID_DIGITS]


def resolve_step(step: StepSpec, spec: JobSpec) -> tuple[Checkpoint, Recipe]:
    """Find the step's checkpoint and settle its recipe. Raises ModelError."""
    checkpoint = locate(step.model, step.revision)
    said = {**_fields(spec.policy), **_fields(step)}
    recipe = resolve(checkpoint, task=step.verb, **{name: said[name] for name in WISHES})
    return checkpoint, recipe


def _fields(section: StepSpec | PolicySpec) -> dict[str, Any]:
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}


# Rows a second where the job will be done; None where nobody knows.
Measured = Callable[[Checkpoint, Recipe], float | None]


def draft(spec: JobSpec, measured: Measured = lambda checkpoint, recipe: None) -> Draft:
    """Check the whole job and plan its shards; writes nothing. `measured` is asked where these are to take so many seconds.

    Raises UsageError with what to change.
    """
    validate(spec)
    format, inputs = sources.snapshot(spec.source)
    source = sources.check_columns(spec.source, format, inputs, read_columns(spec), texts=list(spec.steps[0].text))
    queries = Queries.of(spec)
    if queries is not None:
        queries.check_source(source)
    checkpoint, recipe = resolve_step(spec.steps[0], spec)
    schema = output_schema(spec, source, recipe)
    schema = schema.with_metadata({**(schema.metadata or {}), **metadata(spec, recipe, checkpoint, schema)})
    sink = open_sink(spec.sink.to)
    sink.output.check_places()
    id = job_id(spec, format, inputs, queries.inputs if queries else [])
    manifest = Manifest.find(sink.output, id)
    if manifest is not None:
        _same_recipe(manifest.plan, recipe)
        plan = manifest.plan
        shards, duplicates = plan.shards, plan.duplicates
        return Draft(
            spec, id, format, inputs, source, shards, duplicates, checkpoint, recipe, schema, sink, manifest, queries
        )
    sink.check(id, schema, on_existing=spec.sink.on_existing)
    rows = spec.policy.shard_rows
    if spec.policy.shard_seconds:
        if rate := measured(checkpoint, recipe):
            rows = shard_rows(spec.policy.shard_seconds, rate)
        else:
            tell(log, "pace unknown", recipe=recipe.hash, shard_rows=rows)
    shards, duplicates = sources.plan(spec.source, format, inputs, rows)
    return Draft(spec, id, format, inputs, source, shards, duplicates, checkpoint, recipe, schema, sink, None, queries)


def start(draft: Draft) -> Job:
    """Make the job's folder and the output, or join those that are there. Idempotent, and safe to race.

    Raises TableChanged where the job was finished but its output is no longer what it left.
    """
    manifest = draft.manifest or Manifest.create(draft.sink.output, _plan(draft))
    job = Job.of(manifest, draft.sink, draft.spec)
    job.enter()
    return job


def _plan(draft: Draft) -> Plan:
    step = draft.spec.steps[0]
    model: dict[str, Any] = {
        "name": step.model,
        "folder": str(draft.checkpoint.folder),
        "origin": draft.checkpoint.origin,
    }
    if step.adapter:
        model["adapter"] = full_name(step.adapter)
    return Plan(
        job=draft.id,
        spec=to_dict(draft.spec),
        format=draft.format,
        inputs=draft.inputs,
        shards=draft.shards,
        duplicates=draft.duplicates,
        on_existing=draft.spec.sink.on_existing,
        recipe=draft.recipe.to_dict(),
        model=model,
        source=schema_text(draft.source),
        schema=schema_text(draft.schema),
        created=time.time(),
        queries=draft.queries.inputs if draft.queries else [],
    )


def _same_recipe(plan: Plan, recipe: Recipe) -> None:
    bound = Recipe.from_dict(plan.recipe)
    if bound.hash != recipe.hash:
        now, then = recipe.to_dict(), bound.to_dict()
        changed = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
        raise ModelError(
            f"job {plan.job} began with recipe {bound.hash}, the model now gives {recipe.hash} (changed: {', '.join(changed)}); "
            "put the first checkpoint back to finish the job, or write to another output"
        )
