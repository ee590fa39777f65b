"""The models of this process: made known once, brought onto the device when they have work, and taken off it again. Residency decides.

One thread moves weights, so that nothing else waits for a disk or a bus: the engine asks `hold` and, where the answer is no, runs
what is there. A model's light part, which prepares texts, stays from the first time it is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import adapters
from ..adapters import Adapter, DeviceLost
from ..config.errors import ModelError, NotNow
from ..config.events import tell
from ..config.failpoints import failpoint
from ..config.recipe import Recipe
from ..config.weights import weight_bytes
from .passing import passing
from .ports import Meter
from .residency import Model as Known
from .residency import Residency, Step, Tier, TooLarge

if TYPE_CHECKING:
    from ..adapters.model import Model

log = logging.getLogger(__name__)

REMEMBERED_S = 2.0  # why a model cannot be had; whoever asks later has it tried again
BLIPS = 3  # failures in a row, of a disk or a network, for which whoever waits does nothing else
SHORT_TRIES = 3  # to load a model without memory though no other one could go: another program may have it
MOST_RECIPES = 1024  # kept for whoever asks again; an application may send another instruction each time
ROOM_S = 30.0  # that a batch without memory waits for another model to go


class Residents:
    """Threads may ask at the same time."""

    def __init__(
        self,
        device: str,
        threads: int,
        policy: Residency,
        *,
        batch_tokens: int = 0,
        streams: int = 1,
        loading: Callable[[bool], None] = lambda _: None,
        ring: Callable[[], None] = lambda: None,
        meter: Meter | None = None,
    ) -> None:
        """batch_tokens: of a batch, of which `streams` run at once: what they need beside a model's weights follows from it.
        `loading` is told when a move begins (True) and ends (False), `ring` that something has changed for `hold`."""
        self.policy, self.lost = policy, ""
        self._device, self._threads, self._tokens, self._streams = device, threads, batch_tokens, streams
        self._loading, self._ring, self._meter = loading, ring, meter or Meter()
        self._changed = threading.Condition()
        self._adapters: OrderedDict[str, Model] = (
            OrderedDict()
        )  # by the hash of their recipes, the last asked for at the end
        self._models: dict[str, Model] = {}  # by their weights: the first adapter with them, which the others use
        self._names: dict[str, str] = {}
        self._awaited: Counter[str] = Counter()  # by threads that do nothing else meanwhile
        self._making: dict[str, threading.Lock] = {}
        self._trouble: dict[str, tuple[str, float]] = {}  # why it cannot be had, and since when
        self._delays: dict[str, str] = {}  # why it fails to come, of those that are tried again
        self._seen: set[str] = set()  # those that were on the device once
        self._closed = False
        self._thread = threading.Thread(target=self._move_on, name="lading-residents", daemon=True)
        self._thread.start()

    # -- for whoever prepares

    def known(self, recipe: Recipe) -> bool:
        """Whether `get` takes no time."""
        with self._changed:
            return recipe.hash in self._adapters

    def at_hand(self, recipe: Recipe) -> Adapter | None:
        """The adapter of a recipe, if its model was on the device before, so that nothing speaks against its coming back."""
        with self._changed:
            return self._adapters.get(recipe.hash) if recipe.weights in self._seen else None

    def get(
        self, recipe: Recipe, folder: Path, adapter: Path | None = None, *, name: str = "", pinned: bool = False
    ) -> Adapter:
        """The adapter of a recipe, able to prepare. Raises ModelError where its model could never run here.

        `adapter`: the folder of its LoRA adapter; `name`: of the model, for people; `pinned`: it is never made to leave. Recipes
        with the same weights share them, and LoRA adapters their base.
        """
        key = recipe.weights
        with self._changed:
            if recipe.hash in self._adapters and not pinned:
                self._adapters.move_to_end(recipe.hash)
                return self._adapters[recipe.hash]
            lock = self._making.setdefault(recipe.base.weights, threading.Lock())
        if recipe.adapter and adapter is None:
            raise ModelError(f"recipe {recipe.hash} names an adapter, and its folder was not given")
        with lock:
            made = adapters.make(recipe, folder, device=self._device, threads=self._threads)
            base = None
            if adapter is not None and recipe.adapter:
                base = self._models.get(recipe.base.weights)
                if base is None:
                    base = adapters.make(recipe.base, folder, device=self._device, threads=self._threads)
                    self._add(base, weight_bytes(folder, recipe.precision), name or str(folder), pinned=pinned)
            if key in self._models:
                made.use(self._models[key])
            elif base is not None and adapter is not None:
                made.adapt(base, adapter)
            needed = weight_bytes(adapter or folder, recipe.precision)
            self._add(made, needed, name or str(adapter or folder), pinned=pinned)
            with self._changed:
                self._adapters[recipe.hash] = made
                while len(self._adapters) > MOST_RECIPES:
                    self._adapters.popitem(last=False)
            return made

    def _add(self, model: Model, needed: int, name: str, *, pinned: bool) -> None:
        key, recipe = model.weights, model.recipe
        with self._changed:
            if key not in self._models:
                try:
                    self.policy.add(key, needed, base=recipe.base.weights if recipe.adapter else "")
                except TooLarge as error:
                    raise ModelError(_too_large(model, error)) from error
                self._models[key], self._names[key] = model, name
            self.policy.models[key].pinned |= pinned

    def ready(self, recipe: Recipe, *, patient: bool = True) -> None:
        """Wait until its model is on the device. Raises ModelError where it cannot come, DeviceLost, and NotNow where it has failed to
        come again and again of what may pass, unless `patient`."""
        key = recipe.weights
        with self._changed, self._waiting_for(key):
            while self.policy.models[key].tier < Tier.DEVICE:
                if not patient and (why := self._delay(key)):
                    raise NotNow(why)
                self._want_or_raise(key)
                self._changed.wait(1.0)

    # -- for the engine

    def hold(self, adapter: Adapter) -> bool:
        """Whether a batch of it may run now, and then it stays until `release`. Else it is on its way, or in trouble.

        Raises DeviceLost.
        """
        key = adapter.weights
        with self._changed:
            if self.policy.hold(key, time.monotonic()):
                return True
            self._want(key)
            return False

    def release(self, adapter: Adapter) -> None:
        """That batch has ended."""
        with self._changed:
            self.policy.release(adapter.weights, time.monotonic())
            self._changed.notify_all()

    @contextlib.contextmanager
    def holding(self, adapter: Adapter) -> Generator[None]:
        """The same for one batch, waiting for the model. Raises ModelError where it cannot come, DeviceLost."""
        key = adapter.weights
        with self._changed, self._waiting_for(key):
            while not self.policy.hold(key, time.monotonic()):
                self._want_or_raise(key)
                self._changed.wait(1.0)
        try:
            yield
        finally:
            self.release(adapter)

    def working(self, wanted: Iterable[Adapter]) -> None:
        """Which models have work that waits: those stay as long as others will do."""
        busy = frozenset(one.weights for one in wanted)
        with self._changed:
            if busy != self.policy.busy:
                self.policy.busy = busy
                for key in self.policy.wanted.keys() - busy - self._awaited.keys():
                    self.policy.unwant(key)
                self._changed.notify_all()

    def trouble(self, adapter: Adapter) -> str:
        """Why its model cannot come; "": nothing is known against it."""
        with self._changed:
            return self._why(adapter.weights)

    def delay(self, adapter: Adapter) -> str:
        """Why its model has failed to come again and again, and is waited for; "": it has not."""
        with self._changed:
            return self._delay(adapter.weights)

    def make_room(self, adapter: Adapter) -> bool:
        """The device has no memory left for a batch of it: whether another model went."""
        with self._changed:
            moved = self.policy.evictions["memory"]
            if not self.policy.make_room(adapter.weights):
                return False
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self.policy.evictions["memory"] > moved, ROOM_S)

    def lose(self, why: str) -> None:
        """The device takes nothing any more. No model and nobody's work is to blame: whoever asks for one gets DeviceLost."""
        with self._changed:
            self.lost, self._closed = why, True
            self._changed.notify_all()

    def let_go(self, *keys: str) -> None:
        """Make models leave the device as if others needed their room, and return when they have left; `keys`: their weights."""
        with self._changed:
            models = [self.policy.models[key] for key in keys]
            for model in models:
                if model.tier == Tier.DEVICE:
                    model.leaving = model.leaving or "room"
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(model.tier < Tier.DEVICE for model in models))

    # -- account

    def report(self) -> dict[str, Any]:
        """What is where, and how it came there, as plain JSON."""
        with self._changed:
            return {"device": self._device, **self.policy.report(self._names)}

    def each(self) -> list[tuple[str, Known]]:
        """What every model is called, and how it stands now."""
        with self._changed:
            known = [(self._names[key], self.policy.models[key]) for key in self._models]
            return [(name, dataclasses.replace(one, evictions=one.evictions.copy())) for name, one in known]

    def called(self, weights: str) -> str:
        """A model for people."""
        return self._names.get(weights, "")

    def close(self) -> None:
        """Move nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # -- the thread that moves

    def _move_on(self) -> None:
        while True:
            with self._changed:
                while (step := None if self._closed else self.policy.step(time.monotonic())) is None:
                    if self._closed:
                        return
                    self._changed.wait(min(self.policy.due(time.monotonic()), 3600.0))
            if step.to == Tier.DEVICE:
                self._come(step)
            else:
                self._go(step)
            self._ring()

    def _come(self, step: Step) -> None:
        model, began = self._models[step.key], time.monotonic()
        named = {"model": self._names[step.key], "weights": step.key}
        tell(log, "model loading", **named, source=step.source.name.lower())
        self._loading(True)
        try:
            failpoint("model.coming")
            if step.source == Tier.HOST:
                model.bring_back()
            else:
                model.load(measure=True)
            failpoint("model.came")
        except Exception as error:  # of a model, or of the device: all others go on
            self._failed(step, error)
            return
        finally:
            self._loading(False)
        now = time.monotonic()
        with self._changed:
            working = model.working.of(self._tokens * self._streams, self._streams) if model.working else 0
            self.policy.done(step, now, weights=model.nbytes, working=working, seconds=now - began)
            self._trouble.pop(step.key, None)
            self._delays.pop(step.key, None)
            self._seen.add(step.key)
            if self._why(step.key):  # it takes more than its files said
                self.policy.models[step.key].leaving = "room"
            self._changed.notify_all()
        self._meter.loaded(self._names[step.key], step.source.name.lower(), now - began)
        came = {"source": step.source.name.lower(), "seconds": round(now - began, 3), "bytes": model.nbytes}
        tell(log, "model loaded", **named, **came)

    def _go(self, step: Step) -> None:
        model = self._models[step.key]
        failpoint("model.leaving")
        for key in step.forget:  # of one that is on the device the copy alone, of others all that there is
            one = self._models[key]
            (one.forget_copy if self.policy.models[key].tier == Tier.DEVICE else one.unload)()
        if step.to == Tier.HOST:
            try:
                model.set_aside()
            except DeviceLost as error:
                self.lose(str(error))
                return
            except Exception as error:  # no host memory: the disk has it
                tell(log, "model not set aside", model=self._names[step.key], weights=step.key, why=error)
                step = dataclasses.replace(step, to=Tier.DISK)
        if step.to == Tier.DISK:
            model.unload()
        failpoint("model.left")
        with self._changed:
            self.policy.done(step, time.monotonic())
            self._changed.notify_all()
        if step.to == Tier.HOST:
            tell(log, "model set aside", model=self._names[step.key], weights=step.key, reason=step.reason)
        else:
            tell(log, "model evicted", model=self._names[step.key], weights=step.key, reason=step.reason)

    def _failed(self, step: Step, error: Exception) -> None:
        model, now = self._models[step.key], time.monotonic()
        if isinstance(error, DeviceLost):
            self.lose(str(error))
            return
        if step.source == Tier.HOST:
            model.unload()
        short = isinstance(error, adapters.OutOfMemory)
        with self._changed:
            another = short and self.policy.make_room(step.key)
            for_good = not passing(error)
            if short:
                for_good = not another and self.policy.models[step.key].failures + 1 >= SHORT_TRIES
            said = f"{model.folder} cannot be loaded: {type(error).__name__}: {error}"
            why = str(error) if isinstance(error, ModelError) else said
            for key in self.policy.failed(step, now, for_good=for_good):
                self._trouble[key] = why, now
            if not short and not for_good and self.policy.models[step.key].failures >= BLIPS:
                self._delays[step.key] = why
            self._changed.notify_all()
        self._meter.not_loaded("permanent" if for_good else "transient")
        tell(log, "model failed", model=self._names[step.key], weights=step.key, why=why, again=not for_good)

    # -- under the lock

    def _want(self, key: str) -> None:
        self._check_device()
        if not self._why(key):
            self.policy.want(key, time.monotonic())
            self._changed.notify_all()

    def _want_or_raise(self, key: str) -> None:
        self._check_device()
        if self._closed:
            raise ModelError("this worker is stopping")
        if why := self._why(key):
            raise ModelError(why)
        self._want(key)

    def _check_device(self) -> None:
        if self.lost:
            raise DeviceLost(self.lost)

    @contextlib.contextmanager
    def _waiting_for(self, key: str) -> Generator[None]:
        self._awaited[key] += 1
        try:
            yield
        finally:
            self._awaited[key] -= 1
            self._awaited += Counter()  # without those that nobody waits for

    def _delay(self, key: str) -> str:
        """Until it is tried again; by then it may be there."""
        now = time.monotonic()
        for one in (self.policy.models[key].base, key):
            if one in self._delays and self.policy.models[one].retry_at > now:
                return self._delays[one]
        return ""

    def _why(self, key: str) -> str:
        try:
            self.policy.check_fits(key)
        except TooLarge as error:
            return _too_large(self._models[key], error)
        why, since = self._trouble.get(key, ("", 0.0))
        if why and time.monotonic() - since > REMEMBERED_S:
            del self._trouble[key]
            return ""
        return why


def _too_large(model: Model, error: TooLarge) -> str:
    beside = f" beside {error.pinned:,} of pinned ones" if error.pinned else ""
    return (
        f"{model.folder} needs {error.needed:,} bytes in {model.recipe.precision}, this pool's models have {error.budget:,}{beside}: "
        "send it to a larger pool, or raise memory_bytes in pools.yaml"
    )
