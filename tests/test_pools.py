"""Pools: what pools.yaml may say, and which pool a model goes to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lading.config import settings
from lading.config.errors import UsageError
from lading.schedulers.pools import Pool, load
from lading.schedulers.routing import route

SMALL, LARGE = 100 << 20, 8 << 30


def in_folder(folder: Path, text: str) -> dict[str, Pool]:
    (folder / "pools.yaml").write_text(text)
    return load({"LADING_CONFIG_DIR": str(folder)})


def test_the_packaged_pools():
    """Without a file there is a pool for processors and one for GPUs, and a processor does not compute in float16."""
    pools = load({})
    assert [(pool.name, pool.device) for pool in pools.values()] == [("cpu", "cpu"), ("gpu", "cuda")]
    assert pools["cpu"].precisions == ("float32", "bfloat16")
    assert pools["gpu"].precisions == ("float32", "bfloat16", "float16")
    assert (pools["gpu"].shards, pools["gpu"].requests) == ("lading.gpu.shards", "lading.gpu.requests")


def test_a_file_stands_in_place_of_the_packaged_one(tmp_path: Path):
    """Its pools are all there are, what it leaves out has a default, and it needs no settings.yaml beside it."""
    found = in_folder(tmp_path, "h100:\n  device: cuda\n  memory_bytes: 60_000_000_000\n  max_workers: 2\n")
    assert found == {"h100": Pool(name="h100", device="cuda", memory_bytes=60_000_000_000, max_workers=2)}
    assert settings.load({"LADING_CONFIG_DIR": str(tmp_path)}).threads == settings.load({}).threads
    (tmp_path / "pools.yaml").unlink()
    (tmp_path / "settings.yaml").write_text("threads: 3\n")
    assert load({"LADING_CONFIG_DIR": str(tmp_path)}) == load({})


GPU = "g: {device: cuda, memory_bytes: 9"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no pool"),
        ("G.1: {device: cpu}", "G.1: a pool's name has small letters, digits and hyphens"),
        ("g: cuda", "g: expected the keys of a pool, found 'cuda'"),
        ("g: {device: cuda}", "g.memory_bytes: is missing"),
        ("g: {memory_bytes: 9}", "g.device: is missing"),
        ("g: {device: gpu, memory_bytes: 9}", "g.device: 'gpu' is no device"),
        ("g: {device: cuda, memory_bytes: 9 GB}", "g.memory_bytes: expected a whole number, found '9 GB'"),
        (f"{GPU}, max_worker: 1}}", "g.max_worker: unknown key; did you mean 'max_workers'?"),
        (f"{GPU}, max_workers: 0}}", "g.max_workers: must be at least 1, found 0"),
        (f"{GPU}, max_workers: true}}", "g.max_workers: expected a whole number, found True"),
        (f"{GPU}, precisions: float32}}", "g.precisions: expected a list like [float32, bfloat16], found 'float32'"),
        (f"{GPU}, precisions: [int8]}}", "g.precisions: int8 is for pools of CPUs, and this one has device cuda"),
        (f"{GPU}, precisions: [float23]}}", "g.precisions: 'float23' is none; did you mean 'float32'?"),
    ],
)
def test_a_wrong_file_names_file_and_key(tmp_path: Path, text: str, message: str):
    """An unknown key or a value of the wrong type is an error with file, key and remedy."""
    with pytest.raises(UsageError, match=re.escape(f"{tmp_path}/pools.yaml: {message}")):
        in_folder(tmp_path, text)


def test_a_misspelt_file_is_said(tmp_path: Path):
    """A file that looks like ours, but is not read, is never passed over."""
    (tmp_path / "settings.yaml").write_text("")
    (tmp_path / "pool.yml").write_text("")
    with pytest.raises(UsageError, match=r"pool\.yml: not a file Lading reads; did you mean 'pools\.yaml'"):
        load({"LADING_CONFIG_DIR": str(tmp_path)})


def pool(name: str, device: str, memory: int, *precisions: str) -> Pool:
    return Pool(
        name=name, device=device, memory_bytes=memory, precisions=precisions or ("float32", "bfloat16", "float16")
    )


POOLS = {
    one.name: one
    for one in (
        pool("h100", "cuda", 60 << 30),
        pool("t4", "cuda", 12 << 30, "float32", "float16"),
        pool("cpu", "cpu", 4 << 30, "float32", "bfloat16"),
    )
}


@pytest.mark.parametrize(
    ("precision", "weights", "wanted", "device", "found"),
    [
        ("float32", SMALL, "", "", "cpu"),
        ("float16", SMALL, "", "", "t4"),
        ("float32", LARGE, "", "", "t4"),
        ("bfloat16", LARGE, "", "", "h100"),
        ("float32", SMALL, "", "cuda", "t4"),
        ("float32", SMALL, "h100", "", "h100"),
        ("float32", 4 << 30, "", "", "cpu"),
        ("float32", (4 << 30) + 1, "", "", "t4"),
    ],
)
def test_the_smallest_pool_that_can(precision: str, weights: int, wanted: str, device: str, found: str):
    """A model goes to the named pool, else to the one with the least memory that has its precision, device and room."""
    assert route(precision, weights, POOLS, wanted, device).name == found


@pytest.mark.parametrize(
    ("precision", "weights", "wanted", "device", "message"),
    [
        ("float32", SMALL, "h10", "", "there is no pool 'h10'; did you mean 'h100'?"),
        (
            "float16",
            SMALL,
            "cpu",
            "",
            "pool cpu cannot take a model of 104.9 MB in float16: it computes in float32 or bfloat16",
        ),
        ("bfloat16", SMALL, "t4", "", "it computes in float32 or float16; it fits h100 and cpu"),
        ("float32", LARGE, "cpu", "", "it has room for 4.3 GB of weights; it fits h100 and t4"),
        ("float32", SMALL, "t4", "cpu", "on cpu: it runs on cuda; it fits cpu"),
        (
            "float32",
            61 << 30,
            "",
            "",
            "no pool can take a model of 65.5 GB in float32: h100 has room for 64.4 GB of weights; t4",
        ),
        ("float16", SMALL, "", "cpu", "no pool can take a model of 104.9 MB in float16 on cpu: h100 runs on cuda"),
    ],
)
def test_what_no_pool_can_take_is_refused(precision: str, weights: int, wanted: str, device: str, message: str):
    """A refusal names the pools, what each lacks, and those that would do."""
    with pytest.raises(UsageError, match=re.escape(message)):
        route(precision, weights, POOLS, wanted, device)
