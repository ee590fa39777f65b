"""Runs a job in this process, without any broker: the same reading, engine and sinks that a queue worker uses."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from .. import adapters
from ..config.errors import StopJob, TooManyRejects
from ..config.settings import Settings
from ..config.settings import load as load_settings
from ..config.words import counted
from ..pipelines import sources
from ..pipelines.generations import Totals
from ..pipelines.job import Draft, start
from ..pipelines.manifest import RETRYABLE, Work
from ..pipelines.provenance import kept_columns
from ..pipelines.records import Receipt, Rows
from .engine import Engine
from .measured import Measured, summarise
from .parts import ShardInFlight, covered_ids, finish, only
from .summary import Progress, Summary

log = logging.getLogger(__name__)


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
        self.sink, self.step = draft.sink, draft.spec.steps[0]
        self.measured = Measured()
        self.rejected = self.done_before = self.done_shards = 0
        self.last_fold = 0.0
        self.engine: Engine | None = None

    def run(self, placement: Placement) -> Summary:
        if self.draft.manifest is None:  # a model that does not run here leaves no output behind
            self.engine = self._load(placement)
        self.job = start(self.draft)
        self.manifest = self.job.manifest
        if self.manifest.closed() is not None:
            self.sink.unregister(self.job.id)  # whoever closed it may have died before it came to that
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
        if self._too_many(self.rejected):
            self._fold()  # what is published is to be seen, and what turns out void counts no more
            self._check_rejects()
        # All may be published, by an earlier run or another process, and perhaps not all folded.
        works = self.manifest.work() or self._left()
        if not works:
            return "finished", ""
        self.engine = self.engine or self._load(placement)
        self.measured.begin(self.engine)
        self.last_fold = time.monotonic()
        while works and not self.stop.is_set():
            self._pass(self.engine, works)
            works = self._left()  # what other processes began and lost, or what turned out void
        return ("interrupted", "stopped on request; the same command resumes") if works else ("finished", "")

    def _load(self, placement: Placement) -> Engine:
        began = time.monotonic()
        folder = self.draft.checkpoint.folder
        adapter = adapters.load(self.draft.recipe, folder, device=placement.device, threads=placement.threads)
        self.measured.load_s = time.monotonic() - began
        budget = placement.batch_tokens or self.settings.batch_tokens(adapter.device)
        return Engine(
            adapter=adapter,
            read_shard=self._read,
            texts=list(self.step.text),
            budget=budget,
            window=self.settings.window(budget),
            stop=self.stop,
            on_batch=self._tell,
        )

    def _pass(self, engine: Engine, works: list[Work]) -> None:
        """Every shard of `works` through the engine and the writing thread."""
        shards = engine.shards(self._unclaimed(works))
        with ThreadPoolExecutor(1, thread_name_prefix="lading-write") as writer, contextlib.closing(shards):
            writing: list[Future[None]] = []
            for shard in shards:
                writing.append(writer.submit(self._write, shard))
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

    def _read(self, work: Work) -> Iterator[Rows]:
        draft = self.draft
        batches = sources.read(
            draft.spec.source,
            draft.format,
            draft.inputs,
            work.shard,
            draft.source,
            texts=list(self.step.text),
            duplicates=draft.duplicates.get(work.shard.number),
        )
        for rows in batches:
            yield rows if work.ordinals is None else only(rows, work.ordinals)

    # -- the writing thread

    def _write(self, shard: ShardInFlight) -> None:
        with self.measured.write:
            receipt = self._publish(shard)
        self.done_shards += 1
        self.rejected += receipt.rejected
        self.measured.rows_run += receipt.rows_in
        if time.monotonic() - self.last_fold >= self.settings.fold_interval_s:
            self._fold()
        self._check_rejects()

    def _check_rejects(self) -> None:
        """Raises TooManyRejects if the job, whoever works on it, has more rejects than its policy lets pass."""
        if self._too_many(self.rejected):
            # What was added since the last fold may be another process's and counted before: the receipts decide.
            self.rejected = self.manifest.totals().rejected
            if reason := self._too_many(self.rejected):
                raise TooManyRejects(reason)

    def _too_many(self, rejected: int) -> str:
        """Why a job with so many rejects stops, "" if it need not."""
        limit = self.draft.spec.policy.max_rejects
        if limit is None or rejected <= limit:
            return ""
        return (
            f"{counted(rejected, 'row')} rejected, more than max_rejects = {limit}: see lading rejects {self.sink.output}; "
            "the same command with a higher limit goes on"
        )

    def _publish(self, shard: ShardInFlight) -> Receipt:
        """Stage the rows, then decide by the marker whether they count. Returns the receipt that counts."""
        assert self.engine is not None
        work, spec = shard.work, self.draft.spec
        place = (self.job.id, work.shard.number, work.generation, secrets.token_hex(8))
        receipt = Receipt(*place, kernel=self.engine.adapter.kernel, finished=time.time())
        if shard.failure:
            rows = (work.shard.rows or 0) if work.ordinals is None else len(work.ordinals)
            return self.manifest.publish(
                dataclasses.replace(receipt, status="failed", reason=shard.failure, rows_in=rows)
            )
        replacing = self.manifest.plan.on_existing == "replace"
        replaces = covered_ids(shard, self.draft.source.field("id").type) if replacing else None
        table, rejects, receipt = finish(
            shard, receipt, keep=kept_columns(spec), text=self.step.text[0], schema=self.draft.schema
        )
        shard.parts.clear()
        began = time.monotonic()
        files = self.sink.stage(*place, table, replaces=replaces)
        receipt = dataclasses.replace(
            receipt,
            files=files,
            rejects_file=self.manifest.write_rejects(*place[1:], rejects),
            seconds={**receipt.seconds, "stage": round(time.monotonic() - began, 4)},
            busy=round(self.engine.gauges.busy, 4),
        )
        winner = self.manifest.publish(receipt)
        if winner.attempt != receipt.attempt:
            log.info("shard %d was published by another process; its rows count, ours are dropped", work.shard.number)
            self.sink.discard(files)
        return winner

    def _fold(self) -> bool:
        """Bring into view what is published; whether some of it was void and is to be done again."""
        with self.measured.fold:
            receipts = self.manifest.finished()
            folded = self.sink.fold(self.job.id, receipts)
        if folded.void:  # staged files that were cleaned away before they came into view are made again
            self.manifest.reopen_void(folded.void)
        # Other processes' too. Never too few; too many where a later generation took rejects over.
        self.rejected = sum(one.rejected for one in receipts if (one.shard, one.generation) not in folded.void)
        self.measured.folds += folded.shards > 0
        self.measured.conflicts += folded.conflicts
        self.last_fold = time.monotonic()
        return bool(folded.void)

    # -- the end

    def _end(self, state: str, reason: str) -> Summary:
        """Close the job if all of it is in the output. The counts must balance, or this raises."""
        totals = self.manifest.totals()
        if state == "finished" and totals.shards_failed:
            state, reason = "unfinished", f"{counted(totals.shards_failed, 'shard')} failed; {totals.failure}"
        elif state == "finished" and (too_many := self._too_many(totals.rejected)):
            state, reason = "stopped", too_many
        elif state == "finished" and _model_failed(totals):
            state, reason = (
                "stopped",
                (
                    f"the model gave no usable result for any row that it was given: see lading rejects {self.sink.output}. For another "
                    f"--precision or model use another output, or remove this one and {self.sink.output.manifest} first"
                ),
            )
        summary = summarise(self.job, state, reason, self.measured)
        if state == "finished":
            try:
                self.manifest.close(summary.to_dict(), folded=self.sink.folded(self.job.id))
                self.sink.unregister(self.job.id)
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


def _model_failed(totals: Totals) -> bool:
    """Whether there were rows to run, and the model is to blame that none of them is in the output."""
    to_blame = sum(totals.rejects.get(code, 0) for code in RETRYABLE)
    return totals.done == 0 and to_blame > 0
