"""The Celery worker of a pool: `celery -A lading.workers.app worker`, which is what `lading worker` starts.

Celery serves the pool's control queue, in its main thread (solo pool); the batch consumer stands beside it as a step of the worker,
and pulls shards and requests itself (docs/architecture.md, decision 3). LADING_POOL names the pool, LADING_DEVICE its device.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import traceback
from types import FrameType
from typing import Any

from celery import Celery, bootsteps
from celery.signals import worker_init

from ..config.settings import load as load_settings
from ..schedulers import celery_settings, pools
from ..schedulers.connection import Broker

log = logging.getLogger(__name__)

DEFECT = 70  # exit code of a process in which a thread failed on something that nobody foresaw (EX_SOFTWARE)

app = Celery("lading", set_as_current=False)
app.config_from_object(celery_settings.of(load_settings(), os.environ.get("LADING_POOL", "")))


class Consume(bootsteps.StartStopStep):
    """Starts the batch consumer before Celery's own, and ends it after."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **given: Any) -> None:
        super().__init__(parent, **given)
        self.worker: Any = None

    def start(self, parent: Any) -> None:
        from ..pipelines.registry import Registry
        from .worker import Worker

        settings = load_settings()
        pool = pools.find(pools.load(), celery_settings.pool_name(os.environ.get("LADING_POOL", "")))
        threading.excepthook = _end_at_once
        broker = Broker.connect(settings.broker_url)
        self.worker = Worker(
            pool, settings, broker, Registry(settings.jobs), device=os.environ.get("LADING_DEVICE", "")
        )
        self.worker.start()

    def stop(self, parent: Any) -> None:
        """Celery is told to stop (SIGTERM, or Ctrl-C): finish what fits into the grace. A second signal cuts that short."""
        worker, self.worker = self.worker, None
        if worker is None:
            return
        hurry = threading.Event()

        def ask(number: int, frame: FrameType | None) -> None:
            hurry.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, ask)
        worker.stop(load_settings().grace_s, hurry)

    def terminate(self, parent: Any) -> None:
        worker, self.worker = self.worker, None
        if worker is not None:
            hurry = threading.Event()
            hurry.set()
            worker.stop(0.0, hurry)


app.steps["worker"].add(Consume)  # pyright: ignore[reportOptionalSubscript]


@worker_init.connect
def _name(**_: Any) -> None:
    log.info("pool %s", celery_settings.pool_name(os.environ.get("LADING_POOL", "")))


def _end_at_once(failed: threading.ExceptHookArgs) -> None:
    """A thread without which the worker would hang: end the process, whose leases run out and whose shards then run alone."""
    if failed.exc_type is not SystemExit:
        traceback.print_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
        os._exit(DEFECT)
