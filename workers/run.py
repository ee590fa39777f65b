"""Runs a job in this process, without any broker: the same reading, engine and sinks that a queue worker uses."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from .. import adapters
from ..config.errors import StopJob, TooManyRejects
from ..config.lora import locate_adapter
from ..config.settings import Settings
from ..config.settings import load as load_settings
from ..pipelines.job import Draft, start
from ..pipelines.manifest import Work
from ..pipelines.open_job import Job
from ..pipelines.records import Rows
from .engine import Engine
from .measured import Measured, summarise
from .parts import ShardInFlight
from .publishing import publish
from .summary import Progress, Summary


def run(
    draft: Draft,
    *,
    device: str = "auto",
    batch_tokens: int = 0,
    threads: int = 0,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Summary:
    """Start the job or join it, do what is left of it and fold that into the output; returns what came of it.

    `stop` ends the run after the shards in flight. Raises LadingError only where nothing could be begun, UsageError
    before anything is written; what ends a run that has begun is in the summary's `state` and `reason`. All that was
    published stays, and the same call resumes.
    """
    adapters.check_device(device)
    settings = load_settings()
    one = _Run(draft, settings, stop or threading.Event(), on_progress)
    return one.run(Placement(device, batch_tokens, threads or settings.threads))


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Where and how the model runs; no part of the job."""

    device: str
    batch_tokens: int  # 0: by the device
    threads: int  # 0: all cores


class _Run:
    """One pass over the shards that are still to be done. The engine is in the calling thread; one more thread writes."""

    def __init__(
        self, draft: Draft, settings: Settings, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> None:
        self.draft, self.settings, self.stop, self.on_progress = draft, settings, stop, on_progress
        self.measured = Measured()
        self.rejected = self.done_before = self.done_shards = 0
        self.last_fold = 0.0
        self.engine: Engine | None = None
        self.adapter: adapters.Adapter | None = None

    def run(self, placement: Placement) -> Summary:
        if self.draft.manifest is None:  # a model that does not run here leaves no output behind
            self._load(placement)
        self.job = start(self.draft)
        self.manifest = self.job.manifest
        if self.manifest.closed() is not None:
            return summarise(self.job, "nothing to do")
        self.manifest.reopen_failed()
        totals = self.manifest.totals()
        self.done_before, self.rejected, self.done_shards = totals.done, totals.rejected, totals.shards_done
        try:
            state, reason = self._work(placement)
        except StopJob as error:
            state, reason = "stopped", str(error)
            with contextlib.suppress(StopJob):  # the reason why nothing more can be brought into view is known
                self._fold()
        return self._end(state, reason)

    def _work(self, placement: Placement) -> tuple[str, str]:
        """Do what is left and bring it into view: how that ended, and why. Raises StopJob."""
        if self.job.too_many(self.rejected):
            self._fold()  # what is published is to be seen, and what turns out void counts no more
            self._check_rejects()
        # All may be published, by an earlier run or another process, and perhaps not all folded.
        works = self.manifest.work() or self._left()
        if not works:
            return "finished", ""
        if self.engine is None:
            self._load(placement)
        assert self.engine is not None
        assert self.adapter is not None
        self.measured.begin(self.engine.gauges, self.adapter.kernel)
        self.last_fold = time.monotonic()
        while works and not self.stop.is_set():
            self._pass(self.engine, works)
            works = self._left()  # what other processes began and lost, or what turned out void
        return ("interrupted", "stopped on request; the same command resumes") if works else ("finished", "")

    def _load(self, placement: Placement) -> None:
        began = time.monotonic()
        folder = self.draft.checkpoint.folder
        adapter = adapters.load(
            self.draft.recipe,
            folder,
            adapter=locate_adapter(self.draft.spec.steps[0].adapter),
            device=placement.device,
            threads=placement.threads,
        )
        self.measured.load_s = time.monotonic() - began
        budget = placement.batch_tokens or self.settings.batch_tokens(adapter.device)
        window = self.settings.window(budget)
        self.adapter = adapter
        self.engine = Engine(adapter.streams, budget, window, self.stop, on_batch=self._tell)

    def _pass(self, engine: Engine, works: list[Work]) -> None:
        """Every shard of `works` through the engine and the writing thread."""
        assert self.adapter is not None
        adapter = self.adapter
        shards = engine.shards(_Task(self.job, work, adapter) for work in self._unclaimed(works))
        with ThreadPoolExecutor(1, thread_name_prefix="lading-write") as writer, contextlib.closing(shards):
            writing: list[Future[None]] = []
            for shard in shards:
                writing.append(writer.submit(self._write, shard, adapter.kernel, engine.gauges.busy))
                while len(writing) > 2:  # a slow sink holds the device back rather than filling memory
                    writing.pop(0).result()
                writing = [one for one in writing if not (one.done() and one.result() is None)]
            for one in writing:
                one.result()

    def _left(self) -> list[Work]:
        """What is to be done once all that is published is in view; nothing only if a fold that began with nothing left
        found nothing void: what others publish while this process folds is not left out."""
        self._fold()
        while not (works := self.manifest.work()) and self._fold():
            pass
        return works

    def _unclaimed(self, works: list[Work]) -> Iterator[Work]:
        """Shards that no other process has published meanwhile."""
        return (work for work in works if not self.manifest.published(work.shard.number, work.generation))

    # -- the writing thread

    def _write(self, shard: ShardInFlight, kernel: str, busy: float) -> None:
        with self.measured.write:
            receipt, _ = publish(self.job, shard, kernel=kernel, busy=busy)
        self.done_shards += 1
        self.rejected += receipt.rejected
        self.measured.rows_run += receipt.rows_in
        if time.monotonic() - self.last_fold >= self.settings.fold_interval_s:
            self._fold()
        self._check_rejects()

    def _check_rejects(self) -> None:
        """Raises TooManyRejects if the job, whoever works on it, has more rejects than its policy lets pass."""
        if self.job.too_many(self.rejected):
            # What was added since the last fold may be another process's and counted before: the receipts decide.
            self.rejected = self.manifest.totals().rejected
            if reason := self.job.too_many(self.rejected):
                raise TooManyRejects(reason)

    def _fold(self) -> bool:
        """Bring into view what is published; whether some of it was void and is to be done again."""
        with self.measured.fold:
            folded = self.job.fold()
        self.rejected = self.job.rejected  # other processes' too
        self.measured.folds += folded.shards > 0
        self.measured.conflicts += folded.conflicts
        self.last_fold = time.monotonic()
        return bool(folded.void)

    # -- the end

    def _end(self, state: str, reason: str) -> Summary:
        """Close the job if all of it is in the output, and nothing that could be tried again. The counts must balance, or this raises."""
        if state == "finished":
            standing = self.job.standing()
            state, reason = standing.state, standing.reason
        summary = summarise(self.job, state, reason, self.measured)
        if state == "finished" and not summary.retryable:
            try:
                self.job.close(summary.to_dict())
            except StopJob as error:  # all rows are in view, and no disk space is left to say so
                return dataclasses.replace(summary, state="stopped", reason=str(error))
        return summary

    def _tell(self) -> None:
        assert self.engine is not None
        gauges = self.engine.gauges
        self.on_progress(
            Progress(
                rows_done=self.done_before + round(gauges.rows),
                rejected=self.rejected,
                rows_total=self.draft.rows,
                shards_done=self.done_shards,
                shards_total=len(self.draft.shards),
                tokens=gauges.cost,
                elapsed_s=self.measured.elapsed_s,
                fill=gauges.fill,
            )
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Task:
    """See parts.Task."""

    job: Job
    work: Work
    adapter: adapters.Adapter

    @property
    def texts(self) -> list[str]:
        return self.job.texts

    @property
    def at_hand(self) -> bool:
        return True

    def read(self) -> Iterator[Rows]:
        return self.job.read(self.work)

    def begin(self) -> None:
        pass
