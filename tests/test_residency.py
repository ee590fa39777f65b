"""Which model comes and which one goes: any order of uses, sizes, pins and failures, on a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lading.workers.residency import Residency, Step, Tier, TooLarge

PATIENCE_S = 2.0


def bring(policy: Residency, key: str, now: float, took: float = 0.0) -> list[Step]:
    """Want it, and do what that asks for."""
    policy.want(key, now)
    return settle(policy, now, took)


def settle(policy: Residency, now: float, took: float = 0.0) -> list[Step]:
    steps: list[Step] = []
    while (step := policy.step(now)) is not None:
        policy.done(step, now, seconds=took)
        steps.append(step)
    return steps


def there(policy: Residency) -> set[str]:
    return {key for key, one in policy.models.items() if one.tier == Tier.DEVICE}


@pytest.fixture
def policy() -> Residency:
    """Room for two of five."""
    one = Residency(20, 20, patience_s=PATIENCE_S)
    for name in "abcde":
        one.add(name, 10)
    return one


def test_the_least_recently_used_goes_before_the_other_is_loaded(policy: Residency) -> None:
    bring(policy, "a", 0)
    bring(policy, "b", 1)
    assert policy.hold("a", 2)
    policy.release("a", 3)
    steps = bring(policy, "c", 4)
    assert [(step.key, step.source, step.to) for step in steps] == [
        ("b", Tier.DEVICE, Tier.HOST),
        ("c", Tier.DISK, Tier.DEVICE),
    ]
    assert there(policy) == {"a", "c"}
    (back,) = [step for step in bring(policy, "b", 5) if step.key == "b"]
    assert back.source == Tier.HOST
    assert policy.evictions == {"room": 2}
    assert policy.loads == {Tier.DISK: 3, Tier.HOST: 1}


def test_a_model_in_use_is_drained_before_it_goes(policy: Residency) -> None:
    """No new batch of it begins, and it goes with the end of the last."""
    for name in "ab":
        bring(policy, name, 0)
    assert policy.hold("a", 1)
    assert policy.hold("b", 1)
    policy.want("c", 2)
    assert policy.step(2) is None
    assert not policy.hold("a", 2), "it leaves"
    policy.release("a", 3)
    assert [step.key for step in settle(policy, 3)] == ["a", "c"]
    policy.release("b", 4)


def test_work_that_waits_keeps_its_model_until_patience_ends(policy: Residency) -> None:
    """Both have work: the third waits, and then takes the place of the one that was used least recently."""
    for name in "ab":
        bring(policy, name, 0)
    policy.busy = frozenset("abc")
    policy.want("c", 1)
    assert policy.step(1) is None
    assert policy.due(1) == PATIENCE_S
    assert policy.step(1 + PATIENCE_S - 0.01) is None
    assert [step.key for step in settle(policy, 1 + PATIENCE_S)] == ["a", "c"]


def test_a_model_without_work_goes_at_once(policy: Residency) -> None:
    for name in "ab":
        bring(policy, name, 0)
    policy.busy = frozenset("ac")
    assert [step.key for step in bring(policy, "c", 0.1)] == ["b", "c"]


def test_a_model_stays_longer_the_longer_it_took_to_come(policy: Residency) -> None:
    """Else two models that both have work would take turns as fast as the bus can move them."""
    policy.device_bytes = 10
    bring(policy, "a", 0, took=0.4)
    policy.busy = frozenset("ab")
    policy.want("b", 0)
    policy.models["a"].came = 1.9
    assert policy.step(2.0) is None
    assert policy.due(2.0) == pytest.approx(1.9 + 4 * 0.4 - 2.0)
    assert policy.step(1.9 + 4 * 0.4 + 0.01) is not None


def test_the_one_that_waits_longest_is_next(policy: Residency) -> None:
    """Out of patience, a large one is not overtaken by small ones for ever."""
    policy = Residency(20, patience_s=PATIENCE_S)
    policy.add("large", 20)
    for number in range(5):
        policy.add(f"small{number}", 10)
    for number in range(2):
        bring(policy, f"small{number}", 0)
    policy.busy = frozenset(policy.models)
    assert policy.hold("small0", 0)
    policy.want("large", 0)
    policy.want("small2", 0.1)
    assert policy.step(PATIENCE_S) is not None, "small1, which nobody uses"
    policy.done(Step("small1", Tier.DEVICE, Tier.DISK, "room"), PATIENCE_S)
    assert policy.step(PATIENCE_S) is None, "and its place is not for small2"
    policy.release("small0", 3)
    assert [step.key for step in settle(policy, 3)][:2] == ["small0", "large"]


def test_a_pinned_model_stays(policy: Residency) -> None:
    bring(policy, "a", 0)
    policy.models["a"].pinned = True
    for now, name in enumerate("bcdebcde", start=1):
        bring(policy, name, now)
        assert "a" in there(policy)


def test_a_base_takes_its_adapters_along_and_an_adapter_goes_alone() -> None:
    policy = Residency(13, 100)
    policy.add("base", 10)
    for name in ("one", "two", "three"):
        policy.add(name, 1, base="base")
    policy.add("other", 5)
    assert [step.key for step in bring(policy, "one", 0)] == ["base", "one"]
    for now, name in enumerate(("two", "three"), start=1):
        assert [step.key for step in bring(policy, name, now)] == [name]
    assert policy.hold("two", 3)
    assert policy.models["base"].users == 1
    policy.release("two", 3)
    steps = bring(policy, "other", 4)
    assert [step.key for step in steps] == ["one", "two", "three", "base", "other"]
    assert steps[3].to == Tier.HOST
    assert policy.evictions == {"base": 3, "room": 1}


def test_of_adapters_the_least_recently_used_makes_room_for_another() -> None:
    policy = Residency(12)
    policy.add("base", 10)
    for name in ("one", "two", "three"):
        policy.add(name, 1, base="base")
    for now, name in enumerate(("one", "two", "three")):
        bring(policy, name, now)
    assert there(policy) == {"base", "two", "three"}


def test_what_batches_take_counts_once() -> None:
    """One device runs one budget of tokens, whatever models they are of: the neediest's is what must be free."""
    policy = Residency(30)
    for name, working in (("a", 4), ("b", 10), ("c", 6)):
        policy.add(name, 8)
        policy.want(name, 0)
        while step := policy.step(0):
            policy.done(step, 0, weights=8, working=working)
    assert there(policy) == {"b", "c"}
    assert policy.resident_bytes == 8 + 8 + 10


def test_a_model_larger_than_its_files_said_makes_room_afterwards(policy: Residency) -> None:
    bring(policy, "a", 0)
    policy.want("b", 1)
    step = policy.step(1)
    assert step is not None
    policy.done(step, 1, weights=12)
    assert [one.key for one in settle(policy, 1)] == ["a"]
    assert policy.resident_bytes == 12


def test_idle_models_leave() -> None:
    policy = Residency(0, 0, idle_s=60)
    policy.add("a", 10)
    policy.add("b", 10)
    policy.models["b"].pinned = True
    for name in "ab":
        bring(policy, name, 0)
    assert policy.due(1) == 59
    assert settle(policy, 59) == []
    assert [step.reason for step in settle(policy, 60)] == ["idle"]
    assert there(policy) == {"b"}


def test_host_memory_is_for_those_used_last(policy: Residency) -> None:
    """Copies of models that are on the device go first, then the least recently used."""
    for now, name in enumerate("abcde"):
        bring(policy, name, now)
    assert {key for key, one in policy.models.items() if one.tier == Tier.HOST} == {"b", "c"}
    assert policy.models["a"].tier == Tier.DISK
    assert policy.copied_bytes == 20
    bring(policy, "b", 6)
    assert policy.models["b"].copied, "so that leaving again costs nothing"


def test_for_memory_one_goes_that_nobody_uses(policy: Residency) -> None:
    """Not one with a pinned adapter; it counts as that, whoever else wants its room meanwhile."""
    policy.device_bytes = 35
    policy.add("pinned", 1, base="c", pinned=True)
    for now, name in enumerate(("a", "b", "pinned")):
        bring(policy, name, now)
    assert policy.hold("a", 3)
    policy.models["b"].used = 4
    assert policy.make_room("d")
    assert [(step.key, step.reason) for step in settle(policy, 5)] == [("b", "memory")]
    assert policy.make_room("d")
    assert policy.step(6) is None
    policy.device_bytes = 21
    policy.want("d", 6)
    assert policy.step(7 + PATIENCE_S) is None
    policy.release("a", 8 + PATIENCE_S)
    assert [step.key for step in settle(policy, 9 + PATIENCE_S)] == ["a", "d"]
    assert policy.evictions == {"memory": 2}
    assert not policy.make_room("d")


def test_what_can_never_fit_is_refused() -> None:
    policy = Residency(20)
    with pytest.raises(TooLarge):
        policy.add("a", 21)
    policy.add("b", 15)
    with pytest.raises(TooLarge):
        policy.add("c", 6, base="b")


def test_one_that_turns_out_never_to_fit_keeps_nobody_waiting(policy: Residency) -> None:
    """Beside a pinned one, or with what its batches take: it is told, and others come though it has waited longer."""
    bring(policy, "a", 0)
    policy.models["a"].pinned = True
    policy.add("large", 11)
    policy.want("large", 1)
    with pytest.raises(TooLarge) as told:
        policy.check_fits("large")
    assert (told.value.needed, told.value.budget, told.value.pinned) == (11, 10, 10)
    assert settle(policy, 1 + PATIENCE_S) == []
    assert [one.key for one in bring(policy, "b", 2 + PATIENCE_S)] == ["b"]
    policy.models["a"].pinned = False
    policy.check_fits("large")
    policy.models["large"].working = 10
    with pytest.raises(TooLarge):
        policy.check_fits("large")
    assert [one.key for one in bring(policy, "c", 3 + PATIENCE_S)] == ["a", "c"]


def test_failures_that_may_pass_are_tried_again_ever_more_rarely(policy: Residency) -> None:
    policy.want("a", 0)
    now, waits = 0.0, []
    for _ in range(9):
        step = policy.step(now)
        assert step is not None
        assert policy.failed(step, now, for_good=False) == []
        assert policy.step(now) is None
        waits.append(policy.models["a"].retry_at - now)
        now = policy.models["a"].retry_at
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert [one.key for one in bring(policy, "b", 1)] == ["b"], "another one is not held up"
    step = policy.step(now)
    assert step is not None
    assert policy.failed(step, now, for_good=True) == ["a"]
    assert policy.wanted == {}


def test_a_lost_base_is_told_to_all_that_wait_for_its_adapters() -> None:
    policy = Residency(0)
    policy.add("base", 10)
    for name in ("one", "two"):
        policy.add(name, 1, base="base")
        policy.want(name, 0)
    step = policy.step(0)
    assert step is not None
    assert step.key == "base"
    assert policy.failed(step, 0, for_good=True) == ["one", "two"]


class Worker(RuleBasedStateMachine):
    """A worker's life: work for models of any size arrives, batches begin and end, loads fail, memory runs out."""

    @initialize(
        sizes=st.lists(st.integers(1, 10), min_size=2, max_size=7),
        budget=st.integers(10, 25),
        host=st.integers(0, 30),
        idle_s=st.sampled_from([0.0, 5.0]),
        data=st.data(),
    )
    def begin(self, sizes: list[int], budget: int, host: int, idle_s: float, data: st.DataObject) -> None:
        self.now = 0.0
        self.policy = Residency(budget, host, patience_s=PATIENCE_S, idle_s=idle_s)
        self.waiting: dict[str, int] = {}  # items that have had no batch
        self.running: list[tuple[str, int]] = []
        self.came, self.finished, self.gone = 0, 0, 0
        self.waits_since: dict[str, float] = {}
        for number, size in enumerate(sizes):
            base = ""
            if number and data.draw(st.integers(0, 3)) == 0:
                base = data.draw(st.sampled_from([key for key, one in self.policy.models.items() if not one.base]))
                size = 1
            try:
                self.policy.add(f"m{number}", size, base=base)
            except TooLarge:
                assert size + (self.policy.models[base].weights if base else 0) > budget
        self.moving: Step | None = None

    def names(self) -> list[str]:
        return list(self.policy.models)

    @rule(data=st.data(), items=st.integers(1, 5))
    def work_comes(self, data: st.DataObject, items: int) -> None:
        name = data.draw(st.sampled_from(self.names()))
        self.waiting[name] = self.waiting.get(name, 0) + items
        self.came += items
        self.tell()

    @rule()
    def the_engine_looks(self) -> None:
        """As it does: a batch of the first model that may run."""
        for name in list(self.waiting):
            if self.policy.hold(name, self.now):
                self.running.append((name, self.waiting.pop(name)))
                self.waits_since.pop(name, None)
                break
            self.policy.want(name, self.now)
            self.waits_since.setdefault(name, self.now)
        self.tell()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_batch_ends(self, data: st.DataObject) -> None:
        name, items = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.policy.release(name, self.now)
        self.finished += items

    @precondition(lambda self: self.moving is None)
    @rule()
    def a_move_begins(self) -> None:
        self.moving = self.policy.step(self.now)
        if self.moving is not None:
            model = self.policy.models[self.moving.key]
            if self.moving.to < Tier.DEVICE:
                assert not model.users, "a model in use is made to leave"
                assert not model.pinned or self.moving.reason == "base"

    @precondition(lambda self: self.moving is not None)
    @rule(seconds=st.floats(0, 1), failure=st.sampled_from(["", "", "", "passes", "final"]))
    def the_move_ends(self, seconds: float, failure: str) -> None:
        assert self.moving is not None
        step, self.moving = self.moving, None
        self.now += seconds
        if failure and step.to == Tier.DEVICE:
            event(f"failure: {failure}")
            for name in self.policy.failed(step, self.now, for_good=failure == "final"):
                self.gone += self.waiting.pop(name, 0)
                self.waits_since.pop(name, None)
            self.tell()
        else:
            self.policy.done(step, self.now, seconds=seconds)

    @rule(data=st.data())
    def memory_runs_out(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.names()))
        self.policy.make_room(name)

    @rule(seconds=st.floats(0.01, 3))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    def tell(self) -> None:
        self.policy.busy = frozenset(self.waiting)
        for key in set(self.policy.wanted) - self.policy.busy:
            self.policy.unwant(key)

    @invariant()
    def within_the_budget(self) -> None:
        assert self.policy.resident_bytes <= self.policy.device_bytes
        assert self.policy.copied_bytes <= max(self.policy.host_bytes, 0)

    @invariant()
    def no_item_is_lost_or_doubled(self) -> None:
        under_way = sum(items for _, items in self.running)
        assert self.came == self.finished + self.gone + under_way + sum(self.waiting.values())

    @invariant()
    def what_runs_is_there(self) -> None:
        for name, _ in self.running:
            model = self.policy.models[name]
            assert model.tier == Tier.DEVICE
            assert not model.moving
            assert not model.base or self.policy.models[model.base].tier == Tier.DEVICE

    def teardown(self) -> None:
        """Whatever state that left: with batches that end and loads that succeed, all work is done, and nobody waits much
        longer than its patience for each of those before it."""
        if not hasattr(self, "policy"):
            return
        if self.moving is not None:
            self.policy.done(self.moving, self.now)
            self.moving = None
        started, bound = self.now, (len(self.policy.models) + 1) * (2 * PATIENCE_S + 61)
        while self.waiting or self.running:
            while self.running:
                name, items = self.running.pop()
                self.policy.release(name, self.now)
                self.finished += items
            for name in list(self.waiting):
                if self.policy.hold(name, self.now):
                    self.running.append((name, self.waiting.pop(name)))
                else:
                    self.policy.want(name, self.now)
            self.tell()
            while (step := self.policy.step(self.now)) is not None:
                self.policy.done(step, self.now, seconds=0.01)
            self.now += 0.25
            assert self.now - started < bound, (self.waiting, self.policy.models, self.policy.wanted)
        self.no_item_is_lost_or_doubled()


TestWorker = Worker.TestCase
TestWorker.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=3, max_size=6),
    uses=st.lists(st.integers(0, 5), min_size=20, max_size=60),
    took=st.floats(0, 0.3),
)
def test_nobody_waits_past_patience_for_each_before_it(sizes: list[int], uses: list[int], took: float) -> None:
    """All models always have work, batches take 0.1 s: from when one is wanted until it is there, each of the others gets at most
    one turn, of at most its patience, a batch that ends, and the moves."""
    policy, now = Residency(max(*sizes, 12), patience_s=PATIENCE_S), 0.0
    for number, size in enumerate(sizes):
        policy.add(str(number), size)
    policy.busy = frozenset(policy.models)
    longest = 0.0
    for _ in uses:
        for name in policy.models:
            if policy.hold(name, now):
                policy.release(name, now + 0.05)
            else:
                policy.want(name, now)
        longest = max([longest, *(now - since for since in policy.wanted.values())])
        now += 0.1
        while (step := policy.step(now)) is not None:
            now += took
            policy.done(step, now, seconds=took)
    assert longest <= len(sizes) * (2 * PATIENCE_S + 1 + 3 * took)
