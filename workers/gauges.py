"""What the engine measured of itself. Plain numbers."""

from __future__ import annotations

import dataclasses

from .stages import Clock


@dataclasses.dataclass(slots=True)
class Gauges:
    """Over the engine's whole life."""

    read: Clock = dataclasses.field(default_factory=Clock)
    prepare: Clock = dataclasses.field(default_factory=Clock)
    run: Clock = dataclasses.field(default_factory=Clock)  # forward and pooling, the streams' seconds added up
    hand_out: Clock = dataclasses.field(default_factory=Clock)  # packing, results to rows
    streams: int = 1
    elapsed: float = 0.0  # seconds from the first row asked for to the last batch handed out
    items: int = 0
    rows: float = 0.0  # that these items are; a document counts by the share of its chunks
    cost: int = 0  # tokens, in the adapter's unit
    offered: int = 0  # budget of all batches: cost / offered is the fill ratio
    batches: int = 0
    out_of_memory: int = 0  # batches, or pieces of them, that the device had no memory for
    split: int = 0  # of these: halved
    too_large: int = 0  # of these: a single row, which became a reject

    def count(self, clock: Clock, cost: int, offered: int) -> None:
        """One batch."""
        self.run.add(clock)
        self.batches += 1
        self.cost += cost
        self.offered += offered

    @property
    def fill(self) -> float:
        return self.cost / self.offered if self.offered else 1.0

    @property
    def busy(self) -> float:
        """Share of the device's time, that of all its streams, spent in `run`."""
        return min(self.run.wall / (self.elapsed * self.streams), 1.0) if self.elapsed else 0.0

    @property
    def idle(self) -> float:
        """Seconds that the device had nothing to run."""
        return self.elapsed * (1 - self.busy)
