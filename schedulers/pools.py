"""The pools of this installation, as pools.yaml describes them. Pure but for reading that file; needs no Redis."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ..config.errors import BadMessage, UsageError, nearest
from ..config.settings import layered_file
from .bodies import VERBS, RequestOptions, request_options

FILE = "pools.yaml"
DEVICES = ("cpu", "cuda")
PRECISIONS = ("float32", "bfloat16", "float16")
OF_CPUS = ("int8",)  # further ones, that a pool of CPUs has if it says so
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")  # part of keys in Redis, whose parts are separated by dots


@dataclasses.dataclass(frozen=True, slots=True)
class Preload:
    """A model that a pool's workers load before anybody asks for it; `pin`: it never makes room for another."""

    verb: str  # encode | score | extract
    model: str
    options: RequestOptions
    pin: bool = False


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
    memory_share: float = 0.0
    host_bytes: int = 0
    swap_patience_s: float = 2.0
    idle_unload_s: float = 0.0
    preload: tuple[Preload, ...] = ()

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
    return parse(given, where)


def parse(given: Mapping[Any, Any], where: str) -> Pools:
    """The pools that the content of such a file describes. Raises UsageError as `load`; `where` names the file."""
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
        given[key] = _READ.get(str(fields[key].type), _as_it_is)(path, value, fail)
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


_Fail = Callable[[str, str], NoReturn]


def _as_it_is(path: str, value: Any, fail: _Fail) -> Any:
    return value


def _preload(path: str, value: object, fail: _Fail) -> tuple[Preload, ...]:
    """Entries like `{verb: encode, model: BAAI/bge-m3, pin: true}`; what else they have are options of a request."""
    if not isinstance(value, list):
        fail(path, f"expected a list of models like {{verb: encode, model: NAME}}, found {value!r}")
    found: list[Preload] = []
    for number, entry in enumerate(value):
        where = f"{path}[{number}]"
        if not isinstance(entry, dict):
            fail(where, f"expected keys like {{verb: encode, model: NAME}}, found {entry!r}")
        rest = {str(key): one for key, one in entry.items()}
        verb, model, pin = rest.pop("verb", None), rest.pop("model", None), rest.pop("pin", False)
        if not isinstance(pin, bool):
            fail(f"{where}.pin", f"expected true or false, found {pin!r}")
        if verb not in VERBS:
            fail(f"{where}.verb", f"{verb!r} is none of {', '.join(VERBS)}")
        if not isinstance(model, str) or not model:
            fail(f"{where}.model", f"expected the name or folder of a model, found {model!r}")
        try:
            options = request_options(rest, verb)
        except BadMessage as error:
            fail(where, str(error).removeprefix("options."))
        found.append(Preload(verb, model, options, pin))
    return tuple(found)


def _real(path: str, value: object, fail: _Fail) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        fail(path, f"expected a number, found {value!r}")
    most = 1.0 if path.endswith("_share") else math.inf
    if not 0 <= value <= most:
        fail(path, f"must be {'from 0 to 1' if most == 1.0 else 'at least 0'}, found {value}")
    return float(value)


def _number(path: str, value: object, fail: _Fail) -> int:
    least = 0 if path.endswith((".batch_tokens", ".host_bytes")) else 1
    if not isinstance(value, int) or isinstance(value, bool):
        fail(path, f"expected a whole number, found {value!r}")
    if value < least:
        fail(path, f"must be at least {least}, found {value}")
    return value


_READ: dict[str, Callable[[str, Any, _Fail], Any]] = {
    "int": _number,
    "float": _real,
    "tuple[Preload, ...]": _preload,
}
