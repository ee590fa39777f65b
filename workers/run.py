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

import numpy as np
import pyarrow as pa

from .. import adapters
from ..config.errors import StopJob, TooManyRejects
from ..config.settings import Settings
from ..config.settings import load as load_settings
from ..config.words import counted
from ..pipelines import sources
from ..pipelines.job import Job
from ..pipelines.manifest import Work
from ..pipelines.provenance import kept_columns
from ..pipelines.records import Receipt, Rows
from .engine import Engine
from .parts import ShardInFlight, covered_ids, finish
from .stages import Clock
from .summary import Progress, Summary

log = logging.getLogger(__name__)


def check_device(name: str) -> None:
    """Raises UsageError unless `run` can have this device: to be asked before `start` makes anything."""
    adapters.check_device(name)


def run(
    job: Job,
    *,
    device: str = "auto",
    batch_tokens: int = 0,
    threads: int = 0,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Summary:
    """Do what is left of the job and fold it into the output; returns what came of it.

    `stop` ends the run after the shards in flight. Raises LadingError only where nothing could be begun;
    what ends a run that has begun is in the summary's `state` and `reason`. All that was published stays,
    and the same call resumes.
    """
    if job.manifest.closed() is not None:
        job.draft.sink.unregister(job.id)  # whoever closed it may have died before it came to that
        return _summary(job, "nothing to do")
    return _Run(job, load_settings(), stop or threading.Event(), on_progress).run(device, batch_tokens, threads)


class _Run:
    """One pass over the shards that are still to be done. The device loop is in the calling thread; one more thread writes."""

    def __init__(
        self, job: Job, settings: Settings, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> None:
        self.job, self.settings, self.stop, self.on_progress = job, settings, stop, on_progress
        self.draft, self.manifest, self.sink = job.draft, job.manifest, job.draft.sink
        self.step = self.draft.spec.steps[0]
        self.write_clock, self.fold_clock = Clock(), Clock()
        self.folds = self.conflicts = self.rows_run = self.rejected = self.done_before = self.done_shards = 0
        self.last_fold = self.began = time.monotonic()
        self.engine: Engine | None = None

    def run(self, device: str, batch_tokens: int, threads: int) -> Summary:
        self.manifest.reopen_failed()
        totals = self.manifest.totals()
        self.done_before, self.rejected, self.done_shards = totals.done, totals.rejected, totals.shards_done
        if self._too_many(totals.rejected):
            self._fold()  # what is published is to be seen, and what turns out void counts no more
            if too_many := self._too_many(self.rejected):
                return self._end("stopped", too_many, 0.0)
        works = self.manifest.work()
        if not works:  # all published, by an earlier run or another process; perhaps not all folded
            works = self._left()
        if not works:
            return self._end("finished", "", 0.0)
        began = time.monotonic()
        threads = threads or self.settings.threads
        adapter = adapters.load(self.draft.recipe, self.draft.checkpoint.folder, device=device, threads=threads)
        load_s = time.monotonic() - began
        budget = batch_tokens or self.settings.batch_tokens(adapter.device)
        self.engine = Engine(
            adapter=adapter,
            read_shard=self._read,
            texts=list(self.step.text),
            budget=budget,
            window=self.settings.window(budget),
            stop=self.stop,
            on_batch=self._tell,
        )
        self.began = self.last_fold = time.monotonic()
        state, reason = "finished", ""
        try:
            while works and not self.stop.is_set():
                self._pass(works)
                works = self._left()  # what other processes began and lost, or what turned out void
            if works:
                state, reason = "interrupted", "stopped on request; the same command resumes"
        except TooManyRejects as error:
            self._fold()
            state, reason = "stopped", str(error)
        except StopJob as error:
            state, reason = "stopped", str(error)
            with contextlib.suppress(StopJob):  # the reason why nothing more can be brought into view is known
                self._fold()
        return self._end(state, reason, load_s)

    def _pass(self, works: list[Work]) -> None:
        """Every shard of `works` through the engine and the writing thread."""
        assert self.engine is not None
        shards = self.engine.shards(self._unclaimed(works))
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
        with self.write_clock:
            receipt = self._publish(shard)
        self.done_shards += 1
        self.rejected += receipt.rejected
        self.rows_run += receipt.rows_in
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
            rows = work.shard.rows or 0
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
        with self.fold_clock:
            receipts = self.manifest.finished()
            folded = self.sink.fold(self.job.id, receipts)
        if folded.void:  # staged files that were cleaned away before they came into view are made again
            self.manifest.reopen_void(folded.void)
        # Other processes' too. Never too few; too many where a later generation took rejects over.
        self.rejected = sum(one.rejected for one in receipts if (one.shard, one.generation) not in folded.void)
        self.folds += folded.shards > 0
        self.conflicts += folded.conflicts
        self.last_fold = time.monotonic()
        return bool(folded.void)

    # -- the end

    def _end(self, state: str, reason: str, load_s: float) -> Summary:
        """Close the job if all of it is in the output. The counts must balance, or this raises."""
        totals = self.manifest.totals()
        if state == "finished" and totals.shards_failed:
            state, reason = "unfinished", f"{counted(totals.shards_failed, 'shard')} failed; {totals.failure}"
        elif state == "finished" and (too_many := self._too_many(totals.rejected)):
            state, reason = "stopped", too_many
        summary = _summary(self.job, state, reason, run=self, load_s=load_s)
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
                elapsed_s=time.monotonic() - self.began,
                fill=gauges.fill,
            )
        )


def only(rows: Rows, ordinals: np.ndarray) -> Rows:
    """The rows of a shard that a later generation covers."""
    wanted = np.isin(rows.ordinals, ordinals)
    places = np.flatnonzero(wanted)
    chosen = set(ordinals.tolist())
    return Rows(
        batch=rows.batch.take(pa.array(places)),
        ordinals=rows.ordinals[wanted],
        positions=rows.positions[wanted],
        paths=rows.paths if isinstance(rows.paths, str) else [rows.paths[place] for place in places],
        bad=[reject for reject in rows.bad if reject.ordinal in chosen],
    )


def _summary(job: Job, state: str, reason: str = "", *, run: _Run | None = None, load_s: float = 0.0) -> Summary:
    totals = job.manifest.totals()
    measured: dict[str, object] = {}
    if run is not None and run.engine is not None:
        gauges = run.engine.gauges
        clocks = {
            "read": gauges.read,
            "prepare": gauges.prepare,
            "run": gauges.run,
            "hand out": gauges.hand_out,
            "write": run.write_clock,
            "fold": run.fold_clock,
        }
        measured = {
            "tokens": gauges.cost,
            "rows_run": run.rows_run,
            "elapsed_s": time.monotonic() - run.began,
            "fill": gauges.fill,
            "busy": gauges.busy,
            "kernel": run.engine.adapter.kernel,
            "seconds": {
                **{name: round(clock.wall, 3) for name, clock in clocks.items()},
                "run": round(gauges.run.wall / gauges.streams, 3),
                "idle": round(gauges.idle, 3),
            },
            "cpu_seconds": {name: round(clock.cpu, 3) for name, clock in clocks.items()},
            "folds": run.folds,
            "conflicts": run.conflicts,
        }
    return Summary(
        job=job.id,
        output=str(job.draft.sink.output),
        state=state,
        reason=reason,
        rows_total=totals.rows_in if totals.shards_done == totals.shards else job.draft.rows,
        rows_in=totals.rows_in,
        rows_done=totals.done,
        rejected=totals.rejected,
        failed=totals.failed,
        remaining_shards=totals.shards - totals.shards_done,
        rows_out=totals.rows_out,
        rejects=totals.rejects,
        truncated=totals.truncated,
        load_s=load_s,
        ids_checked=job.draft.spec.source.check_ids or not job.draft.spec.source.id,
        **measured,  # pyright: ignore[reportArgumentType]
    )
