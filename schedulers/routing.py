"""Which pool a model goes to. Pure."""

from __future__ import annotations

from ..config.errors import UsageError
from .pools import Pool, Pools, find


def route(precision: str, weight_bytes: int, pools: Pools, wanted: str = "", device: str = "") -> Pool:
    """The pool named `wanted`, if it can hold the model, else the one with the least memory that can.

    `weight_bytes`: of the model once loaded in `precision`; 0 where nobody could look. `device`: cpu or cuda where it must
    be one of them. Raises UsageError naming the pools and what each of them lacks.
    """
    needed = f"a model of {_size(weight_bytes)} in {precision}" + (f" on {device}" if device else "")
    if wanted:
        pool = find(pools, wanted)
        if why := _lacks(pool, precision, weight_bytes, device):
            fitting = [one.name for one in pools.values() if not _lacks(one, precision, weight_bytes, device)]
            hint = f"; it fits {' and '.join(fitting)}" if fitting else ""
            raise UsageError(f"pool {wanted} cannot take {needed}: it {why}{hint}")
        return pool
    lacking = {pool.name: _lacks(pool, precision, weight_bytes, device) for pool in pools.values()}
    fitting = [pool for pool in pools.values() if not lacking[pool.name]]
    if not fitting:
        reasons = "; ".join(f"{name} {why}" for name, why in lacking.items())
        raise UsageError(f"no pool can take {needed}: {reasons} (pools.yaml)")
    return min(fitting, key=lambda pool: pool.memory_bytes)


def _lacks(pool: Pool, precision: str, weight_bytes: int, device: str) -> str:
    """Why a model does not fit, "" if it does."""
    if device and pool.device != device:
        return f"runs on {pool.device}"
    if precision not in pool.precisions:
        return f"computes in {' or '.join(pool.precisions)}"
    if weight_bytes > pool.memory_bytes:
        return f"has room for {_size(pool.memory_bytes)} of weights"
    return ""


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
