"""Which models are on a device, and which one comes or goes next: by bytes, before anything is loaded. Pure: no device, no clock.

Whoever drives it (residents.py) asks `step` what to do next, does that, and reports back with `done` or `failed`. A model in use
never leaves; one that must leave is drained first: `hold` refuses it, and it goes with its last `release`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any


class Tier(enum.IntEnum):
    """Where a model's weights are; a smaller one is slower to reach."""

    DISK = 0
    HOST = 1
    DEVICE = 2


@dataclasses.dataclass(slots=True)
class Model:
    """What is known of one. A LoRA adapter is one too: small, on a base that stays as long as it does."""

    key: str
    weights: int  # bytes; of one that was never loaded what its files say, then what it takes
    base: str = ""  # the key of the model that it is an adapter of
    pinned: bool = False
    working: int = 0  # bytes beside the weights while its batches run
    tier: Tier = Tier.DISK
    copied: bool = False  # host memory has a copy
    users: int = 0  # batches under way
    used: float = 0.0  # when it last ran a batch, or came
    came: float = 0.0  # onto the device
    took: float = 0.0  # seconds that its last way onto the device took
    leaving: str = ""  # why it takes no further batch and goes when the last has ended; "": it stays
    moving: bool = False  # a step with it is under way
    retry_at: float = 0.0  # after a failure that may pass
    failures: int = 0  # of those, one after the other
    holds: int = 0  # batches that found it there
    misses: int = 0  # times that work had to wait for it
    evictions: Counter[str] = dataclasses.field(default_factory=Counter)  # by reason


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Something to be done now: bring `key` to `to`, with host memory freed of `forget` first."""

    key: str
    source: Tier
    to: Tier
    reason: str = ""  # why it leaves: room, idle, memory, base
    forget: tuple[str, ...] = ()


class TooLarge(Exception):
    """It would not fit if nothing else were there but what never leaves."""

    def __init__(self, needed: int, budget: int, pinned: int = 0) -> None:
        """budget: what is left of it beside the `pinned` bytes of models that stay."""
        super().__init__(needed, budget, pinned)
        self.needed, self.budget, self.pinned = needed, budget, pinned


BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 60.0
# Times what its coming took: so long a model with work stays, so that moving takes at most a fifth of the time.
STAY = 4.0


class Residency:
    """The models of one device. Times are seconds of one clock that never goes back; every method is to be called under one lock."""

    def __init__(self, device_bytes: int, host_bytes: int = 0, *, patience_s: float = 2.0, idle_s: float = 0.0) -> None:
        """device_bytes: 0 is no limit. patience_s: how long a model waits, at most, before it pushes out one that still has work.
        idle_s: after so long without a batch a model leaves; 0: never."""
        self.device_bytes, self.host_bytes = device_bytes, host_bytes
        self.patience_s, self.idle_s = patience_s, idle_s
        self.models: dict[str, Model] = {}
        self._present: dict[
            str, Model
        ] = {}  # on the device, or on their way to or from it: few, where thousands may be known
        self.wanted: dict[str, float] = {}  # key -> since when
        self.busy: frozenset[str] = frozenset()  # those with work that waits
        self.loads: Counter[Tier] = Counter()  # by where they came from
        self.load_s: dict[Tier, float] = dict.fromkeys(Tier, 0.0)
        self.evictions: Counter[str] = Counter()  # by reason
        self.holds = self.misses = 0

    # -- what the worker says

    def add(self, key: str, weights: int, *, base: str = "", pinned: bool = False) -> None:
        """Make a model known. Raises TooLarge for one that would never fit."""
        if key not in self.models:
            needed = weights + (self.models[base].weights if base else 0)
            if self.device_bytes and needed > self.device_bytes:
                raise TooLarge(needed, self.device_bytes)
            self.models[key] = Model(key, weights, base, pinned)

    def hold(self, key: str, now: float) -> bool:
        """Whether a batch of it may run now; then it stays until `release`."""
        needed = self._with_base(self.models[key])
        if any(one.tier < Tier.DEVICE or one.moving or one.leaving for one in needed):
            return False
        self.holds += 1
        self.models[key].holds += 1
        for one in needed:
            one.users += 1
            one.used = now
        return True

    def release(self, key: str, now: float) -> None:
        """A batch has ended."""
        for one in self._with_base(self.models[key]):
            one.users -= 1
            one.used = now

    def want(self, key: str, now: float) -> None:
        """It has work and is not there."""
        if key not in self.wanted and self.models[key].tier < Tier.DEVICE:
            self.wanted[key] = now
            self.misses += 1
            self.models[key].misses += 1

    def unwant(self, key: str) -> None:
        """Nobody waits for it any more."""
        self.wanted.pop(key, None)

    # -- what is to be done

    def step(self, now: float) -> Step | None:
        """What to do next, if anything can be done now. The model is then moving until `done` or `failed`."""
        found = self._next(now)
        if found is not None:
            model = self.models[found.key]
            model.moving, self._present[found.key] = True, model
        return found

    def due(self, now: float) -> float:
        """Seconds after which `step` may have something though nothing else happened; inf: never."""
        times = [self.models[key].retry_at for key in self.wanted]
        times += [since + self.patience_s for since in self.wanted.values()]
        if self.wanted:
            times += [one.came + self._stay(one) for one in self._on_device()]
        if self.idle_s:
            times += [one.used + self.idle_s for one in self._on_device() if not one.pinned]
        return min((one - now for one in times if one > now), default=float("inf"))

    def done(self, step: Step, now: float, *, weights: int = 0, working: int = 0, seconds: float = 0.0) -> None:
        """`weights`, `working`: what it was found to take on the device."""
        model = self.models[step.key]
        model.moving, model.leaving = False, ""
        for key in step.forget:
            self._forget(self.models[key])
        model.tier = step.to
        if step.to == Tier.DEVICE:
            model.weights, model.working = weights or model.weights, working or model.working
            model.came = model.used = now
            model.took, model.failures, model.retry_at = seconds, 0, 0.0
            self.wanted.pop(step.key, None)
            self.loads[step.source] += 1
            self.load_s[step.source] += seconds
            return
        self._present.pop(step.key)
        model.copied = step.to == Tier.HOST
        if step.source == Tier.DEVICE:
            self.evictions[step.reason] += 1
            model.evictions[step.reason] += 1

    def failed(self, step: Step, now: float, *, for_good: bool) -> list[str]:
        """It did not come: to be tried again after a while, ever longer, or not at all; then who waited for it in vain."""
        model = self.models[step.key]
        model.moving = False
        self._present.pop(step.key)
        if step.source == Tier.HOST:  # its copy is doubtful, or the device is: from disk next time
            self._forget(model)
        if for_good:
            vain = [key for key in self.wanted if step.key in (key, self.models[key].base)]
            for key in vain:
                self.wanted.pop(key)
            return vain
        model.retry_at = now + min(BACKOFF_S * 2**model.failures, LONGEST_BACKOFF_S)
        model.failures += 1
        return []

    def check_fits(self, key: str) -> None:
        """Raises TooLarge for a model that, as far as it is known by now, could not be there with the pinned ones alone."""
        if not self.device_bytes:
            return
        own = self._with_base(self.models[key])
        stay = [part for one in self._on_device() if one.pinned for part in self._with_base(one)]
        others = list({one.key: one for one in stay if one not in own}.values())
        pinned = sum(one.weights for one in others)
        needed = sum(one.weights for one in own) + max(one.working for one in (*own, *others))
        if needed + pinned > self.device_bytes:
            raise TooLarge(needed, self.device_bytes - pinned, pinned)

    def make_room(self, key: str) -> bool:
        """The device is out of memory though by our account it is not: let another model go, if any can."""
        model = self.models[key]
        others = [
            one for one in self._on_device() if one.key not in (key, model.base) and not (one.pinned or self._pins(one))
        ]
        if others:  # one in use goes later, and may be waiting for the same
            min(others, key=lambda one: (one.users > 0, one.used)).leaving = "memory"
        return bool(others)

    # -- account

    @property
    def resident_bytes(self) -> int:
        """What is on the device, or on its way there: weights, and what the batches of the neediest take."""
        there = self._present.values()
        return sum(one.weights for one in there) + max((one.working for one in there), default=0)

    @property
    def copied_bytes(self) -> int:
        """What host memory has copies of."""
        return sum(one.weights for one in self.models.values() if one.copied)

    def report(self, names: Mapping[str, str]) -> dict[str, Any]:
        """What is where, and how it came there, as plain JSON; `names` of models by their keys, in the order to tell them in."""
        models = [
            {
                "weights": key,
                "model": name,
                "tier": self.models[key].tier.name.lower(),
                "bytes": self.models[key].weights,
                "working_bytes": self.models[key].working,
                "pinned": self.models[key].pinned,
                "in_use": self.models[key].users,
                "load_s": round(self.models[key].took, 4),
            }
            for key, name in names.items()
        ]
        return {
            "budget_bytes": self.device_bytes,
            "resident_bytes": self.resident_bytes,
            "host_bytes": self.copied_bytes,
            "models": models,
            "batches": self.holds,
            "misses": self.misses,
            "loads": {tier.name.lower(): count for tier, count in self.loads.items()},
            "load_s": {tier.name.lower(): round(seconds, 3) for tier, seconds in self.load_s.items()},
            "evictions": dict(self.evictions),
        }

    # -- the policy

    def _next(self, now: float) -> Step | None:
        self._keep_within()
        for model in self._on_device():
            if model.leaving and (step := self._evict(model, model.leaving)):
                return step
        for key, since in sorted(self.wanted.items(), key=lambda one: one[1]):
            model = self.models[key]
            if model.moving or model.retry_at > now or not self._fits(key):
                continue
            base = self.models[model.base] if model.base else model
            target = base if base.tier < Tier.DEVICE else model
            if target.moving or target.retry_at > now:
                continue
            step = self._bring(target, now, patient=now - since < self.patience_s)
            # One that has run out of patience is next, whatever smaller one would fit: else it might wait for ever.
            if step is not None or now - since >= self.patience_s:
                return step
        return self._idle(now)

    def _bring(self, model: Model, now: float, *, patient: bool) -> Step | None:
        """Its way onto the device, or that of one that must go first; None: not yet."""
        if (over := self._over(model)) <= 0:
            return Step(model.key, model.tier, Tier.DEVICE)
        freed: list[Model] = []
        for victim in sorted(self._on_device(), key=lambda one: (self._has_work(one), one.used)):
            if victim.pinned or victim.key == model.base or victim.moving or self._pins(victim):
                continue
            if self._has_work(victim) and (patient or now - victim.came < self._stay(victim)):
                continue
            freed.append(victim)
            over = self._over(model, without={one.key for one in freed})
            if over <= 0:
                break
        if over > 0:
            return None
        for victim in list(freed):  # a large one that came last may have made earlier ones needless
            rest = {one.key for one in freed if one is not victim}
            if self._over(model, without=rest) <= 0:
                freed.remove(victim)
        for victim in freed:
            victim.leaving = victim.leaving or "room"  # somebody may wait for the one that goes for memory
        return next((step for victim in freed if (step := self._evict(victim, victim.leaving))), None)

    def _keep_within(self) -> None:
        """Models that turned out larger than their files said: the least recently used of the others goes."""
        if not self.device_bytes or self.resident_bytes <= self.device_bytes:
            return
        there = self._on_device()
        newest = max(there, key=lambda one: one.came)  # which is wanted
        others = [
            one for one in there if one.key not in (newest.key, newest.base) and not (one.pinned or self._pins(one))
        ]
        if others and not any(one.leaving for one in there):
            min(others, key=lambda one: one.used).leaving = "room"

    def _evict(self, model: Model, reason: str) -> Step | None:
        """The step by which it goes, or an adapter of it that must go before; None while batches run."""
        adapter = next((one for one in self._adapters(model) if not one.users and not one.moving), None)
        if adapter is not None:
            return Step(adapter.key, Tier.DEVICE, Tier.DISK, "base")
        if model.users or model.moving or self._adapters(model):
            return None
        room = None if model.base else self._host_room(model)
        if room is None:
            return Step(model.key, Tier.DEVICE, Tier.DISK, reason)
        return Step(model.key, Tier.DEVICE, Tier.HOST, reason, room)

    def _host_room(self, model: Model) -> tuple[str, ...] | None:
        """Whose copies go so that this one's fits into host memory: of models on the device first, never of one that is about to
        come. None: it cannot."""
        if model.copied:
            return ()
        coming = {self.models[key].base or key for key in self.wanted}
        copies = [one for one in self.models.values() if one.copied and not one.moving and one.key not in coming]
        copies.sort(key=lambda one: (self._has_work(one), -one.tier, one.used))
        free, forget = self.host_bytes - self.copied_bytes, []
        while free < model.weights and copies:
            gone = copies.pop(0)
            forget.append(gone.key)
            free += gone.weights
        return tuple(forget) if free >= model.weights else None

    def _idle(self, now: float) -> Step | None:
        if not self.idle_s:
            return None
        for model in self._on_device():
            quiet = now - model.used >= self.idle_s and not model.pinned and not self._has_work(model)
            if quiet and not self._pins(model) and (step := self._evict(model, "idle")):
                return step
        return None

    def _over(self, model: Model, without: Collection[str] = ()) -> int:
        """Bytes above the budget if the model came, and these went with their adapters."""
        if not self.device_bytes:
            return 0
        gone = {*without, *(one.key for key in without for one in self._adapters(self.models[key]))}
        there = [one for one in self._present.values() if one.key not in gone]
        working = max(one.working for one in (*there, model))
        return sum(one.weights for one in there) + model.weights + working - self.device_bytes

    def _fits(self, key: str) -> bool:
        try:
            self.check_fits(key)
        except TooLarge:
            return False
        return True

    def _stay(self, model: Model) -> float:
        return min(STAY * model.took, self.patience_s)

    def _has_work(self, model: Model) -> bool:
        return model.key in self.busy or any(one.key in self.busy for one in self._adapters(model))

    def _pins(self, model: Model) -> bool:
        """Whether an adapter of it is pinned or on its way."""
        return any(one.pinned or one.moving for one in self._adapters(model))

    def _on_device(self) -> list[Model]:
        return [one for one in self._present.values() if one.tier == Tier.DEVICE]

    def _adapters(self, model: Model) -> list[Model]:
        """Those of it that are on the device, or on their way."""
        return [one for one in self._present.values() if one.base == model.key]

    def _with_base(self, model: Model) -> list[Model]:
        return [model, self.models[model.base]] if model.base else [model]

    def _forget(self, model: Model) -> None:
        model.copied = False
        if model.tier == Tier.HOST:
            model.tier = Tier.DISK
