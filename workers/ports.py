"""What the engine asks of those around it: which models may run, and which requests wait. Each with the answer of a local run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from ..adapters.contract import Adapter
from .parts import Chosen, Items


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
