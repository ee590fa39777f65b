"""Requests of applications on their way through the engine: what was pulled together is prepared together, and answered together.

Requests for one recipe share batches. Between models the device's work is shared evenly: the one that has had least so far is
next, so that a model that everybody asks for does not starve the others.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pyarrow as pa

from ..adapters import Adapter
from ..config.errors import BadMessage, LadingError, ModelError
from ..config.events import tell
from ..config.failpoints import failpoint
from ..config.recipe import Recipe
from ..schedulers.messages import Request, RequestOptions, decode
from ..schedulers.outages import patiently
from ..schedulers.queues import Lease, Queue
from ..schedulers.results import Failure
from .answers import Answers
from .groups import Asked, Group, Member
from .leases import Leases
from .packer import Packing
from .parts import Chosen, Items, cost_of

log = logging.getLogger(__name__)

WAIT_S = 0.5  # for a message, before looking again whether to stop
DEATHS = 3  # of processes that ran a request alone, then it goes to the dead letters
BUDGETS_AHEAD = 4  # batches' worth of prepared requests; what is beyond stays in the queue, for other workers

OPENERS = 2  # threads that look for models nobody asked for before: one that is downloaded holds up no other
UNOPENED = 2  # pulls' worth of requests that wait for such models

_Asked = tuple[
    str, str, RequestOptions, bool
]  # verb, model, options, whether into a table: what requests of one group share


class Models(Protocol):
    """models.RequestedModels."""

    def __call__(self, verb: str, model: str, options: RequestOptions) -> tuple[Recipe, Adapter, dict[str, Any]]:
        """Raises ModelError, UsageError."""
        ...

    def known(self, verb: str, model: str, options: RequestOptions) -> bool:
        """Whether the call takes no time."""
        ...


@dataclasses.dataclass(slots=True)
class _Line:
    """The groups of one model that wait, and how much the device has done for it."""

    adapter: Adapter
    groups: deque[Group] = dataclasses.field(default_factory=deque)
    served: float = 0.0


class RequestLane:
    """See engine.Requests. One thread pulls and prepares, the engine's takes, a third answers (Answers)."""

    def __init__(
        self,
        queue: Queue,
        leases: Leases,
        models: Models,
        check_table: Callable[[str], None],
        answers: Answers,
        *,
        budget: int,
        most: int,
        bell: threading.Event,
        stopping: threading.Event,
    ) -> None:
        """`check_table` raises UsageError for a table that this worker does not write to; `budget`: cost of a batch; `most`: messages pulled at once; `bell` is rung when something waits for the engine."""
        self.alone: deque[Asked] = deque()  # under suspicion
        self._queue, self._leases, self._answers = queue, leases, answers
        self._models, self._check_table = models, check_table
        self._budget, self._most, self._bell, self._stopping = budget, most, bell, stopping
        self._lock = threading.Lock()
        self._lines: dict[int, _Line] = {}  # by id of the adapter
        self._waiting = 0  # cost
        self._away = False  # whether some of that waits for a model that is not on the device: others' requests are to be seen behind it
        self._opening: dict[_Asked, list[Asked]] = {}
        self._openers = ThreadPoolExecutor(OPENERS, thread_name_prefix="lading-open")
        self._room = threading.Event()
        self._thread = threading.Thread(target=self._pull_on, name="lading-requests", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        self._room.set()
        self._openers.shutdown(wait=False, cancel_futures=True)
        self._thread.join(timeout_s)

    # -- for the engine

    def adapters(self) -> list[Adapter]:
        """See engine.Requests."""
        with self._lock:
            return [line.adapter for line in self._lines.values()]

    def take(self, may_run: Callable[[Adapter], bool], budget_of: Callable[[Adapter], int]) -> list[Chosen]:
        """See engine.Requests."""
        with self._lock:
            turns = sorted(self._lines, key=lambda one: self._lines[one].served)
            key = next((one for one in turns if may_run(self._lines[one].adapter)), None)
            self._away = key is None or key != turns[0]
            if key is None:
                return []
            line = self._lines[key]
            chosen: list[Chosen] = []
            room = budget = budget_of(line.adapter)
            while line.groups and room > 0:
                group = line.groups[0]
                items = group.packing.fill(room) if chosen else group.packing.take(budget)
                if not len(items):
                    break
                chosen.append((group, items))
                room -= cost_of(chosen[-1:])
                if not group.packing:
                    line.groups.popleft()
            cost = budget - room
            line.served += cost
            self._waiting -= cost
            if not line.groups:
                del self._lines[key]
        self._room.set()
        return chosen

    def refuse(self, adapter: Adapter, why: str) -> None:
        """See engine.Requests."""
        with self._lock:
            line = self._lines.pop(id(adapter), None)
            groups = list(line.groups) if line else []
            self._waiting -= sum(group.packing.cost for group in groups)
        self._room.set()
        for group in groups:
            self._answers.fail([member.asked for member in group.members], Failure("ModelError", why))

    def completed(self, items: Items) -> None:
        """See engine.Requests."""
        assert isinstance(items, Group)
        self._leases.beat()
        self._answers.give(items)

    def run_alone(self, run: Callable[[Items], object]) -> None:
        """The oldest of those under suspicion, with nothing beside it; given up after DEATHS processes died of it."""
        asked = self.alone[0]
        deaths = self._queue.begin_alone(asked.lease)
        self.alone.popleft()
        if not deaths:
            self._leases.forget(self._queue, [asked.lease])
        elif deaths > DEATHS:
            reason = f"{DEATHS} processes died while they ran this request alone"
            self._answers.fail_id(asked.id, Failure("RequestFailed", reason), asked.request.verb)
            self._leases.bury(self._queue, asked.lease, reason)
        elif (group := self._group([asked])) is not None:
            try:
                run(group)
            except ModelError as error:
                if not self._stopping.is_set():  # else it is given back
                    self._answers.fail([asked], Failure("ModelError", str(error)))
                return
            self._answers.give_now(group)

    # -- the pulling thread

    def _pull_on(self) -> None:
        while not self._stopping.is_set():
            try:
                self._pull()
            except LadingError as error:
                tell(log, "requests stalled", why=error)  # none that waiting would mend: say it, and not in a busy loop
                self._stopping.wait(1.0)

    def _pull(self) -> None:
        self._room.clear()  # before the look: what the engine takes from now on is heard
        # Of every model that some wait for: those whose model is not on the device keep none from one that is.
        lines = max(len(self._lines), 1) + self._away
        full = self._waiting > BUDGETS_AHEAD * self._budget * lines
        if full or self._answers.behind or sum(map(len, list(self._opening.values()))) > UNOPENED * self._most:
            self._room.wait(WAIT_S)
            return
        pulled = patiently(lambda: self._leases.pull(self._queue, self._most), self._stopping)
        if not pulled:
            patiently(lambda: self._queue.wait(WAIT_S), self._stopping)
            return
        failpoint("requests.leased")
        together: dict[_Asked, list[Asked]] = {}
        for lease in pulled:
            if (asked := self._read(lease)) is None:
                continue
            if lease.suspect is not None:
                self.alone.append(asked)
                self._bell.set()
                continue
            request = asked.request
            key = (request.verb, request.model, request.options, bool(request.into))
            together.setdefault(key, []).append(asked)
        for key, members in together.items():
            if self._models.known(*key[:3]):
                self._begin(members)
            else:
                self._open(key, members)

    def _begin(self, members: list[Asked]) -> None:
        if (group := self._group(members)) is not None:
            self._enter(group)

    def _open(self, key: _Asked, members: list[Asked]) -> None:
        """Once its model is found, which may have to be downloaded."""
        with self._lock:
            if others := self._opening.get(key):
                others.extend(members)
                return
            self._opening[key] = list(members)
        self._openers.submit(self._look, key)

    def _look(self, key: _Asked) -> None:
        failure: Failure | None = None
        self._leases.loading(True)
        try:
            self._models(*key[:3])
        except Exception as error:  # of these requests alone
            if not isinstance(error, LadingError):
                tell(log, "model raised", error, model=key[1])
            failure = Failure(type(error).__name__, str(error))
        finally:
            self._leases.loading(False)
        with self._lock:
            members = self._opening.pop(key)
        self._room.set()
        if self._stopping.is_set():
            return  # their leases are given back
        if failure is not None:
            self._answers.fail(members, failure)
        else:
            self._begin(members)

    def _read(self, lease: Lease) -> Asked | None:
        try:
            message = decode(lease.raw)
            if not isinstance(message.body, Request):
                raise BadMessage("a shard, in the queue of requests")
        except BadMessage as error:
            if error.id:
                self._answers.fail_id(error.id, Failure("BadMessage", str(error)))
            self._leases.bury(self._queue, lease, str(error))
            return None
        if message.expires and message.expires < time.time():  # whoever waited for it has gone
            self._leases.done(self._queue, [lease])
            return None
        asked = Asked(lease, message.id, message.body, message.sent)
        if asked.request.into:
            try:
                self._check_table(asked.request.into)
            except LadingError as error:
                self._answers.fail([asked], Failure(type(error).__name__, str(error)))
                return None
        return asked

    def _group(self, asked: list[Asked]) -> Group | None:
        """Prepared together; None where there is nothing to run, and they are answered."""
        first = asked[0].request
        try:
            recipe, adapter, model = self._models(first.verb, first.model, first.options)
        except LadingError as error:
            self._answers.fail(asked, Failure(type(error).__name__, str(error)))
            return None
        members: list[Member] = []
        inputs: list[str | tuple[str, str]] = []
        for one in asked:
            members.append(Member(one, len(inputs), len(one.request.inputs)))
            inputs.extend(one.request.inputs)
        prepared = adapter.prepare(_columns(inputs, adapter.inputs))
        packing = Packing(prepared.costs)
        group = Group(
            adapter,
            prepared,
            len(prepared.costs),
            recipe=recipe,
            model=model,
            members=members,
            packing=packing,
            into=bool(first.into),
        )
        if not group.missing:
            self._answers.give(group)
            return None
        return group

    def _enter(self, group: Group) -> None:
        cost = int(group.prepared.costs.sum())
        with self._lock:
            line = self._lines.get(id(group.adapter))
            if line is None:
                # It begins level with the least served of those that wait: no credit for the time when nobody asked.
                least = min((one.served for one in self._lines.values()), default=0.0)
                line = self._lines[id(group.adapter)] = _Line(group.adapter, served=least)
            line.groups.append(group)
            self._waiting += cost
        tell(log, "requests begun", model=group.model["model"], requests=len(group.members))
        self._bell.set()


def _columns(inputs: Sequence[str | tuple[str, str]], count: int) -> list[pa.Array]:
    if count == 1:
        return [pa.array(inputs, pa.string())]
    return [pa.array([one[place] for one in inputs], pa.string()) for place in range(count)]
