"""A batch on the device, whatever comes of it: on an error halves, down to the row that is to blame; without memory, smaller ones."""

from __future__ import annotations

import dataclasses
import logging
import threading

from ..adapters.contract import DeviceLost, OutOfMemory, Outputs
from ..config.events import tell
from .gauges import Gauges
from .limits import Limits
from .parts import Chosen, cost_of, halves
from .ports import Models

log = logging.getLogger(__name__)

ROOMS = 4  # other models that go for one item, at most: those with work come back, and would go again without end

Outcome = tuple[list[Chosen], Outputs | Exception]  # an exception is of a single item


@dataclasses.dataclass(slots=True)
class Attempts:
    """Streams share one."""

    models: Models
    limits: Limits
    gauges: Gauges
    running: set[int] = dataclasses.field(default_factory=set)  # threads that are in a batch

    def run(self, chosen: list[Chosen]) -> list[Outcome]:
        """Run the items; on an error halve them, down to the one that is to blame. Raises DeviceLost.

        Without memory: once more, as unused blocks were given back; then halves, and the model's batches stay that small; for a
        single item another model goes, as long as there is one, ROOMS times.
        """
        adapter, cost = chosen[0][0].adapter, cost_of(chosen)
        single = sum(len(items) for _, items in chosen) == 1
        tried = 0
        while single or cost <= self.limits.of(
            adapter.weights
        ):  # batches that were formed before may be too large by now
            self.running.add(threading.get_ident())
            try:
                found = adapter.run([(part.prepared, items) for part, items in chosen])
                self.limits.ran(adapter.weights, cost)
                return [(chosen, found)]
            except DeviceLost as error:
                self.models.lose(str(error))
                raise
            except OutOfMemory as error:
                tried += 1
                self.gauges.out_of_memory += 1
                if tried == 1 or (single and tried <= ROOMS + 1 and self.models.make_room(adapter)):
                    continue
                if single:
                    self.gauges.too_large += 1
                    return [(chosen, error)]
                self.gauges.split += 1
                self.limits.exhausted(adapter.weights, cost)
                tell(log, "batch out of memory", tokens=cost, why=error)
            except Exception as error:  # becomes a reject of the row that causes it, or stops the job
                if single:
                    return [(chosen, error)]
                tell(log, "batch failed", why=f"{type(error).__name__}: {error}")
            finally:
                self.running.discard(threading.get_ident())
            break
        left, right = halves(chosen)
        return self.run(left) + self.run(right)
