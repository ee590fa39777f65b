"""Stages that run ahead in threads: order, bounds, errors and early ends."""

import itertools
import threading

import pytest

from lading.workers.stages import Ahead


def test_order_is_kept_and_the_end_is_an_end():
    """Items come out as they went in, and asking after the end stays at the end."""
    with Ahead("t", lambda: iter(range(100)), 3) as items:
        assert list(items) == list(range(100))
        assert next(items, None) is None


def test_an_error_comes_after_the_items_before_it():
    """The consumer gets what was made before the source failed, then the source's own exception."""

    def source():
        yield 1
        raise KeyError("broken")

    with Ahead("t", source, 3) as items:
        assert next(items) == 1
        with pytest.raises(KeyError, match="broken"):
            next(items)


def test_the_source_runs_no_further_ahead_than_told():
    """At most `depth` items wait, and one is in the source's hand."""
    made = []
    full = threading.Semaphore(0)

    def source():
        for n in range(50):
            made.append(n)
            full.release()
            yield n

    with Ahead("t", source, 4) as items:
        for _ in range(5):
            full.acquire()
        assert len(made) == 5
        next(items)
        full.acquire()
        assert len(made) == 6


def test_closing_early_ends_an_endless_source():
    """A consumer that stops early leaves no thread behind."""
    items = Ahead("endless", lambda: itertools.count(), 2)
    assert next(items) == 0
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "lading-endless"]


def test_closing_a_chain_from_its_source_ends_every_stage():
    """A stage that waits for its source is woken when the source is closed."""
    first = Ahead("first", lambda: itertools.count(), 2)
    second = Ahead("second", lambda: (n + 1 for n in first), 2)
    assert next(second) == 1
    first.close()
    second.close()
    assert not [thread for thread in threading.enumerate() if thread.name in ("lading-first", "lading-second")]
