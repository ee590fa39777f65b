"""A shard that the engine has finished becomes rows, rejects and a receipt, staged and published."""

from __future__ import annotations

import dataclasses
import logging
import time

from ..config.events import tell
from ..pipelines.open_job import Job
from ..pipelines.provenance import count_fields, kept_columns
from ..pipelines.records import Receipt
from .parts import ShardInFlight, covered_ids, finish

log = logging.getLogger(__name__)


def publish(job: Job, shard: ShardInFlight, *, kernel: str, busy: float) -> tuple[Receipt, bool]:
    """Stage the rows, then decide by the marker whether they count. Returns the receipt that counts, and whether it is this
    attempt's. Raises StopJob."""
    work = shard.work
    place = job.attempt(work)
    receipt = Receipt(*place, kernel=kernel, finished=time.time())
    if shard.failure:
        rows = (work.shard.rows or 0) if work.ordinals is None else len(work.ordinals)
        failed = dataclasses.replace(receipt, status="failed", reason=shard.failure, rows_in=rows)
        winner = job.manifest.publish(failed)
        return winner, winner.attempt == receipt.attempt
    replacing = job.manifest.plan.on_existing == "replace"
    replaces = covered_ids(shard, job.source.field("id").type) if replacing else None
    keep, counts = kept_columns(job.spec), [field.name for field in count_fields(job.spec)]
    table, rejects, receipt = finish(shard, receipt, keep=keep, text=job.texts[0], schema=job.schema, counts=counts)
    shard.parts.clear()
    receipt = dataclasses.replace(receipt, busy=round(busy, 4))
    winner = job.publish(place, receipt, table, rejects, replaces)
    ours = winner.attempt == receipt.attempt
    if not ours:
        tell(log, "shard superseded", job=job.id, shard=work.shard.number, generation=work.generation)
    return winner, ours
