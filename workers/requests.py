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

import pyarrow as pa

from ..adapters import Adapter
from ..config.errors import BadMessage, LadingError, ModelError, UsageError
from ..config.failpoints import failpoint
from ..config.recipe import Recipe
from ..schedulers.messages import Message, Request, RequestOptions, decode
from ..schedulers.outages import patiently
from ..schedulers.queues import Lease, Queue
from ..schedulers.results import Failure
from .answers import Answers, Group, Member
from .leases import Leases
from .packer import Packing
from .parts import Chosen, Items, cost_of

log = logging.getLogger(__name__)

WAIT_S = 0.5  # for a message, before looking again whether to stop
PULL_BYTES = 1 << 20
DEATHS = 3  # of processes that ran a request alone, then it goes to the dead letters
BUDGETS_AHEAD = 4  # batches' worth of prepared requests; what is beyond stays in the queue, for other workers

Models = Callable[
    [str, str, RequestOptions], tuple[Recipe, Adapter]
]  # verb, model, options; raises ModelError, UsageError


@dataclasses.dataclass(slots=True)
class _Line:
    """The groups of one model that wait, and how much the device has done for it."""

    groups: deque[Group] = dataclasses.field(default_factory=deque)
    served: float = 0.0


class RequestLane:
    """See engine.Requests. One thread pulls and prepares, the engine's takes, a third answers (Answers)."""

    def __init__(
        self,
        queue: Queue,
        leases: Leases,
        models: Models,
        answers: Answers,
        *,
        budget: int,
        most: int,
        bell: threading.Event,
        stopping: threading.Event,
    ) -> None:
        """`budget`: cost of a batch; `most`: messages pulled at once; `bell` is rung when something waits for the engine."""
        self.alone: deque[tuple[Lease, Message]] = deque()  # under suspicion
        self._queue, self._leases, self._models, self._answers = queue, leases, models, answers
        self._budget, self._most, self._bell, self._stopping = budget, most, bell, stopping
        self._lock = threading.Lock()
        self._lines: dict[int, _Line] = {}  # by id of the adapter
        self._waiting = 0  # cost
        self._room = threading.Event()
        self._thread = threading.Thread(target=self._pull_on, name="lading-requests", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        self._room.set()
        self._thread.join(timeout_s)

    # -- for the engine

    def take(self, budget: int) -> list[Chosen]:
        """See engine.Requests."""
        with self._lock:
            if not self._lines:
                return []
            key = min(self._lines, key=lambda one: self._lines[one].served)
            line = self._lines[key]
            chosen: list[Chosen] = []
            room = budget
            while line.groups and room > 0:
                group = line.groups[0]
                items = group.packing.fill(room) if chosen else group.packing.take()
                if not len(items):
                    break
                chosen.append((group, items))
                room = budget - cost_of(chosen)
                if not group.packing:
                    line.groups.popleft()
            cost = budget - room
            line.served += cost
            self._waiting -= cost
            if not line.groups:
                del self._lines[key]
        self._room.set()
        return chosen

    def completed(self, items: Items) -> None:
        """See engine.Requests."""
        assert isinstance(items, Group)
        self._leases.beat()
        self._answers.give(items)

    def run_alone(self, run: Callable[[Items], object]) -> None:
        """The oldest of those under suspicion, with nothing beside it; given up after DEATHS processes died of it."""
        lease, message = self.alone.popleft()
        deaths = self._queue.begin_alone(lease)
        if not deaths:
            self._leases.forget(self._queue, [lease])
        elif deaths > DEATHS:
            reason = f"{DEATHS} processes died while they ran this request alone"
            self._answers.fail([(lease, message)], Failure("RequestFailed", reason), ack=False)
            self._leases.bury(self._queue, lease, reason)
        elif (group := self._group([(lease, message)])) is not None:
            run(group)
            self._answers.give(group)

    # -- the pulling thread

    def _pull_on(self) -> None:
        while not self._stopping.is_set():
            try:
                self._pull()
            except LadingError as error:
                log.error("requests: %s", error)  # none that waiting would mend: say it, and not in a busy loop
                self._stopping.wait(1.0)

    def _pull(self) -> None:
        if self._waiting > BUDGETS_AHEAD * self._budget:
            self._room.clear()
            self._room.wait(WAIT_S)
            return
        pulled = patiently(lambda: self._queue.pull(self._most, PULL_BYTES), self._stopping)
        if not pulled:
            patiently(lambda: self._queue.wait(WAIT_S), self._stopping)
            return
        failpoint("requests.leased")
        self._leases.hold(self._queue, pulled)
        together: dict[tuple[object, ...], list[tuple[Lease, Message]]] = {}
        for lease in pulled:
            if (message := self._read(lease)) is None:
                continue
            if lease.suspect is not None:
                self.alone.append((lease, message))
                self._bell.set()
                continue
            asked: Request = message.body  # pyright: ignore[reportAssignmentType]  _read saw to it
            together.setdefault((asked.verb, asked.model, asked.options, bool(asked.into)), []).append((lease, message))
        for members in together.values():
            if (group := self._group(members)) is not None:
                self._enter(group)

    def _read(self, lease: Lease) -> Message | None:
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
        return message

    def _group(self, asked: list[tuple[Lease, Message]]) -> Group | None:
        """Prepared together; None where there is nothing to run, and they are answered."""
        first: Request = asked[0][1].body  # pyright: ignore[reportAssignmentType]
        try:
            recipe, adapter = self._models(first.verb, first.model, first.options)
        except (ModelError, UsageError) as error:
            self._answers.fail(asked, Failure(type(error).__name__, str(error)))
            return None
        members: list[Member] = []
        inputs: list[str] | list[tuple[str, str]] = []
        for lease, message in asked:
            request: Request = message.body  # pyright: ignore[reportAssignmentType]
            members.append(Member(lease, message, len(inputs), len(request.inputs)))
            inputs.extend(request.inputs)  # pyright: ignore[reportArgumentType]
        prepared = adapter.prepare(_columns(inputs, adapter.inputs))
        packing = Packing(prepared.costs, self._budget)
        group = Group(adapter, prepared, len(prepared.costs), recipe=recipe, members=members, packing=packing)
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
                line = self._lines[id(group.adapter)] = _Line(served=least)
            line.groups.append(group)
            self._waiting += cost
        self._bell.set()


def _columns(inputs: Sequence[str] | Sequence[tuple[str, str]], count: int) -> list[pa.Array]:
    if count == 1:
        return [pa.array(inputs, pa.string())]
    return [pa.array([one[place] for one in inputs], pa.string()) for place in range(count)]
