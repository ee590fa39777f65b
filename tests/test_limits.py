"""How large batches may be once the device ran out of memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lading.workers.limits import GROW_AFTER, Limits


def test_a_limit_is_learned_and_kept_and_grows_again_slowly() -> None:
    limits = Limits(4096)
    assert limits.of("a") == 4096
    limits.exhausted("a", 4000)
    assert (limits.of("a"), limits.of("b")) == (2000, 4096)
    assert limits.learned() == {"a": 2000}
    for _ in range(GROW_AFTER - 1):
        limits.ran("a", 1900)
    for _ in range(1000):
        limits.ran("a", 10)  # says nothing of large ones
    assert limits.of("a") == 2000
    limits.ran("a", 2000)
    assert limits.of("a") == 2501
    for _ in range(20 * GROW_AFTER):
        limits.ran("a", limits.of("a"))
    assert limits.of("a") == 4096
    assert limits.learned() == {}


@given(room=st.integers(1, 500), budget=st.integers(1, 500))
def test_it_comes_to_rest_where_the_memory_is(room: int, budget: int) -> None:
    """A device with room for so much: every batch that fails halves the limit, until one fits; then none fails for a while."""
    limits = Limits(budget)
    failed = 0
    while limits.of("m") > room:
        limits.exhausted("m", limits.of("m"))
        failed += 1
    assert failed <= 10
    assert limits.of("m") >= min(budget, max(room // 2, 1))


def test_two_batches_may_end_a_limit_at_the_same_time() -> None:
    """The second one finds it gone."""

    class Between:
        def __enter__(self):
            limits._found.clear()

        def __exit__(self, *_):
            pass

    limits = Limits(64)
    limits.exhausted("model", 64)
    limits._lock = Between()
    limits.ran("model", 32)
    assert limits.of("model") == 64
