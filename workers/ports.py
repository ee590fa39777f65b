"""What the engine asks of those around it, or tells them: which models may run, which requests wait, what was done. Each with that of a local run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from ..adapters.contract import Adapter
from ..pipelines.records import Receipt
from ..schedulers.results import Result
from .parts import Chosen, Items

if TYPE_CHECKING:
    from ..pipelines.sweep import Swept
    from .worker import Worker


class Models(Protocol):
    """Which models may run: those that are on the device (residents.py)."""

    def hold(self, adapter: Adapter) -> bool:
        """Whether a batch of it may run now, and then until `release`. If not, it is on its way, or in trouble."""
        ...

    def release(self, adapter: Adapter) -> None: ...

    def holding(self, adapter: Adapter) -> AbstractContextManager[None]:
        """The same for one batch, waiting for the model. Raises ModelError where it cannot come."""
        ...

    def working(self, wanted: Iterable[Adapter]) -> None:
        """Told which models have work that waits."""
        ...

    def trouble(self, adapter: Adapter) -> str:
        """Why it cannot come; "": nothing is known against it."""
        ...

    def delay(self, adapter: Adapter) -> str:
        """Why it has not come for a while, though it may: whoever can do something else should; "": nothing of the kind."""
        ...

    def make_room(self, adapter: Adapter) -> bool:
        """The device has no memory left for a single item of it: whether another model went."""
        ...

    def lose(self, why: str) -> None:
        """The device takes nothing any more: whoever waits for a model is to hear it."""
        ...


class AllThere:
    """A local run's one model, which is loaded before and stays."""

    def hold(self, adapter: Adapter) -> bool:
        return True

    def release(self, adapter: Adapter) -> None:
        pass

    def holding(self, adapter: Adapter) -> AbstractContextManager[None]:
        return nullcontext()

    def working(self, wanted: Iterable[Adapter]) -> None:
        pass

    def trouble(self, adapter: Adapter) -> str:
        return ""

    def delay(self, adapter: Adapter) -> str:
        return ""

    def make_room(self, adapter: Adapter) -> bool:
        return False

    def lose(self, why: str) -> None:
        pass


class Requests(Protocol):
    """Work that does not wait for a window: what clients wait for."""

    def adapters(self) -> list[Adapter]:
        """Of which models requests wait."""
        ...

    def take(self, may_run: Callable[[Adapter], bool], budget_of: Callable[[Adapter], int]) -> list[Chosen]:
        """The items that are to run next, of one adapter and at most its budget in cost (an item above it alone); [] if none can.

        `may_run` is asked of one model after the other, and the one it lets run is held from then on.
        """
        ...

    def refuse(self, adapter: Adapter, why: str) -> None:
        """What waits for a model that cannot come fails."""
        ...

    def completed(self, items: Items) -> None:
        """Every item has its result or its failure."""
        ...


class NoRequests:
    """A local run's."""

    def adapters(self) -> list[Adapter]:
        return []

    def take(self, may_run: Callable[[Adapter], bool], budget_of: Callable[[Adapter], int]) -> list[Chosen]:
        return []

    def refuse(self, adapter: Adapter, why: str) -> None:
        raise AssertionError("nothing was taken")

    def completed(self, items: Items) -> None:
        raise AssertionError("nothing was taken")


class Meter:
    """Told of what is done, for whoever watches; here nobody does (metering.py). Batches are the finest grain. Any thread may tell."""

    def watch(self, worker: Worker) -> None:
        """Whose work it is, all of it there and nothing begun."""

    def swept(self, swept: Swept | None, seconds: float) -> None:
        """A pass over queues and jobs; None: another process leads."""

    def batch(self, adapter: Adapter, cost: int, offered: int) -> None:
        """A batch went through the device. `offered`: the cost that it had room for."""

    def published(
        self, op: str, sink: str, receipt: Receipt, *, ours: bool, seconds: Mapping[str, float], waited_s: float | None
    ) -> None:
        """A shard has its marker, `ours`, or it had one before. `seconds`: of its stages; `waited_s`: from being sent to being taken up."""

    def unpublished(self, op: str, outcome: str) -> None:
        """A shard that was begun ended without one: given_back, left."""

    def told(self, told: Iterable[tuple[str, float, Result]]) -> None:
        """Requests heard their end: verb ("" where it did not say), when it was sent (0: likewise), what it heard."""

    def answered(self, op: str, inputs: int, errors: Iterable[str]) -> None:
        """Of requests that were answered: how many inputs in all, and the reject codes of those without a result."""

    def committed(self, sink: str, seconds: float, conflicts: int) -> None:
        """Rows came into view."""

    def upserted(self, sink: str, rows: int, size: int) -> None:
        """Those that no receipt told of: of requests. size: bytes of their files."""

    def folded(self, seconds: float) -> None:
        """A pass over all that a job has published."""

    def loaded(self, model: str, source: str, seconds: float) -> None:
        """A model came onto the device from `source`: host, disk."""

    def not_loaded(self, kind: str) -> None:
        """One did not: permanent, transient."""
