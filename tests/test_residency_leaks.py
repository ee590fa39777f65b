"""Models that come and go for a long time take no more memory at the end than at the beginning."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest

from tests import models, models_outputs
from tests.swapping import ALL_BYTES, Kind, Workers, texts

LARGE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
CYCLES = 9  # of three switches each, the first one to warm up


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Kind]:
    """Three models of some 13 MB; the sparse one's parts know each other, and so are no garbage until somebody looks."""
    folder = tmp_path_factory.mktemp("large")
    return [
        Kind("dense", "encode", models.tiny_encoder(folder / "dense", **LARGE)),
        Kind("sparse", "encode", models_outputs.splade(folder / "sparse", config=LARGE)),
        Kind("cross-encoder", "score", models.tiny_cross_encoder(folder / "cross", **LARGE)),
    ]


def resident_bytes() -> int:
    """Of this process. What the allocator keeps for small things is given back before."""
    ctypes.CDLL(None).malloc_trim(0)
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("host_bytes", [ALL_BYTES, 0], ids=["host", "disk"])
def test_switches_leave_nothing_behind(host_bytes: int, workers: Workers, large: list[Kind]) -> None:
    """24 switches under load: accounted bytes are the same after each cycle, the process' own within a quarter of a model."""
    watched = workers.make(host_bytes=host_bytes)
    watched.measure(large, fitting=1)
    watched.worker.start()
    accounted: list[tuple[int, int]] = []
    resident: list[int] = []
    gc.collect()
    gc.disable()  # what needs a collection to be free would be a device's memory that is not there when it is needed
    try:
        for _ in range(CYCLES):
            for kind in large:
                watched.until_told(watched.ask([(kind, text) for text in texts(12)]))
            watched.until_quiet()
            accounted.append((watched.policy.resident_bytes, watched.policy.copied_bytes))
            resident.append(resident_bytes())
    finally:
        gc.enable()
    assert sum(watched.policy.loads.values()) - len(large) >= 3 * CYCLES - 1
    assert len(set(accounted)) == 1, accounted
    size = min(one.weights for one in watched.policy.models.values())
    assert size > 12_000_000
    assert max(resident[1:]) - resident[0] < size / 4, resident
