"""The pools of this installation, as pools.yaml describes them. Pure but for reading that file; needs no Redis."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ..config.errors import UsageError, nearest
from ..config.settings import layered_file

FILE = "pools.yaml"
DEVICES = ("cpu", "cuda")
PRECISIONS = ("float32", "bfloat16", "float16")
OF_CPUS = ("int8",)  # further ones, that a pool of CPUs has if it says so
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")  # part of keys in Redis, whose parts are separated by dots


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A class of hardware with queues of its own. config/pools.yaml says what each field means."""

    name: str
    device: str  # cpu | cuda
    memory_bytes: int
    precisions: tuple[str, ...] = PRECISIONS
    batch_tokens: int = 0
    max_workers: int = 4
    pull_shards: int = 2
    pull_requests: int = 256

    @property
    def shards(self) -> str:
        """The list in Redis that holds its shards."""
        return f"lading.{self.name}.shards"

    @property
    def requests(self) -> str:
        """The list in Redis that holds its requests."""
        return f"lading.{self.name}.requests"


Pools = dict[str, Pool]


def load(environ: Mapping[str, str] = os.environ) -> Pools:
    """Every pool by name, in the order of the file. Raises UsageError naming the file, the key and the nearest valid one."""
    given, where = layered_file(FILE, environ)
    if not given:
        raise UsageError(
            f"{where}: names no pool: at least one is needed, like `cpu: {{device: cpu, memory_bytes: 4_000_000_000}}`"
        )
    return {name: _pool(name, keys, where) for name, keys in given.items()}


def find(pools: Pools, name: str) -> Pool:
    """The pool of that name. Raises UsageError with the nearest one."""
    if name not in pools:
        raise UsageError(f"there is no pool {name!r}{nearest(name, pools)} (pools.yaml)")
    return pools[name]


def _pool(name: object, keys: object, where: str) -> Pool:
    def fail(key: str, what: str) -> NoReturn:
        raise UsageError(f"{where}: {key}: {what}")

    if not isinstance(name, str) or not _NAME.fullmatch(name):
        fail(str(name), "a pool's name has small letters, digits and hyphens")
    if not isinstance(keys, dict):
        fail(name, f"expected the keys of a pool, found {keys!r}")
    fields = {field.name: field for field in dataclasses.fields(Pool) if field.name != "name"}
    given: dict[str, Any] = {}
    for key, value in keys.items():
        path = f"{name}.{key}"
        if key not in fields:
            fail(path, f"unknown key{nearest(str(key), fields)}")
        given[key] = _number(path, value, fail) if fields[key].type == "int" else value
    for key in ("device", "memory_bytes"):
        if key not in given:
            fail(f"{name}.{key}", "is missing")
    device, precisions = given["device"], given.pop("precisions", list(PRECISIONS))
    if device not in DEVICES:
        fail(f"{name}.device", f"{device!r} is no device{nearest(str(device), DEVICES)}")
    if not isinstance(precisions, list) or not precisions:
        fail(f"{name}.precisions", f"expected a list like [float32, bfloat16], found {precisions!r}")
    for one in precisions:
        if one not in (*PRECISIONS, *OF_CPUS):
            fail(f"{name}.precisions", f"{one!r} is none{nearest(str(one), (*PRECISIONS, *OF_CPUS))}")
        if one in OF_CPUS and device != "cpu":
            fail(f"{name}.precisions", f"{one} is for pools of CPUs, and this one has device {device}")
    return Pool(name=name, precisions=tuple(precisions), **given)


def _number(path: str, value: object, fail: Callable[[str, str], NoReturn]) -> int:
    least = 0 if path.endswith(".batch_tokens") else 1
    if not isinstance(value, int) or isinstance(value, bool):
        fail(path, f"expected a whole number, found {value!r}")
    if value < least:
        fail(path, f"must be at least {least}, found {value}")
    return value
