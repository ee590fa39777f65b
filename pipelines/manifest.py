"""What a job has done and has still to do, read from the files beside its output: the truth that outlives every process.

Owns the plan's file, markers, generations, receipts and rejects. Knows no sink: what receipts bring into the output is the fold's matter.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ..config.errors import LadingError, OutputError
from ..config.failpoints import failpoint
from .folder import Folder, folder_names
from .generations import Opening, Pair, Segment, Totals, segments, total
from .output import Output
from .plan import Plan, check_version
from .records import RETRYABLE, Receipt, Reject, Shard

RECEIPT_VERSION = 1
OPENING_VERSION = 2  # 1 did not name the generation that it stands in for

_MARKER = re.compile(r"(\d+)\.(\d+)(\.open)?\.json")


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """One shard, or some rows of it, that has no marker yet."""

    shard: Shard
    generation: int
    ordinals: np.ndarray | None  # int64 places in the shard that this generation covers; None is all


class Manifest:
    """The folder of one job. Threads may share one; any number of processes may open the same."""

    def __init__(self, folder: Folder, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self._receipts: dict[Pair, Receipt] = {}
        self._openings: dict[Pair, Opening] = {}
        self._lock = threading.Lock()

    @classmethod
    def create(cls, output: Output, plan: Plan) -> Manifest:
        """Write the plan put-if-absent; the manifest of the plan that stands, an earlier one of the same job included.

        Raises OutputError if the place is not writable or its store cannot put-if-absent.
        """
        folder = output.job(plan.job)
        if not folder.exists("plan.json"):
            folder.check()
        standing = folder.put("plan.json", _dump(plan.to_dict()))
        failpoint("plan.written")
        return cls(folder, Plan.from_dict(_load(standing, folder, "plan.json")))

    @classmethod
    def find(cls, output: Output, job: str) -> Manifest | None:
        """The manifest of a job that has a plan, else None."""
        folder = output.job(job)
        stored = folder.read("plan.json")
        return None if stored is None else cls(folder, Plan.from_dict(_load(stored, folder, "plan.json")))

    @classmethod
    def open(cls, output: Output, job: str) -> Manifest:
        """Raises OutputError if there is no such job."""
        manifest = cls.find(output, job)
        if manifest is None:
            raise OutputError(f"{output} has no job {job}; its jobs: {', '.join(jobs(output)) or 'none'}")
        return manifest

    # -- what is to be done

    def work(self) -> list[Work]:
        """Every generation that has no marker yet, in order of shards."""
        self._refresh()
        return [
            self._work(shard.number, one)
            for shard in self.plan.shards
            for one in self._segments(shard.number)
            if one.receipt is None
        ]

    def pending(self, shard: int, generation: int) -> Work | None:
        """One generation, if it counts and has no marker yet; None where nothing is to be done for it."""
        if not 0 <= shard < len(self.plan.shards) or self.published(shard, generation):
            return None
        if generation or self.folder.exists(f"markers/{shard}.1.open.json"):
            self._refresh()
        for one in self._segments(shard):
            if one.generation == generation and one.receipt is None:
                return self._work(shard, one)
        return None

    def published(self, shard: int, generation: int) -> bool:
        """Whether some attempt at this generation has a marker already."""
        return (shard, generation) in self._receipts or self.folder.exists(_marker(shard, generation))

    def reopen_failed(self) -> int:
        """Give every failed shard a further generation; how many. Idempotent until those are published."""
        return len(self._reopen(lambda receipt: "failed" if receipt.status == "failed" else ""))

    def reopen_void(self, pairs: Iterable[Pair]) -> int:
        """Give generations whose staged files are gone (Folded.void) a further one; how many."""
        void = set(pairs)
        return len(self._reopen(lambda receipt: "void" if (receipt.shard, receipt.generation) in void else ""))

    def reopen_rejects(self) -> int:
        """Give the rejects that another attempt may save (codes RETRYABLE) a further generation; how many rows.

        Raises OutputError for a job that is closed: its ledger entry is gone, nothing can be added under its name.
        """
        if self.closed() is not None:
            raise OutputError(
                f"job {self.plan.job} is finished; write its retryable rejects as a new job with --on-existing append"
            )
        opened = self._reopen(lambda receipt: "rejects" if set(receipt.rejects) & set(RETRYABLE) else "")
        return sum(len(one.ordinals or ()) for one in opened)

    # -- what was done

    def write_rejects(self, shard: int, generation: int, attempt: str, rejects: list[Reject]) -> str:
        """Store an attempt's rejects durably; the name for `Receipt.rejects_file`, "" if there are none."""
        if not rejects:
            return ""
        name = f"rejects/{shard}.{generation}.{attempt}.jsonl"
        self.folder.put(name, b"".join(_dump(dataclasses.asdict(one)) + b"\n" for one in rejects))
        failpoint("rejects.written")
        return name

    def publish(self, receipt: Receipt) -> Receipt:
        """Put the marker if absent: the receipt that counts. If its attempt is another's, ours is lost: discard its files."""
        failpoint("publish.before")
        name = _marker(receipt.shard, receipt.generation)
        standing = self.folder.put(name, _dump(dataclasses.asdict(receipt)))
        failpoint("publish.linked")
        winner = parse_receipt(self.folder, name, standing)
        with self._lock:
            self._receipts[receipt.shard, receipt.generation] = winner
        return winner

    def receipts(self) -> list[Receipt]:
        """Every receipt that counts, failed ones included; a shard has several where rejects were reopened."""
        self._refresh()
        return [one.receipt for shard in self.plan.shards for one in self._segments(shard.number) if one.receipt]

    def finished(self) -> list[Receipt]:
        """The receipts to fold."""
        return [receipt for receipt in self.receipts() if receipt.status == "done"]

    def rejects(self) -> Iterator[Reject]:
        """Every rejected row of the job, by shard; rows that a later generation took over are counted there."""
        self._refresh()
        for shard in self.plan.shards:
            for segment in self._segments(shard.number):
                taken = segment.taken_ordinals
                if segment.receipt:
                    yield from (one for one in self._read_rejects(segment.receipt) if one.ordinal not in taken)

    def totals(self) -> Totals:
        """The job's counts. Raises LadingError if a receipt does not balance."""
        self._refresh()
        return total((shard, self._segments(shard.number)) for shard in self.plan.shards)

    # -- the end

    def close(self, report: dict[str, Any], *, folded: set[Pair] | None = None) -> None:
        """Declare the job complete; from now on nothing is folded under its name. Idempotent.

        `folded` (Sink.folded) is compared with the receipts where given. Raises LadingError if a shard is
        missing, failed, or not in view yet.
        """
        if self.closed() is not None:
            return  # by another process; the ledger entry that `folded` was read from may be gone since
        totals = self.totals()
        missing = (
            [] if folded is None else [one for one in self.finished() if (one.shard, one.generation) not in folded]
        )
        if totals.shards_done != totals.shards or missing:
            raise LadingError(
                f"job {self.plan.job} is not complete: {totals.shards_done} of {totals.shards} shards are done, "
                f"{len(missing)} of them not in the output yet; run the same command again"
            )
        failpoint("close.before")
        self.folder.put("closed.json", _dump({"version": 1, "job": self.plan.job, "report": report}))
        self.write_report(report)
        failpoint("close.written")

    def closed(self) -> dict[str, Any] | None:
        """The report the job was closed with, None while it is open."""
        stored = self.folder.read("closed.json")
        return None if stored is None else _load(stored, self.folder, "closed.json")["report"]

    def write_report(self, report: dict[str, Any]) -> None:
        """Leave a summary for people; nothing reads it back to decide anything."""
        self.folder.overwrite("report.json", json.dumps(report, indent=2).encode())

    # -- inside

    def _refresh(self) -> None:
        """One listing, and one read per file not seen before: markers and openings never change."""
        with self._lock:
            for name in self.folder.names("markers"):
                match = _MARKER.fullmatch(name)
                if match is None:
                    raise LadingError(f"{self.folder.url}/markers/{name} is not a marker's name: move it away")
                pair = (int(match[1]), int(match[2]))
                known = self._openings if match[3] else self._receipts
                if pair not in known and (stored := self.folder.read(f"markers/{name}")) is not None:
                    if match[3]:
                        self._openings[pair] = parse_opening(self.folder, name, stored)
                    else:
                        self._receipts[pair] = parse_receipt(self.folder, name, stored)

    def _segments(self, shard: int) -> list[Segment]:
        return segments(shard, self._receipts, self._openings)

    def _work(self, shard: int, segment: Segment) -> Work:
        scope = None if segment.scope is None else np.array(segment.scope, np.int64)
        return Work(self.plan.shards[shard], segment.generation, scope)

    def _reopen(self, why: Callable[[Receipt], str]) -> list[Opening]:
        """Open a generation for each one that counts and for which `why` gives a reason; the openings made.

        A shard's openings are a log that any number of processes append to: what an entry says was decided on all
        entries before it, because whoever finds its place taken looks again.
        """
        self._refresh()
        made: list[Opening] = []
        for shard in self.plan.shards:
            while opening := self._wanted(shard.number, why):
                if self._open(shard.number, opening):
                    made.append(opening)
        return made

    def _wanted(self, shard: int, why: Callable[[Receipt], str]) -> Opening | None:
        for segment in self._segments(shard):
            reason = why(segment.receipt) if segment.receipt else ""
            if reason in ("failed", "void"):
                return Opening(reason, segment.generation, segment.kept, {})
            if reason and segment.receipt and segment.taken is None:
                again = [one for one in self._read_rejects(segment.receipt) if one.code in RETRYABLE]
                codes = {code: rows for code in RETRYABLE if (rows := sum(one.code == code for one in again))}
                return Opening(reason, segment.generation, tuple(one.ordinal for one in again), codes)
        return None

    def _open(self, shard: int, opening: Opening) -> bool:
        """Append to the shard's openings; False if another process was first, whose opening is known then."""
        generation = 1
        while (shard, generation) in self._openings:
            generation += 1
        name = f"markers/{shard}.{generation}.open.json"
        written = _dump({"version": OPENING_VERSION, **dataclasses.asdict(opening)})
        standing = self.folder.put(name, written)
        with self._lock:
            self._openings[shard, generation] = parse_opening(self.folder, name, standing)
        return standing == written

    def _read_rejects(self, receipt: Receipt) -> Iterator[Reject]:
        if not receipt.rejects_file:
            return
        stored = self.folder.read(receipt.rejects_file)
        if stored is None:
            raise LadingError(
                f"{self.folder.url}/{receipt.rejects_file} is gone; it lists {receipt.rejected} rejected rows of shard {receipt.shard}"
            )
        for line in stored.splitlines():
            yield Reject(**json.loads(line))


def jobs(output: Output) -> list[str]:
    """Ids of the jobs that have a plan beside the output, sorted. A process may die between making a job's folder and its plan."""
    return [job for job in folder_names(f"{output.manifest}/jobs") if output.job(job).exists("plan.json")]


def parse_opening(folder: Folder, name: str, stored: bytes) -> Opening:
    """What a file `markers/<shard>.<generation>.open.json` says. Raises LadingError, naming it, if it is damaged."""
    fields = _load(stored, folder, name)
    check_version(fields, OPENING_VERSION, f"{folder.url}: {name}")
    ordinals = fields["ordinals"]
    return Opening(fields["why"], fields["of"], None if ordinals is None else tuple(ordinals), fields["codes"])


def parse_receipt(folder: Folder, name: str, stored: bytes) -> Receipt:
    """What a marker says. Raises LadingError, naming it, if it is damaged."""
    fields = _load(stored, folder, name)
    check_version(fields, RECEIPT_VERSION, f"{folder.url}: {name}")
    fields["files"] = tuple(fields["files"])
    return Receipt(**fields)


def _marker(shard: int, generation: int) -> str:
    return f"markers/{shard}.{generation}.json"


def _dump(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _load(stored: bytes, folder: Folder, name: str) -> dict[str, Any]:
    try:
        return json.loads(stored)
    except ValueError as error:
        raise LadingError(
            f"{folder.url}/{name} is not JSON ({error}): the file was damaged; restore or move it away"
        ) from error
