"""How large a model's batches may be: the budget, or what its device was found to have memory for. Pure."""

from __future__ import annotations

import dataclasses
import threading

GROW_AFTER = 64  # batches near the limit in a row before it is tried whether more fits by now
GROWTH = 1.25
NEAR = 0.75  # of the limit: a batch that shows that it holds


@dataclasses.dataclass(slots=True)
class _Found:
    limit: int
    good: int = 0  # batches near it since it last changed


class Limits:
    """Costs of batches, by model, which is called by its weights. Threads share one."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._found: dict[str, _Found] = {}

    def of(self, model: str) -> int:
        """Most that a batch of it may cost."""
        found = self._found.get(model)
        return self.budget if found is None else found.limit

    def learned(self) -> dict[str, int]:
        """The limits that are below the budget."""
        with self._lock:
            return {model: found.limit for model, found in self._found.items()}

    def exhausted(self, model: str, cost: int) -> None:
        """There was no memory for a batch of this cost: from now on half of it."""
        with self._lock:
            limit = min(self.of(model), max(cost // 2, 1))
            self._found[model] = _Found(limit)

    def ran(self, model: str, cost: int) -> None:
        """A batch ran. What was short may be there again, as others share the device: after a while the limit grows, a step at a time."""
        if model not in self._found:
            return
        with self._lock:
            found = self._found.get(model)
            if found is None:  # another thread's batch was the last that it took
                return
            found.good += cost >= NEAR * found.limit
            if found.good >= GROW_AFTER:
                found.limit, found.good = min(int(found.limit * GROWTH) + 1, self.budget), 0
            if found.limit >= self.budget:
                del self._found[model]
