"""What else a pool's workers can be asked for, over its control queue and as plain Celery tasks: tidy an output, submit a job.

Arguments and results are plain JSON. Whoever may send them is trusted with what lies under the worker's roots (LADING_ROOTS),
and with no more. Each may run twice, as Celery delivers again what a dead worker began; both are harmless then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..config import roots
from ..config.errors import SpecError, UsageError
from ..config.settings import load as load_settings

if TYPE_CHECKING:
    from ..pipelines.job import Draft
    from ..pipelines.spec import JobSpec


def optimize(output: str) -> dict[str, Any]:
    """Compact and index an output, as `lading optimize --json`. Raises UsageError."""
    from ..pipelines.optimize import optimize as optimize_output

    allowed = roots.parse(load_settings().roots)
    _check_output(output, allowed)
    return optimize_output(output).to_dict()


def submit(job: dict[str, Any], device: str = "") -> dict[str, Any]:
    """Queue the job that a job file's content spells out, as `lading submit --json`. Raises UsageError, BrokerError.

    `device`: cpu or cuda where only such a pool will do.
    """
    from ..pipelines.job import draft
    from ..pipelines.spec import from_dict
    from ..pipelines.submit import Queues
    from ..pipelines.submit import submit as submit_job

    if not isinstance(job, dict):  # pyright: ignore[reportUnnecessaryIsInstance]  a message may hold anything
        raise SpecError(f"lading.submit: job: expected the keys of a job file, found {type(job).__name__}")
    settings = load_settings()
    allowed = roots.parse(settings.roots)
    spec = from_dict(job, where="lading.submit")
    _check_named(spec, allowed)
    queues = Queues.of(settings)
    drafted = draft(spec, queues.measured(spec, device))
    _check_found(drafted, allowed)
    return submit_job(drafted, queues, device=device).to_dict()


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"lading.optimize": optimize, "lading.submit": submit}


def _check_named(spec: JobSpec, allowed: Sequence[str]) -> None:
    """Before anything is looked at: also what is not there is none of the sender's business."""
    for path in spec.source.paths + spec.queries.paths:
        roots.check_under(path.removeprefix("lance://"), allowed, "the source")
    for step in spec.steps:
        if os.path.exists(os.path.expanduser(step.model)):
            roots.check_under(step.model, allowed, "the model's folder")
        if step.adapter and os.path.exists(os.path.expanduser(step.adapter)):
            roots.check_under(step.adapter, allowed, "the adapter's folder")
    _check_output(spec.sink.to, allowed)


def _check_found(drafted: Draft, allowed: Sequence[str]) -> None:
    """What globs and folders came to: a symbolic link may lead out of a root."""
    for one in drafted.inputs + (drafted.queries.inputs if drafted.queries else []):
        roots.check_under(one.path, allowed, "the source")


def _check_output(named: str, allowed: Sequence[str]) -> None:
    """`named`: a sink's URL, or the bare path of an output."""
    from ..pipelines.output import KINDS, find_output, output_paths

    if not isinstance(named, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"expected an output's URL or path, found {type(named).__name__}")
    if named.partition("://")[0] in KINDS:
        found = output_paths(named)
    else:
        roots.check_under(named, allowed, "the output")
        found = find_output(named)
    for place in (found.data, found.manifest):
        roots.check_under(place, allowed, "the output")
