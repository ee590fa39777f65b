"""The series of the broker and of all pools' queues, read from Redis at each scrape, so that none is older than it looks. Changes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ..config.errors import BrokerError
from ..config.events import tell
from ..config.metrics import EXPORTER, Book, Sample
from .connection import Broker
from .outages import translated
from .pools import Pools
from .sweeping import total

log = logging.getLogger(__name__)

TIMEOUT_S = 3.0  # for a reply
PATIENCE_S = 6.0  # for all of them: Prometheus waits for ten seconds


class Exporter:
    """Scrapes may come at the same time."""

    def __init__(self, broker: Broker, pools: Pools) -> None:
        self._broker, self._pools = broker, pools
        self._untold = ""  # why the broker did not answer, as it was said last
        self.book = Book(EXPORTER, reading=[one.name for one in EXPORTER], read=self._read)

    def unready(self) -> str:
        """Why there would be nothing to scrape, "" if there were."""
        try:
            self._broker.check()
        except BrokerError:
            return "broker: not reached"  # where it is, is not for whoever may scrape; the log says why
        return ""

    def _read(self) -> list[Sample]:
        """All of it, or that the broker is not there."""
        try:
            found = list(self._look(time.monotonic() + PATIENCE_S))
        except BrokerError as error:
            if str(error) != self._untold:
                tell(log, "queues unknown", why=error)
            self._untold = str(error)
            return [("redis_up", 0, {})]
        self._untold = ""
        return [("redis_up", 1, {}), *found]

    def _look(self, until: float) -> Iterator[Sample]:
        yield from _server(self._info())
        for name, pool in self._pools.items():
            yield "pool_max_workers", pool.max_workers, {"pool": name}
            yield "pool_workers", self._broker.workers(name), {"pool": name}
            if (left := total(self._broker, name)) is not None:
                yield "shards_left", left, {"pool": name}
            for queue, key in (("shards", pool.shards), ("requests", pool.requests)):
                counts, labels = self._broker.queue(key).counts(), {"pool": name, "queue": queue}
                yield "queue_depth", counts.waiting, labels
                yield "queue_inflight", counts.in_flight, labels
                yield "queue_oldest_age_seconds", counts.oldest_age_s or 0.0, labels
                yield "dead_letters", counts.dead, labels
            if time.monotonic() > until:
                raise BrokerError(f"the broker at {self._broker.url} answers too slowly: {PATIENCE_S:.0f} s are over")

    def _info(self) -> Mapping[str, Any]:
        client: Any = self._broker.client
        with translated(self._broker.url):
            return client.info()


def _server(info: Mapping[str, Any]) -> Iterator[Sample]:
    yield "redis_memory_used_bytes", info["used_memory"], {}
    yield "redis_memory_max_bytes", info["maxmemory"], {}
    yield "redis_noeviction", info["maxmemory_policy"] == "noeviction", {}
    yield "redis_evicted_keys_total", info["evicted_keys"], {}
    yield "redis_aof_enabled", info["aof_enabled"], {}
