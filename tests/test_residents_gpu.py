"""Residency with real device memory: what leaves gives its bytes back, what comes gives the same results, and short memory is survived."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from lading.config.checkpoint import locate, resolve
from lading.workers.attempts import Attempts
from lading.workers.gauges import Gauges
from lading.workers.limits import Limits
from lading.workers.parts import Items
from lading.workers.residency import Residency, Tier
from lading.workers.residents import Residents
from tests import models

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
MIB = 1 << 20


@pytest.fixture
def residents() -> Iterator[Residents]:
    one = Residents("cuda", 1, Residency(0, 4096 * MIB), batch_tokens=4096)
    yield one
    one.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models.tiny_encoder(tmp_path / "encoder")


def results(residents: Residents, adapter: Any, prepared: Any) -> pa.RecordBatch:
    with residents.holding(adapter):
        return adapter.run([(prepared, np.arange(len(prepared.costs)))]).batch


def test_a_model_that_leaves_gives_its_bytes_back(residents: Residents, folder: Path) -> None:
    """All of them, every time; and it comes back by one copy, as it was."""
    recipe = resolve(locate(str(folder)), task="encode")
    adapter: Any = residents.get(recipe, folder)
    prepared = adapter.prepare([pa.array(["some words", "and some more of them"])])
    expected = results(residents, adapter, prepared)
    residents.let_go(recipe.weights)
    away = torch.cuda.memory_allocated()
    for _ in range(5):
        assert results(residents, adapter, prepared).equals(expected)
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() - away >= adapter.nbytes
        residents.let_go(recipe.weights)
        assert torch.cuda.memory_allocated() == away
    assert residents.policy.loads == {Tier.DISK: 1, Tier.HOST: 5}
    assert adapter._holdings._block.is_pinned()


def test_a_batch_for_which_there_is_no_memory_is_cut_down(residents: Residents, folder: Path) -> None:
    """Another program has nearly all of the device: every row still gets its result, in smaller batches."""
    recipe = resolve(locate(str(folder)), task="encode")
    adapter: Any = residents.get(recipe, folder)
    residents.ready(recipe)
    prepared = adapter.prepare([pa.array(["word " * 60] * 4000)])
    whole = int(prepared.costs.sum())
    free, _ = torch.cuda.mem_get_info()
    taken = adapter.working.of(whole, 1)
    hog = torch.empty(max(free - taken // 4 - 64 * MIB, MIB), dtype=torch.uint8, device="cuda")
    items, gauges = Items(adapter, prepared, len(prepared.costs)), Gauges()
    attempts = Attempts(residents, Limits(whole), gauges)
    with residents.holding(adapter):
        outcomes = attempts.run([(items, np.arange(len(prepared.costs)))])
    del hog
    assert not any(isinstance(outcome, Exception) for _, outcome in outcomes)
    assert sum(len(chosen) for some, _ in outcomes for _, chosen in some) == 4000
    if gauges.out_of_memory:
        assert attempts.limits.of(adapter.weights) < whole
