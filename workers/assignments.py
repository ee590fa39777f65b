"""From a leased message to a shard that this worker can do: whose job it is, whether it is still to be done, and with which model.

Owns what the worker knows of jobs. A message names a job by its id alone; where that lies is looked up in the registry that this
worker trusts.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator

from ..adapters import Adapter
from ..config.errors import BadMessage, BrokerError, LadingError, ModelError, ShardError, StopJob, UsageError
from ..config.events import tell
from ..config.failpoints import failpoint
from ..config.lora import locate_adapter
from ..pipelines.job import resolve_step
from ..pipelines.manifest import Work
from ..pipelines.open_job import Job
from ..pipelines.records import Receipt, Rows
from ..pipelines.registry import Registry, UnknownJob
from ..pipelines.spec import StepSpec
from ..pipelines.strikes import BEGUN, DEATHS, READING, Strikes, Struck
from ..schedulers.messages import ShardPointer, decode
from ..schedulers.queues import Lease, Queue
from .leases import Leases
from .models import called
from .residents import Residents

log = logging.getLogger(__name__)

LOOK_S = 30.0  # between two looks at the registry for what was submitted anew
MOST_OPEN = 64  # jobs that are remembered; one that is forgotten is opened again when a message names it


@dataclasses.dataclass(slots=True)
class OpenJob:
    """A job that this worker has messages of."""

    job: Job  # for the thread that writes
    # The same, for the thread that folds: a sink remembers what it saw of its table, each in its own order.
    folding: Job
    strikes: Strikes
    residents: Residents
    looked: float = 0.0  # at its entry, by this machine's clock
    paused_until: float = 0.0  # the same; no shard of it is begun before

    @property
    def paused(self) -> bool:
        return time.monotonic() < self.paused_until

    def pause(self, seconds: float) -> None:
        """What it needs fails (a full disk, a table that is gone): leave it alone for a while, or its shards run for nothing."""
        self.paused_until = time.monotonic() + seconds

    def over(self, registry: Registry) -> bool:
        """Whether nothing more of the job is to be done, as far as anybody has said by now."""
        if self.job.cancelled() or self.job.manifest.closed() is not None:
            return True
        if time.monotonic() - self.looked > LOOK_S:
            self._look(registry)
        if not self.job.too_many(self.folding.rejected):
            return False
        self._look(registry)  # the limit may have been raised, and rejects be retried
        self.folding.rejected = self.folding.manifest.totals().rejected
        return bool(self.job.too_many(self.folding.rejected))

    def _look(self, registry: Registry) -> None:
        """At what its last submission says of its limits."""
        if (entry := registry.get(self.job.id)) is not None:
            for one in (self.job, self.folding):
                one.spec = entry.limited(one.spec)
        self.looked = time.monotonic()

    def adapter(self) -> Adapter:
        """Raises ShardError where this worker cannot have the model, or processes died again and again that loaded it; NotNow."""
        recipe = self.job.recipe
        try:
            if (found := self.residents.at_hand(recipe)) is not None:
                return found
            if self._deaths_while_loading() >= DEATHS:
                raise ShardError(
                    f"{DEATHS} processes died while they loaded the model of recipe {recipe.hash}; see why, then lading retry {self.job.id}"
                )
            step = self._step()
            checkpoint, ours = resolve_step(step, self.job.spec)
            if ours.hash != recipe.hash:
                raise ShardError(
                    f"the job's recipe is {recipe.hash}, the checkpoint that this worker finds gives {ours.hash}: put the same one there"
                )
            name = called(self.job.manifest.plan.model)
            with self.strikes.loading(recipe.hash):
                adapter = self.residents.get(recipe, checkpoint.folder, locate_adapter(step.adapter), name=name)
                self.residents.ready(recipe, patient=False)
            # It can be loaded: who died of something else meanwhile must not add up over the days of a long job.
            self.strikes.forgive_loading(recipe.hash)
            return adapter
        except ModelError as error:
            raise ShardError(str(error)) from error

    def _deaths_while_loading(self) -> int:
        try:
            return self.strikes.deaths_while_loading(self.job.recipe.hash)
        except (StopJob, BrokerError) as error:  # as with all notes: no reason to stop
            tell(log, "notes unreadable", job=self.job.id, why=error)
            return 0

    def _step(self) -> StepSpec:
        """With the folders of the model and its adapter by their whole paths: the spec may have it relative to where the job was submitted."""
        step, model = self.job.spec.steps[0], self.job.manifest.plan.model
        step = dataclasses.replace(step, adapter=model.get("adapter", ""))
        return dataclasses.replace(step, model=model["folder"]) if model["origin"] == "folder" else step


@dataclasses.dataclass(slots=True)
class Assignment:
    """A shard to do, with the lease on its message. See parts.Task."""

    lease: Lease
    of: OpenJob
    work: Work
    struck: Struck
    beat: Callable[[], None]
    waited_s: float | None = None  # from being sent to being taken up, where the message says when it was sent
    _adapter: Adapter | None = None

    @property
    def place(self) -> tuple[int, int]:
        return self.work.shard.number, self.work.generation

    @property
    def named(self) -> dict[str, object]:
        """For logs."""
        shard, generation = self.place
        model = self.of.job.manifest.plan.model["name"]
        return {"job": self.of.job.id, "shard": shard, "generation": generation, "model": model}

    @property
    def texts(self) -> list[str]:
        return self.of.job.texts

    @property
    def at_hand(self) -> bool:
        return self._adapter is not None or self.of.residents.at_hand(self.of.job.recipe) is not None

    @property
    def adapter(self) -> Adapter:
        """The same one for all of the shard, wherever its weights are."""
        if self._adapter is None:
            self._adapter = self.of.adapter()
        return self._adapter

    def read(self) -> Iterator[Rows]:
        """The rows, noted while they are read."""
        with self.of.strikes.noted(*self.place, READING):
            try:
                for rows in self.of.job.read(self.work):
                    self.beat()
                    yield rows
            except UsageError as error:
                raise ShardError(str(error)) from error

    def begin(self) -> None:
        """The first of the rows goes to the device."""
        self.of.strikes.note(*self.place, BEGUN)
        failpoint("strike.noted")
        tell(log, "shard begun", **self.named)

    def published(self, receipt: Receipt) -> None:
        """It has its marker: this one."""
        if receipt.status == "failed":
            tell(log, "shard failed", **self.named, why=receipt.reason)
            return
        counts = {"rows": receipt.rows_in, "rejected": receipt.rejected, "tokens": receipt.tokens}
        took = sum(
            seconds for stage, seconds in receipt.seconds.items() if stage != "run"
        )  # `device` has the same, once
        tell(log, "shard published", **self.named, **counts, seconds=round(took, 3))

    def give_up(self) -> None:
        """In good order: nothing happened."""
        for step in (READING, BEGUN):
            self.of.strikes.erase(*self.place, step)


class Desk:
    """Turns leases into assignments, and settles those that ask for nothing. Called from one thread."""

    def __init__(
        self,
        queue: Queue,
        leases: Leases,
        registry: Registry,
        residents: Residents,
        who: str,
        living: Callable[[], set[str]],
    ) -> None:
        self.queue, self.leases, self.residents = queue, leases, residents
        self.registry, self.who, self.living = registry, who, living
        self._open: dict[str, OpenJob] = {}

    def jobs(self) -> list[OpenJob]:
        return list(self._open.values())

    def close(self, job: str) -> None:
        """It is over."""
        self._open.pop(job, None)

    def accept(self, lease: Lease) -> Assignment | None:
        """What the message asks for, or None where nothing is to be done for it any more; then the lease is settled."""
        try:
            pointer, sent = _pointer(lease)
        except BadMessage as error:
            self.leases.bury(self.queue, lease, str(error))
            return None
        try:
            opened = self._job(pointer)
            if not opened.paused:
                return self._assignment(lease, opened, pointer, sent)
            self.leases.done(self.queue, [lease])
        except (BadMessage, UnknownJob) as error:
            self.leases.bury(self.queue, lease, str(error))
        except Exception as error:
            # Not the message's fault, and perhaps not for long. It is dropped, and whoever sweeps sends the shard again, ever more
            # rarely: kept, it would take room in the queue from other jobs. A damaged file may raise anything.
            why = str(error) if isinstance(error, LadingError) else f"{type(error).__name__}: {error}"
            tell(log, "job unreachable", job=pointer.job, why=why)
            self.leases.done(self.queue, [lease])
        return None

    def _job(self, pointer: ShardPointer) -> OpenJob:
        opened = self._open.get(pointer.job)
        if opened is None:
            entry = self.registry.find(pointer.job)
            job, folding = entry.open(), entry.open()
            strikes = Strikes(job.manifest.folder, self.who, self.living)
            if entry.max_rejects is not None:
                folding.rejected = folding.manifest.totals().rejected
            opened = OpenJob(job, folding, strikes, self.residents, looked=time.monotonic())
            for oldest in list(self._open)[: 1 - MOST_OPEN]:
                self.close(oldest)
            self._open[pointer.job] = opened
        if pointer.recipe != opened.job.recipe.hash:
            raise BadMessage(f"names recipe {pointer.recipe}, job {pointer.job} has {opened.job.recipe.hash}")
        return opened

    def _assignment(self, lease: Lease, opened: OpenJob, pointer: ShardPointer, sent: float) -> Assignment | None:
        job = opened.job
        work = None if opened.over(self.registry) else job.manifest.pending(pointer.shard, pointer.generation)
        if work is None:
            opened.strikes.clear(pointer.shard, pointer.generation)
            self.leases.done(self.queue, [lease])
            return None
        struck = opened.strikes.left_by_others(pointer.shard, pointer.generation)
        waited_s = max(time.time() - sent, 0.0) if sent else None
        assigned = Assignment(lease, opened, work, struck, self.leases.beat, waited_s)
        tell(log, "shard taken", **assigned.named)
        return assigned


def _pointer(lease: Lease) -> tuple[ShardPointer, float]:
    """And when it was sent (0.0: unsaid). Raises BadMessage."""
    message = decode(lease.raw)
    if not isinstance(message.body, ShardPointer):
        raise BadMessage("a request, in the queue of shards")
    return message.body, message.sent
