"""The jobs that were submitted from here, by id: a small file each under one root that producers and workers share.

A message names only a job; where its output lies is read here, so that no message can name a path. An entry says nothing
of how far a job is: that is the manifest's matter.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import re
from typing import Any

from ..config.errors import LadingError, OutputError, UsageError
from ..config.events import tell
from .folder import Folder, open_folder
from .open_job import Job, open_job
from .output import Output, find_output, output_paths
from .plan import check_version
from .spec import JobSpec

log = logging.getLogger(__name__)

ENTRY_VERSION = 1
OPEN, CLOSED = "open", "closed"
MOST_SHOWN = 5
_JOB = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # it becomes part of a path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One submitted job."""

    job: str
    output: str  # URL, as sink.to
    pool: str
    recipe: str  # its hash
    priority: int
    shards: int  # of its plan
    created: float  # Unix time of the last submission
    max_rejects: int | None = None  # as last submitted: the plan keeps the first
    weights: str = ""  # what its recipe loads (Recipe.weights); "" where an earlier release submitted it
    op: str = ""  # what its step does: encode, score, extract; "" likewise
    version: int = ENTRY_VERSION

    @property
    def place(self) -> Output:
        """The places of its output. Raises OutputError."""
        return output_paths(self.output)

    def open(self) -> Job:
        """The job, entered and ready to work on, with the limit of the last submission. Raises OutputError, TableChanged, StopJob."""
        job = open_job(self.place, self.job)
        job.spec = self.limited(job.spec)
        return job

    def limited(self, spec: JobSpec) -> JobSpec:
        """The job's spec with what the last submission said of its limits, which are no part of its identity."""
        return dataclasses.replace(spec, policy=dataclasses.replace(spec.policy, max_rejects=self.max_rejects))


class UnknownJob(UsageError):
    """Nothing of that name was submitted here."""


class Registry:
    """The files under a root: `open/<job>.json`, and `closed/<job>.json` for those that nobody needs to look at any more.

    Any number of processes may use one. A job that is in both is open. Every method may raise StopJob: the store fails.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._damaged: set[str] = set()
        self._folder: Folder = open_folder(root)

    def add(self, entry: Entry) -> None:
        """Register a job, or open it again with this pool and priority."""
        self._folder.overwrite(_name(OPEN, entry.job), _dump(entry))
        self._folder.delete(_name(CLOSED, entry.job))

    def find(self, job: str) -> Entry:
        """Raises UnknownJob, with the nearest ids, for a job that was never submitted here."""
        entry = self.get(job)
        if entry is None:
            raise UnknownJob(f"no job {job} is registered in {self.root} (LADING_JOBS){self._hint(job)}")
        return entry

    def get(self, job: str) -> Entry | None:
        """The job's entry, None if there is none; `job` may be anything."""
        if not _JOB.fullmatch(job):
            return None
        # Its entry may move between two looks, from open to closed or back.
        for state in (OPEN, CLOSED, OPEN):
            if stored := self._folder.read(_name(state, job)):
                return self._entry(stored, _name(state, job))
        return None

    def place(self, name: str) -> tuple[str, Entry | None]:
        """(output, entry) of what a user names: a registered job, else an output, of which no entry is known.

        Raises UnknownJob for what is neither and might be a job's id, OutputError for what might only be an output.
        """
        if (entry := self.get(name)) is not None:
            return entry.output, entry
        try:
            find_output(name)
        except OutputError as error:
            if not _JOB.fullmatch(name):
                raise
            raise UnknownJob(
                f"no job {name} is registered in {self.root} (LADING_JOBS){self._hint(name)}; and {error}"
            ) from error
        return name, None

    def is_open(self, job: str) -> bool:
        return self._folder.exists(_name(OPEN, job))

    def list_open(self, known: dict[str, Entry] | None = None) -> list[Entry]:
        """Every open job, oldest first. Those in `known` (by id) are not read again."""
        return self._list(OPEN, known or {})

    def list_closed(self) -> list[Entry]:
        """Every other job, oldest first."""
        return self._list(CLOSED, {})

    def closed(self) -> set[str]:
        """The ids of those that are not open any more; of one that was opened again a moment ago too."""
        return {name.removesuffix(".json") for name in self._folder.names(CLOSED)}

    def close(self, job: str) -> None:
        """Move the entry to the closed ones. Idempotent; a job that is not registered is none of ours."""
        if stored := self._folder.read(_name(OPEN, job)):
            self._folder.overwrite(_name(CLOSED, job), stored)
            self._folder.delete(_name(OPEN, job))

    def _list(self, state: str, known: dict[str, Entry]) -> list[Entry]:
        found: list[Entry] = []
        for name in self._folder.names(state):
            job = name.removesuffix(".json")
            if job in known:
                found.append(known[job])
            elif stored := self._folder.read(f"{state}/{name}"):
                try:
                    found.append(self._entry(stored, f"{state}/{name}"))
                except LadingError as error:  # one damaged entry stops nothing but itself
                    if name not in self._damaged:
                        tell(log, "job entry damaged", why=error)
                    self._damaged.add(name)
        return sorted(found, key=lambda entry: (entry.created, entry.job))

    def _entry(self, stored: bytes, name: str) -> Entry:
        where = f"{self.root}/{name}"
        try:
            fields: dict[str, Any] = json.loads(stored)
            check_version(fields, ENTRY_VERSION, where)
            return Entry(**fields)
        except (ValueError, TypeError, AttributeError) as error:
            raise LadingError(f"{where} is no job's entry ({error}): remove it and submit the job again") from error

    def _hint(self, job: str) -> str:
        names = [name.removesuffix(".json") for state in (OPEN, CLOSED) for name in self._folder.names(state)]
        close = difflib.get_close_matches(job, names, n=1, cutoff=0.6)
        if close:
            return f"; did you mean {close[0]!r}?"
        shown = ", ".join(sorted(set(names))[:MOST_SHOWN]) + (", ..." if len(set(names)) > MOST_SHOWN else "")
        return f"; its jobs: {shown or 'none'}"


def _name(state: str, job: str) -> str:
    return f"{state}/{job}.json"


def _dump(entry: Entry) -> bytes:
    return json.dumps(dataclasses.asdict(entry), indent=1).encode()
