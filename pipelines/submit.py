"""Submitting a job: the same checks, plan and output as a run, then an entry in the registry and its first shards in a queue."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

from ..config.checkpoint import Checkpoint
from ..config.errors import UsageError
from ..config.events import tell
from ..config.recipe import Recipe
from ..config.settings import Settings
from ..config.weights import weight_bytes
from ..schedulers import pools as pool_files
from ..schedulers.connection import Broker
from ..schedulers.pools import Pool, Pools
from ..schedulers.routing import route
from ..schedulers.sweeping import look_anew
from .job import Draft, Measured, start
from .pace import rows_per_s
from .registry import Entry, Registry
from .spec import JobSpec
from .strikes import Strikes
from .sweep import Sweeper

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Queues:
    """What submitting and steering jobs need: the broker, the registry and the pools of this installation."""

    broker: Broker
    registry: Registry
    pools: Pools
    lease_s: float

    @classmethod
    def of(cls, settings: Settings) -> Queues:
        """As the settings and pools.yaml say. No connection is made yet. Raises UsageError."""
        broker = Broker.connect(settings.broker_url)
        return cls(broker, Registry(settings.jobs), pool_files.load(), settings.lease_s)

    def measured(self, spec: JobSpec, device: str = "") -> Measured:
        """For `draft`: how fast the job's rows will go, by earlier jobs of its recipe on its pool."""

        def rate(checkpoint: Checkpoint, recipe: Recipe) -> float | None:
            return rows_per_s(self.registry, self._pool(spec, checkpoint, recipe, device).name, recipe.hash)

        return rate

    def pool(self, draft: Draft, device: str = "") -> Pool:
        """Whose workers do it. Raises UsageError where no pool can."""
        return self._pool(draft.spec, draft.checkpoint, draft.recipe, device)

    def _pool(self, spec: JobSpec, checkpoint: Checkpoint, recipe: Recipe, device: str) -> Pool:
        weights = weight_bytes(checkpoint.folder, recipe.precision)
        return route(recipe.precision, weights, self.pools, spec.queue.pool, device)

    def sweeper(self) -> Sweeper:
        return Sweeper(self.broker, self.registry, self.pools, lease_s=self.lease_s)


@dataclasses.dataclass(frozen=True, slots=True)
class Submitted:
    """Where a submitted job is."""

    job: str
    output: str
    manifest: str  # folder of its plan and markers
    pool: str
    priority: int
    state: str  # submitted | nothing to do: it was finished before
    shards: int
    sent: int  # of them to the queue, at once; the rest follow as there is room

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def submit(draft: Draft, queues: Queues, *, device: str = "") -> Submitted:
    """Register a job, or one that is there already once more, and send what there is room for.

    `device`: cpu or cuda where only such a pool will do. Raises UsageError, before anything is written, where no pool can do it, and
    BrokerError where the broker does not answer; then the same call goes on.
    """
    spec, registry = draft.spec, queues.registry
    pool = queues.pool(draft, device)
    queues.broker.check()
    job = start(draft)
    folder = job.manifest.folder.url
    if job.manifest.closed() is not None:
        registry.close(job.id)
        return _submitted(draft, folder, pool.name, "nothing to do", 0)
    if job.cancelled():
        raise UsageError(
            f"job {job.id} was cancelled; to do it after all, remove {folder}/cancelled.json and submit it again"
        )
    if draft.manifest is not None:  # again: as for a local run, the same command tries again what failed
        Strikes(job.manifest.folder).forgive_loading(job.recipe.hash)
        job.manifest.reopen_failed()
    entry = Entry(
        job=job.id,
        output=job.sink.output.url,
        pool=pool.name,
        recipe=draft.recipe.hash,
        priority=spec.queue.priority,
        shards=len(job.manifest.plan.shards),
        created=time.time(),
        max_rejects=spec.policy.max_rejects,
        weights=draft.recipe.weights,
        op=draft.recipe.task,
    )
    registry.add(entry)
    if draft.manifest is not None:
        look_anew(queues.broker)
    sent = queues.sweeper().admit(entry)
    tell(log, "job submitted", job=job.id, pool=pool.name, shards=entry.shards, sent=sent)
    return _submitted(draft, folder, pool.name, "submitted", sent)


def _submitted(draft: Draft, folder: str, pool: str, state: str, sent: int) -> Submitted:
    output, priority = str(draft.sink.output), draft.spec.queue.priority
    return Submitted(draft.id, output, folder, pool, priority, state, len(draft.shards), sent)
