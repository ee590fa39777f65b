"""Runs the stages of the engine beside each other: each in its own thread, a bounded distance ahead."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass(slots=True)
class Clock:
    """Wall and CPU seconds of one stage, its waiting left out. CPU is the stage's own thread alone."""

    wall: float = 0.0
    cpu: float = 0.0
    last: float = 0.0  # wall seconds of the newest measurement
    _since: tuple[float, float] = (0.0, 0.0)

    def __enter__(self) -> Clock:
        self._since = (time.perf_counter(), time.thread_time())
        return self

    def __exit__(self, *_: object) -> None:
        self.last = time.perf_counter() - self._since[0]
        self.wall += self.last
        self.cpu += time.thread_time() - self._since[1]

    def add(self, other: Clock) -> None:
        """Count what another clock measured, in another thread perhaps."""
        self.wall, self.cpu, self.last = self.wall + other.wall, self.cpu + other.cpu, other.wall


@dataclasses.dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


class Ahead(Iterator[T]):
    """Iterates `source()` in a thread of its own, at most `depth` items ahead of the consumer.

    Order is kept. An exception of the source is raised at the consumer, after the items before it. `close`
    (or leaving the `with` block) ends the thread also when the consumer stops early.
    """

    def __init__(
        self, name: str, source: Callable[[], Iterator[T]], depth: int, bell: threading.Event | None = None
    ) -> None:
        """`bell` is set whenever there is an item, or the end, for a consumer that waits for other things too and polls."""
        self.ended = False  # seen by `poll`: nothing more will come
        self._bell = bell or threading.Event()
        self._items: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._pump, args=(source,), name=f"lading-{name}", daemon=True)
        self._thread.start()

    def _pump(self, source: Callable[[], Iterator[T]]) -> None:
        end = _End(None)
        items = source()
        try:
            for item in items:
                if not self._put(item):
                    break
        except BaseException as error:  # carried over to the consumer's thread and raised there
            end = _End(error)
        self._put(end)

    def _put(self, item: T | _End) -> bool:
        while not self._closed.is_set():
            try:
                self._items.put(item, timeout=0.2)
                self._bell.set()
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> T:
        item = self._items.get()
        if isinstance(item, _End):
            self._items.put(item)  # asked again, it has still ended
            if item.error is not None:
                raise item.error
            raise StopIteration
        return item

    def poll(self) -> T | None:
        """The next item if there is one by now. None: not yet, or never (`ended`)."""
        try:
            item = self._items.get_nowait()
        except queue.Empty:
            return None
        if not isinstance(item, _End):
            return item
        self.ended = True
        if item.error is not None:
            raise item.error
        return None

    def close(self) -> None:
        """Let the thread end; it finishes the item it is working on. Close a chain from its source on."""
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(queue.Empty):  # a consumer in another thread may be faster
            while True:
                self._items.get_nowait()
        self._items.put_nowait(_End(None))  # wakes a consumer in another thread

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
