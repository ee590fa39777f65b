"""A job that has its folder beside the output: reading its shards, publishing them, bringing them into view, and how it stands.

Any number of processes may hold the same job open, on any machines. Knows neither models nor queues.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ..config.errors import TableChanged
from ..config.recipe import Recipe
from ..config.words import counted
from . import sources
from .generations import Totals
from .manifest import Manifest, Work
from .output import Folded, Output
from .queries import Queries, model_columns
from .records import Receipt, Reject, Rows, rows_of
from .sinks import Sink, open_sink
from .spec import JobSpec, from_dict

CANCELLED = "cancelled.json"
Place = tuple[str, int, int, str]  # job, shard, generation, attempt: what names an attempt's files


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """How a job stands, from its manifest alone."""

    state: str  # running | finished | unfinished (shards failed) | stopped (its own rules) | cancelled
    reason: str  # why it does not go on, and what to do; "" while it does
    totals: Totals


@dataclasses.dataclass(slots=True)
class Job:
    """See the module. `spec` may differ from the plan's in what is not part of the job's id (limits)."""

    manifest: Manifest
    sink: Sink
    spec: JobSpec
    source: pa.Schema  # of what is read: id, then the columns asked for
    schema: pa.Schema  # of the output
    recipe: Recipe
    rejected: int = 0  # rows, as of the last fold
    _cancelled: bool = False
    _queries: Queries | None = None

    @classmethod
    def of(cls, manifest: Manifest, sink: Sink, spec: JobSpec | None = None) -> Job:
        """The job that a plan describes."""
        plan = manifest.plan
        recipe = Recipe.from_dict(plan.recipe)
        return cls(manifest, sink, spec or from_dict(plan.spec), plan.source_schema, plan.output_schema, recipe)

    @property
    def id(self) -> str:
        return self.manifest.plan.job

    @property
    def rows(self) -> int | None:
        """Input rows, where planning could know them without reading everything."""
        return rows_of(self.manifest.plan.shards)

    @property
    def texts(self) -> list[str]:
        """Columns of what `read` gives that the model reads, in its order."""
        return model_columns(self.spec)

    def enter(self) -> None:
        """Register with the output, or leave one whose end another process had no time to tell. Idempotent, safe to race.

        Raises OutputError where the output does not fit, TableChanged where it is no longer what the job left or entered.
        """
        if self.manifest.closed() is None:
            key = "doc_id" if self.recipe.long_text == "chunk" else "id"
            self.sink.register(self.id, self.schema, on_existing=self.manifest.plan.on_existing, key=key)
        elif why := self.sink.changed(self.id):
            where = self.manifest.folder.url
            raise TableChanged(f"job {self.id} was finished, but {why}; to do it again remove {where}")
        else:
            self.sink.unregister(self.id)  # a process may have died between closing the job and this

    # -- one shard

    def read(self, work: Work) -> Iterator[Rows]:
        """The rows that a generation covers. Raises ShardError."""
        plan = self.manifest.plan
        batches = sources.read(
            self.spec.source,
            plan.format,
            plan.inputs,
            work.shard,
            self.source,
            texts=list(self.spec.steps[0].text),
            duplicates=plan.duplicates.get(work.shard.number),
        )
        self._queries = self._queries or Queries.of(self.spec, plan.queries)
        for rows in batches:
            if self._queries is not None:
                rows = self._queries.join(rows, work.shard.number)
            yield rows if work.ordinals is None else only(rows, work.ordinals)

    def attempt(self, work: Work) -> Place:
        """A name of its own for one attempt."""
        return (self.id, work.shard.number, work.generation, secrets.token_hex(8))

    def publish(
        self, place: Place, receipt: Receipt, table: pa.Table, rejects: list[Reject], replaces: pa.Array | None
    ) -> Receipt:
        """Stage an attempt's rows, then decide by the marker whether they count. Returns the receipt that counts.

        `replaces`: ids of all rows covered (covered_ids), for a job that replaces rows. Raises StopJob.
        """
        began = time.monotonic()
        files = self.sink.stage(*place, table, replaces=replaces)
        receipt = dataclasses.replace(
            receipt,
            files=files,
            rejects_file=self.manifest.write_rejects(*place[1:], rejects),
            seconds={**receipt.seconds, "stage": round(time.monotonic() - began, 4)},
        )
        winner = self.manifest.publish(receipt)
        if winner.attempt != receipt.attempt:
            self.sink.discard(files)
        return winner

    # -- the whole

    def fold(self) -> Folded:
        """Bring into view whatever is published, by whomever; what turns out void is to be done again. Raises StopJob."""
        receipts = self.manifest.finished()
        folded = self.sink.fold(self.id, receipts)
        # Never too few; too many where a later generation took rejects over.
        self.rejected = sum(one.rejected for one in receipts if (one.shard, one.generation) not in folded.void)
        if folded.void:  # staged files that were cleaned away before they came into view are made again
            self.manifest.reopen_void(folded.void)
        return folded

    def too_many(self, rejected: int) -> str:
        """Why a job with so many rejects stops, "" if it need not."""
        limit = self.spec.policy.max_rejects
        if limit is None or rejected <= limit:
            return ""
        return (
            f"{counted(rejected, 'row')} rejected, more than max_rejects = {limit}: see lading rejects {self.sink.output}; "
            "the same command with a higher limit goes on"
        )

    def cancelled(self) -> bool:
        """Whether somebody cancelled the job, for good."""
        self._cancelled = self._cancelled or self.manifest.folder.exists(CANCELLED)
        return self._cancelled

    def cancel(self) -> None:
        """Nothing more of the job is begun, by anyone; what is in view stays. Idempotent."""
        self.manifest.folder.put(CANCELLED, json.dumps({"version": 1, "job": self.id}).encode())

    def standing(self) -> Standing:
        """How the job stands now. The counts must balance, or this raises LadingError."""
        totals = self.manifest.totals()
        if self.manifest.closed() is not None:
            return Standing("finished", "", totals)
        if self.cancelled():
            return Standing("cancelled", "cancelled; what was published before stays in the output", totals)
        if reason := self.too_many(totals.rejected):
            return Standing("stopped", reason, totals)
        if totals.shards_done + totals.shards_failed < totals.shards:
            return Standing("running", "", totals)
        if totals.shards_failed:
            return Standing("unfinished", f"{counted(totals.shards_failed, 'shard')} failed; {totals.failure}", totals)
        if _model_failed(totals):
            reason = (
                f"the model gave no usable result for any row that it was given: see lading rejects {self.sink.output}. For another "
                f"--precision or model use another output, or remove this one and {self.sink.output.manifest} first"
            )
            return Standing("stopped", reason, totals)
        return Standing("finished", "", totals)

    def close(self, report: dict[str, object]) -> None:
        """Declare a finished job, all of which is in view, complete. Idempotent. Raises StopJob, or LadingError if it is not."""
        self.manifest.close(report, folded=self.sink.folded(self.id))
        self.sink.unregister(self.id)
        self.manifest.folder.delete("strikes")  # of processes that died while they loaded the model, say


def open_job(output: Output, job: str) -> Job:
    """A job that somebody else planned, entered and ready to work on. Raises OutputError, TableChanged, StopJob."""
    opened = Job.of(Manifest.open(output, job), open_sink(output))
    opened.enter()
    return opened


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


def _model_failed(totals: Totals) -> bool:
    """Whether there were rows to run, and the model is to blame that none of them is in the output."""
    return totals.done == 0 and totals.retryable > 0
