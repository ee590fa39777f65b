"""The Celery worker of a pool: `celery -A lading.workers.app worker`, which is what `lading worker` starts.

Celery serves the pool's control queue, in its main thread (solo pool); the batch consumer stands beside it as a step of the worker,
and pulls shards and requests itself (docs/architecture.md, decisions 3 and 19). LADING_POOL names the pool, LADING_DEVICE its device.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from celery import Celery, bootsteps
from celery.signals import setup_logging
from celery.worker import state

from ..config import logs
from ..config.errors import LadingError, UsageError
from ..config.events import tell
from ..config.settings import load as load_settings
from ..schedulers import celery_settings, pools
from ..schedulers.connection import Broker
from . import control

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("lading.workers.app")  # also where this module is the program

LAST_BATCH_S = 10.0  # that a batch may still take after everything was given back
DEFECT = 70  # exit code of a process in which a thread failed on something that nobody foresaw (EX_SOFTWARE)


def _configuration() -> dict[str, Any]:
    """Celery's. A setting that cannot be is said in one line, here where Celery would print a traceback."""
    try:
        return celery_settings.of(load_settings(), os.environ.get("LADING_POOL", ""))
    except LadingError as error:
        _refuse(error)


def _refuse(error: LadingError) -> NoReturn:
    """End as `lading` does; exit code 2 tells a supervisor that it will not start however often it is tried."""
    print(f"lading: {logs.redacted(str(error))}", file=sys.stderr)
    raise SystemExit(error.exit_code) from error


app = Celery("lading", set_as_current=False)
app.config_from_object(_configuration())
for _name, _task in control.TASKS.items():
    app.task(name=_name)(_task)


class Alone(app.Worker):  # pyright: ignore
    """Celery's worker without what talks to other workers: it needs rights that an ACL should not give, and a broker that goes away
    while it does ends the process."""

    def prepare_args(self, **given: Any) -> dict[str, Any]:
        return {**given, "without_gossip": True, "without_mingle": True, "without_heartbeat": True}


app.Worker = Alone


class Consume(bootsteps.StartStopStep):
    """Starts the batch consumer before Celery's own, and ends it when the process is told to stop: at once, and not only when
    Celery's thread has finished a control task. What remains for Celery is to wait for that."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **given: Any) -> None:
        super().__init__(parent, **given)
        self._asked, self._hurry = threading.Event(), threading.Event()
        self._ending: threading.Thread | None = None

    def start(self, parent: Any) -> None:
        try:
            worker, grace_s = _worker()
        except LadingError as error:
            _refuse_at_once(error)
        self._ending = threading.Thread(target=self._end, args=(worker, grace_s), name="lading-end", daemon=True)
        worker.start()
        self._ending.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def stop(self, parent: Any) -> None:
        """Celery is ending; so do we, if nobody asked yet."""
        self._asked.set()
        if self._ending is not None:
            self._ending.join()

    def terminate(self, parent: Any) -> None:
        self._hurry.set()
        self.stop(parent)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """The first SIGINT or SIGTERM: finish what fits into the grace. A second one cuts that short, however soon it comes."""
        if self._asked.is_set():
            self._hurry.set()
        else:
            self._asked.set()
            state.should_stop = 0  # the exit code; Celery's loop looks at it

    def _end(self, worker: Worker, grace_s: float) -> None:
        self._asked.wait()
        note = "finishing what was begun; once more, and it is given back at once"
        tell(log, "worker stopping", worker=worker.name, note=note)
        worker.stop(grace_s, self._hurry)
        if worker.engine.running:
            threading.Thread(target=_leave_what_hangs, args=(worker,), daemon=True).start()


def _worker() -> tuple[Worker, float]:
    """The batch consumer that the settings ask for, and its grace. Raises UsageError."""
    from ..pipelines.registry import Registry
    from ..schedulers.endpoint import Endpoint
    from .metering import WorkerMeter
    from .programs import check_kind
    from .worker import Worker

    settings = load_settings()
    pool = pools.find(pools.load(), celery_settings.pool_name(os.environ.get("LADING_POOL", "")))
    device = os.environ.get("LADING_DEVICE", "") or pool.device
    check_kind(pool, device)
    threading.excepthook = _end_at_once
    tell(log, "worker starting", pool=pool.name, device=device)
    broker = Broker.connect(settings.broker_url)
    registry = Registry(settings.jobs)
    meter = WorkerMeter(pool, settings) if settings.metrics_port else None
    worker = Worker(pool, settings, broker, registry, device=device, on_end=_give_up, on_idle=_ask_to_end, meter=meter)
    logs.bind(worker=worker.name)
    if meter is not None:
        where, told = (settings.metrics_bind, settings.metrics_port), meter.book.registry
        Endpoint(*where, told, unhealthy=worker.unhealthy, unready=worker.unready)
    return worker, settings.grace_s


app.steps["worker"].add(Consume)  # pyright: ignore[reportOptionalSubscript]


@setup_logging.connect
def _set_up_logs(*, loglevel: int, logfile: str | None = None, **_: Any) -> None:
    """In place of Celery's own. Others say at most what Celery's -l INFO lets them: their debugging shows headers and credentials."""
    logs.setup(loglevel, others=max(loglevel, logging.INFO), form=load_settings().log_format, file=logfile or "")
    logs.bind(pool=celery_settings.pool_name(os.environ.get("LADING_POOL", "")))


def _give_up(why: str) -> None:
    """End a process whose device is stuck, or lost. Its shards are with others by now; what a stuck one was running counts as a death."""
    tell(log, "device lost", why=f"{why}; this process ends")
    os._exit(DEFECT)


def _ask_to_end() -> None:
    """As whoever stops workers does, so that there is one way to end; to the main thread, which may be waiting in a call."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)


def _leave_what_hangs(worker: Worker) -> None:
    """Python waits for the device's thread before it ends a process: not for ever."""
    batches = worker.engine.gauges.batches
    time.sleep(LAST_BATCH_S)
    if worker.engine.running and worker.engine.gauges.batches == batches:
        tell(log, "worker left hanging", worker=worker.name, why="its last batch does not end, so it is left")
        os._exit(0)


def _refuse_at_once(error: LadingError) -> NoReturn:
    """As `_refuse`, from where Celery would end with 0 instead."""
    os.write(2, f"lading: {logs.redacted(str(error))}\n".encode())
    os._exit(error.exit_code)


def _end_at_once(failed: threading.ExceptHookArgs) -> None:
    """A thread without which the worker would hang: end the process, whose leases run out and whose shards then run alone.

    What can be said to a user (a broker that refuses this user) will not be better for another start.
    """
    if isinstance(failed.exc_value, LadingError):
        tell(log, "worker refused", why=failed.exc_value)
        os._exit(UsageError.exit_code)
    if failed.exc_type is not SystemExit:
        tell(log, "thread died", failed.exc_value, thread=failed.thread and failed.thread.name)
        os._exit(DEFECT)


if __name__ == "__main__":
    _set_up_logs(loglevel=logging.WARNING)  # what is warned of until Celery knows its level
    app.worker_main(sys.argv[1:])
