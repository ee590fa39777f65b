"""Every error a user can meet, as one tree. Who catches what:

* LadingError                 something the user is told in one or two sentences, without a traceback
  + UsageError                refused before any work; exit code 2
    - SpecError               the job spec: names file, key and the nearest valid spelling
    - ModelError              the checkpoint: missing, incomplete, or refused for safety
      . HubAway               it is on the hub, which does not answer, or the disk takes it not: try again; exit code 3
    - SourceError             the input: no such file, missing column, unreadable footer
    - OutputError             the output: made by another job, other schema or recipe, not writable
  + ShardError                one shard cannot be finished; it is marked failed with this reason
    - SourceChanged           an input is no longer what the plan's snapshot says
  + StopJob                   the whole run stops, what is published stays, the same command resumes; exit code 3
    - TooManyRejects          more rows were rejected than the policy lets pass
    - TableChanged            the table was dropped, restored or re-made under the job
  + BadMessage                a message that no worker can understand; it goes to the dead letters
  + RequestError              a request of an application, as its client sees it
    - RequestFailed           the worker refused or failed the whole request; says so in the worker's words
    - RequestTimeout          no answer in time; what nobody awaits is dropped, so asking again is safe
    - InputsFailed            some inputs failed; carries the results of the others
  + BrokerError               the broker cannot be reached, or refuses; what it holds stays, try again; exit code 3
    - QueueFull               it takes no more messages for now

Rows that fail are not exceptions: they are `Reject`s (pipelines/records.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LadingError(Exception):
    """Base of all; `str()` is the whole message for the user: what, where, and what to do."""

    exit_code = 1


class UsageError(LadingError):
    exit_code = 2


class SpecError(UsageError):
    pass


class ModelError(UsageError):
    pass


class HubAway(ModelError):
    exit_code = 3


class SourceError(UsageError):
    pass


class OutputError(UsageError):
    pass


class ShardError(LadingError):
    exit_code = 3


class NotNow(ShardError):
    """Nothing is wrong with the shard: what it needs may be there later, and others should not wait for that."""


class SourceChanged(ShardError):
    pass


class StopJob(LadingError):
    exit_code = 3


class TooManyRejects(StopJob):
    pass


class TableChanged(StopJob):
    pass


class BadMessage(LadingError):
    """`id` is the message's task id, "" if it could not be read: whoever awaits that id can be told."""

    def __init__(self, reason: str, id: str = "") -> None:
        super().__init__(reason)
        self.id = id


class BrokerError(LadingError):
    exit_code = 3


class QueueFull(BrokerError):
    pass


class RequestError(LadingError):
    exit_code = 3


class RequestFailed(RequestError):
    """`kind` is the name of the worker's error: a class of this module (UsageError, ModelError), or another's."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class RequestTimeout(RequestError):
    pass


class InputsFailed(RequestError):
    """`errors` names each failed input: its index in the call, a code for programs, a detail for people.

    `result` is what the call would have returned; at the failed places it holds zeros, or no entities.
    """

    def __init__(self, message: str, errors: Sequence[tuple[int, str, str]] = (), result: object = None) -> None:
        super().__init__(message)
        self.errors, self.result = errors, result


def nearest(word: str, valid: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the valid spelling nearest to `word`, else the list of valid ones."""
    words = sorted(valid)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(words)}"
