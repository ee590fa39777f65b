"""The process that owns a device: takes shards and requests off its pool's queues, runs them in one engine, and gives account.

Threads: one takes requests, one reads and one prepares shards, one a stream of the device runs batches, one writes, one answers,
one folds, one keeps the leases alive. The order in which a shard's steps happen is DESIGN's: rows staged, marker published,
lease acknowledged; the fold may be anybody's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .. import adapters
from ..adapters import DeviceLost
from ..adapters.devices import available
from ..config import roots
from ..config.errors import BrokerError, LadingError, StopJob
from ..config.events import tell
from ..config.settings import Settings
from ..pipelines.registry import Registry
from ..pipelines.sweep import HUNGRY, LEAD, Sweeper
from ..schedulers import pools
from ..schedulers.connection import ALIVE_S, Broker
from ..schedulers.outages import patiently
from ..schedulers.pools import Pool
from ..schedulers.reports import REPORT_VERSION, worker_name
from .answers import Answers
from .assignments import Desk
from .ending import Idleness, too_long
from .engine import Engine
from .feed import Feed
from .folding import Folds
from .health import HUNG_LEASES, Pulse
from .leases import RENEWALS, Leases
from .models import RequestedModels
from .ports import Meter
from .requests import RequestLane
from .residency import Residency
from .residents import Residents
from .settling import Settling

log = logging.getLogger(__name__)

# Small ones: what a worker has gathered no other one can do, and the end of a job waits for the slowest.
WINDOW_BATCHES = 4  # sorted together
AHEAD_BATCHES = 2  # of each stream, prepared beyond that
WRITING = 2  # shards that may wait to be written: a slow sink holds the device back rather than filling memory


class Worker:
    """One device's work. `start` returns at once; `stop` ends it in good order."""

    def __init__(
        self,
        pool: Pool,
        settings: Settings,
        broker: Broker,
        registry: Registry,
        *,
        device: str = "",
        on_end: Callable[[str], None] = lambda why: None,
        on_idle: Callable[[], None] = lambda: None,
        meter: Meter | None = None,
    ) -> None:
        """`on_end` is told once why only another process can go on: the device does not come back from a batch, or takes no more;
        `on_idle` once, when there was nothing to do for `exit_when_idle_s`."""
        self._on_end, self._on_idle, self.meter = on_end, on_idle, meter or Meter()
        self.pool, self.settings, self.broker, self.registry = pool, settings, broker, registry
        self.name = worker_name(socket.gethostname(), os.getpid(), secrets.token_hex(3))
        self.stopping = threading.Event()
        self.shards = broker.queue(pool.shards)
        self.requests = broker.queue(pool.requests)
        self.leases = Leases(settings.lease_s)
        device = device or pool.device
        adapters.check_device(device)
        self.device = device
        budget = pool.batch_tokens or settings.batch_tokens(device)
        streams = adapters.streams(device, settings.threads)
        policy = Residency(
            _memory_of(pool, device), pool.host_bytes, patience_s=pool.swap_patience_s, idle_s=pool.idle_unload_s
        )
        bell = threading.Event()
        self.residents = Residents(
            device,
            settings.threads,
            policy,
            batch_tokens=budget,
            streams=streams,
            loading=self.leases.loading,
            ring=bell.set,
            meter=self.meter,
        )
        window = settings.window_tokens or WINDOW_BATCHES * budget
        ahead = window + AHEAD_BATCHES * budget * streams
        self.engine = Engine(
            streams,
            budget,
            window,
            self.stopping,
            on_batch=self.leases.beat,
            meter=self.meter,
            models=self.residents,
            bell=bell,
            ahead=ahead,
        )
        self.answers = Answers(
            broker,
            self.requests,
            self.leases,
            self.stopping,
            ttl_s=settings.result_ttl_s,
            interval_s=settings.fold_interval_s,
            meter=self.meter,
        )
        self.models = models = RequestedModels(self.residents, roots.parse(settings.roots), pool.precisions)
        self.lane = RequestLane(
            self.requests,
            self.leases,
            models,
            models.check_table,
            self.answers,
            budget=budget,
            most=pool.pull_requests,
            bell=self.engine.bell,
            stopping=self.stopping,
        )
        self.engine.requests = self.lane
        self.desk = Desk(self.shards, self.leases, registry, self.residents, self.name, self._living)
        self.feed = Feed(
            self.shards,
            self.leases,
            self.desk,
            pool.pull_shards,
            self.stopping,
            lambda: bool(self.lane.alone),
            self.engine.has_room,
        )
        self.folds = Folds(self.desk, registry, broker, settings.fold_interval_s, self.leases.beat, self.meter)
        self.pulse = Pulse(settings.lease_s, time.monotonic())
        self.settling = Settling(
            self.shards, self.leases, self.feed, self.folds, self.engine, self.meter, self.stopping, settings.lease_s
        )
        self._ended = threading.Event()  # nothing is held any more
        self._untold = ""  # why the broker did not take the last report
        self._work_thread = threading.Thread(target=self._work, name="lading-work", daemon=True)
        self._keep_thread = threading.Thread(target=self._keep, name="lading-leases", daemon=True)
        self._sweep_thread = threading.Thread(target=self._sweep, name="lading-sweep", daemon=True)
        self._preload_thread = threading.Thread(target=self._preload, name="lading-preload", daemon=True)
        self.meter.watch(self)

    def start(self) -> None:
        self.answers.start()
        self.lane.start()
        self.folds.start()
        for thread in (self._work_thread, self._keep_thread, self._sweep_thread, self._preload_thread):
            thread.start()
        if self.settings.exit_when_idle_s:
            idle_s, queues = self.settings.exit_when_idle_s, (self.shards, self.requests)
            Idleness(queues, self.leases, idle_s, self._on_idle, self.stopping).start()
        tell(log, "worker started", pool=self.pool.name, worker=self.name)

    def stop(self, grace_s: float, hurry: threading.Event) -> None:
        """Take nothing more, finish what fits into `grace_s` (or until `hurry`), give the rest back: at once, when it is seen not to fit."""
        self.stopping.set()
        self.engine.bell.set()
        until = time.monotonic() + grace_s
        while self._work_thread.is_alive() and time.monotonic() < until and not hurry.is_set():
            if self._cannot_fit(until - time.monotonic()):
                self._give_back()  # before whatever else is to end: others can begin with it
                break
            self._work_thread.join(0.05)

        def left() -> float:
            return 0.0 if hurry.is_set() else max(until - time.monotonic(), 1.0)

        self.lane.join(min(left(), 1.0))
        self.answers.end(left())
        self.folds.end(left())
        self.residents.close()
        self._ended.set()
        self._keep_thread.join(1.0)
        self._give_back()
        # A pass that is cut off keeps others from sweeping until its turn has run out.
        self._sweep_thread.join(max(left(), 1.0))
        with contextlib.suppress(LadingError):  # it is forgotten by itself
            self.broker.gone(self.pool.name, self.name)
        tell(log, "worker stopped", worker=self.name)

    def _cannot_fit(self, left_s: float) -> bool:
        """Of shards. Requests are short, and somebody waits for each."""
        later = set(map(id, self.feed.alone))  # not begun: they run when nothing else does
        given = [one for one in self.feed.given() if id(one) not in later]
        needs_s = too_long(given, list(self.engine.under_way.values()), left_s)
        if not needs_s or self.leases.held(self.requests):
            return False
        tell(log, "shards do not fit", needs_s=round(needs_s, 1), left_s=round(left_s, 1))
        return True

    def report(self) -> dict[str, Any]:
        """What it holds and how that came, what its device had no memory for, and what it is at, as plain JSON (schedulers/reports.py)."""
        said = self.residents.report()
        names = {one["weights"]: one["model"] for one in said["models"]}
        limits: dict[str, int] = {}  # tokens of a batch, by the model's name
        for weights, limit in self.engine.limits.learned().items():
            name = names[weights]
            limits[name] = min(limit, limits.get(name, limit))
        out_of_memory = self.engine.gauges.out_of_memory
        held = {
            "shards": len(self.leases.held(self.shards)),
            "requests": len(self.leases.held(self.requests)),
        }
        return {"version": REPORT_VERSION, **said, "out_of_memory": out_of_memory, "limits": limits, "held": held}

    def unhealthy(self) -> str:
        """Why only another process would go on with its work, "" while it gets on with it."""
        return self.pulse.unhealthy(time.monotonic())

    def unready(self) -> str:
        """Why it would not take a request right now, "" if it would."""
        if self.stopping.is_set():
            return "stopping"
        preloading = self._preload_thread.ident is None or self._preload_thread.is_alive()
        return self.pulse.unready(time.monotonic(), preloading=preloading)

    # -- the working thread

    def _work(self) -> None:
        try:
            self._work_on()
        except DeviceLost as error:
            self._end_without_device(str(error))

    def _end_without_device(self, why: str) -> None:
        """Nobody should wait for leases to run out, and another process go on."""
        self.stopping.set()
        self._give_back()
        self._on_end(f"the device fails: {why}")

    def _give_back(self) -> None:
        """All that is held, without a trace."""
        self.leases.close()
        given = self.feed.given()
        for opened in [*self.desk.jobs(), *(one.of for one in given)]:
            opened.strikes.erase_all()
        for queue in (self.shards, self.requests):
            held = self.leases.held(queue)
            if back := self.leases.release(queue, held):
                tell(log, "leases given back", queue=queue.name, leases=back)
                for one in given:
                    if one.lease in held:
                        self.meter.unpublished(one.of.job.recipe.task, "given_back")
                        tell(log, "shard given back", **one.named)

    def _work_on(self) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="lading-write") as writer:
            while not self.stopping.is_set():
                if self.feed.alone:
                    self.settling.run_alone(self.feed.alone.popleft())
                elif self.lane.alone:
                    patiently(lambda: self.lane.run_alone(self.engine.alone), self.stopping)
                else:
                    self._session(writer)

    def _preload(self) -> None:
        """What pools.yaml wants on the device before anybody asks. One that cannot be had keeps nobody from the others."""
        for one in self.pool.preload:
            try:
                self.models.preload(one)
            except LadingError as error:
                tell(log, "preload failed", model=one.model, why=error)
            except DeviceLost:
                return  # the working thread ends this process

    def _session(self, writer: ThreadPoolExecutor) -> None:
        """Shards and requests through the engine, until something is to run alone or the worker stops."""
        writing: list[Future[None]] = []
        shards = self.engine.shards(self.feed)
        try:
            with contextlib.closing(shards):
                for shard in shards:
                    self.leases.beat()
                    writing.append(writer.submit(self.settling.publish, shard))
                    while len(writing) > WRITING:
                        writing.pop(0).result()
        except StopJob as error:
            # The model takes nothing, or so it seems: which job is to blame shows when each shard runs alone.
            tell(log, "shards set apart", why=error)
            for one in writing:
                one.result()
            self.feed.isolate()
            self.engine.failing = self.engine.unusable = 0
        for one in writing:
            one.result()

    # -- the thread that keeps the leases

    def _keep(self) -> None:
        """Sign of life, renewals, and what others' deaths left behind."""
        while True:
            patiently(self._keep_once, self._ended)
            if self._ended.wait(self.settings.lease_s / RENEWALS):  # the grace may be longer than a lease
                return

    def _keep_once(self) -> None:
        self.broker.alive(self.pool.name, self.name)
        moved = self.leases.renew((self.shards, self.requests))
        now = time.monotonic()
        # After an outage, or frozen, others that live have not renewed theirs yet either.
        if now - self.pulse.kept < self.settings.lease_s:
            for queue in (self.shards, self.requests):
                queue.restore(self.settings.lease_s)
        if self.pulse.renewed(now, running=bool(self.engine.running), moved=moved):
            self._on_end(f"the device hangs: a batch has not ended for {HUNG_LEASES * self.settings.lease_s:.0f} s")
        if self.residents.lost:
            self._end_without_device(self.residents.lost)
        self._tell()

    def _tell(self) -> None:
        """What it holds, for whoever asks. Nothing depends on it, so what Redis refuses of it holds up no lease."""
        try:
            self.broker.publish_report(self.pool.name, self.name, self.report(), max(ALIVE_S, self.settings.lease_s))
        except BrokerError as error:
            if str(error) != self._untold:
                tell(log, "report refused", why=error)
            self._untold = str(error)

    def _sweep(self) -> None:
        """What the scheduler does, as long as no scheduler (and no other worker) does it."""
        interval_s = self.settings.sweep_interval_s
        sweeper = Sweeper(self.broker, self.registry, pools.load(), lease_s=self.settings.lease_s)
        pause_s = interval_s
        while not self.stopping.wait(pause_s):
            try:
                began = time.monotonic()
                swept = patiently(lambda: sweeper.sweep(lead_s=LEAD * interval_s), self.stopping)
                self.meter.swept(swept, time.monotonic() - began)
                pause_s = interval_s / (HUNGRY if swept is not None and swept.hungry else 1)
            except LadingError as error:
                # The registry's store is away, and may come back; a lead that nobody has is no harm.
                tell(log, "sweep failed", why=error)

    def _living(self) -> set[str]:
        """Raises BrokerError: nobody is taken for dead because the broker could not be asked."""
        living = patiently(lambda: self.broker.living(self.pool.name, self.settings.lease_s), self.stopping)
        if living is None:
            raise BrokerError(f"the broker at {self.broker.url} did not say who lives before this worker was stopped")
        return living


def _memory_of(pool: Pool, device: str) -> int:
    """Bytes for the pool's models on this device."""
    if not pool.memory_share:
        return pool.memory_bytes
    return min(pool.memory_bytes, int(pool.memory_share * available(device)))
