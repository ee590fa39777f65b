"""The pools of this installation as the Helm chart in deploy/ takes them, and whether what it was given is the same. Pure.

pools.yaml is the one truth of what a pool is. The chart has to know it too, since how much waits for how many workers follows
from it; it takes each entry whole, under `spec`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from ..config.errors import UsageError
from .pools import Pool, Pools, parse

# Written also where they are the default: the chart reckons with these, and has no defaults of its own.
ALWAYS = ("device", "memory_bytes", "max_workers", "pull_shards", "pull_requests")


def spec(pool: Pool) -> dict[str, Any]:
    """Its entry of pools.yaml, without what is the default anyway (but for ALWAYS)."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(pool):
        value = getattr(pool, field.name)
        if field.name != "name" and (field.name in ALWAYS or value != field.default):
            found[field.name] = list(value) if isinstance(value, tuple) else value
    if pool.preload:
        found["preload"] = [
            {"verb": one.verb, "model": one.model, **one.options.to_dict(), **({"pin": True} if one.pin else {})}
            for one in pool.preload
        ]
    return found


def values(pools: Pools) -> str:
    """The block of a values file."""
    return _yaml({"pools": {name: {"spec": spec(pool)} for name, pool in pools.items()}})


def config_map(pools: Pools, name: str) -> str:
    """A ConfigMap with pools.yaml, for clusters without the chart."""
    content = _yaml({one: spec(pool) for one, pool in pools.items()})
    return _yaml({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"pools.yaml": content}})


def differences(pools: Pools, given: Mapping[Any, Any], where: str) -> list[str]:
    """How the pools of a values file differ from these, a line each. A file may leave pools out.

    Raises UsageError for a file that describes no pools, and for what pools.yaml could not say either; `where` names the file.
    """
    blocks = given.get("pools")
    if not isinstance(blocks, dict) or not blocks:
        raise UsageError(f"{where}: pools: expected pools by name, found {blocks!r}")
    theirs = parse({name: _spec(name, block, where) for name, block in blocks.items()}, where)
    found: list[str] = []
    for name, pool in theirs.items():
        if name not in pools:
            found.append(f"pools.{name}: pools.yaml has no such pool")
            continue
        for field in dataclasses.fields(pool):
            here, there = getattr(pools[name], field.name), getattr(pool, field.name)
            if here != there:
                found.append(f"pools.{name}.spec.{field.name}: {there!r}, and {here!r} in pools.yaml")
    return found


def _spec(name: object, block: object, where: str) -> object:
    if not isinstance(block, dict) or "spec" not in block:
        raise UsageError(f"{where}: pools.{name}.spec: is missing")
    return block["spec"]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they stand."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _yaml(content: object) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
