from __future__ import annotations

import dataclasses
import json

from ..config.errors import UsageError
from .folder import open_folder


class UnknownJob(UsageError):
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    job: str
    output: str
    pool: str
    recipe: str
    priority: int = 0
    created: float = 0.0


class Registry:
    def __init__(self, folder):
        self.folder = folder

    @classmethod
    def at(cls, root):
        return cls(open_folder(str(root)))

    def add(self, entry):
        self.folder.put(f"open/{entry.job}.json", json.dumps(dataclasses.asdict(entry)).encode())

    def find(self, job):
        stored = self.folder.read(f"open/{job}.json") or self.folder.read(f"closed/{job}.json")
        if stored is None:
            raise UnknownJob(f"no job {job}")
        return Entry(**json.loads(stored))

    def close(self, job):
        stored = self.folder.read(f"open/{job}.json")
        if stored:
            self.folder.put(f"closed/{job}.json", stored)
            self.folder.delete(f"open/{job}.json")
