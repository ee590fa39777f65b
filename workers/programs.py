"""The processes of an installation as programs to run: a worker for each device, a scheduler. What cannot run is refused here."""

from __future__ import annotations

import dataclasses
import os
import sys

from ..adapters import check_device
from ..adapters.devices import count
from ..config.errors import UsageError
from ..config.settings import load
from ..schedulers import pools
from ..schedulers.celery_settings import pool_name
from ..schedulers.connection import Broker
from ..schedulers.pools import Pool
from .supervise import Program

# -P: in a checkout, our `adapters` must not be found before another package of that name.
PYTHON = (sys.executable, "-P")


def workers(pool: str, devices: str, *, processes: int = 1, verbose: int = 0) -> list[Program]:
    """A process for each device: `devices` is "all", a list like "cuda:0,cuda:1", or "" for one of the pool's kind;
    `processes` on each; `verbose`: how often -v was given.

    Raises UsageError: no such pool or device, a device of another kind than the pool's, a broker's URL that is none.
    """
    found, named = _checked(pool, devices)
    return [_worker(found.name, number, device, verbose) for number, device in enumerate(named * processes)]


def slots(pool: str, devices: str, most: int, *, first: int = 0, verbose: int = 0) -> list[Program]:
    """`most` workers, 0: one for each device ("" is all), as many as the pool has at most. No device has two before each has one.

    `first`: the number of the first among all workers that run beside each other. Raises UsageError, as `workers`.
    """
    found, named = _checked(pool, devices or "all")
    numbers = range(most or min(found.max_workers, len(named)))
    made = [_worker(found.name, first + number, named[number % len(named)], verbose) for number in numbers]
    # They end when they are told to, not by themselves.
    always = {"LADING_EXIT_WHEN_IDLE_S": "0"}
    return [dataclasses.replace(one, environment={**one.environment, **always}, stays=True) for one in made]


def _checked(pool: str, devices: str) -> tuple[Pool, list[str]]:
    found = pools.find(pools.load(), pool_name(pool))
    Broker.connect(load().broker_url)  # that nobody answers yet is no reason not to wait
    named = _devices(devices, found.device)
    for device in named:
        check_kind(found, device)
        check_device(device)
    return found, named


def metrics_port(number: int) -> dict[str, str]:
    """The environment in which a program serves its metrics: on the port of the settings for the first, the next for the second."""
    port = load().metrics_port
    return {"LADING_METRICS_PORT": str(port + number)} if port else {}


def check_kind(pool: Pool, device: str) -> None:
    """Raises UsageError for a device of another kind than the pool's."""
    if not device.startswith(pool.device):
        raise UsageError(f"device {device} is none for pool {pool.name}, whose device is {pool.device}")


def scheduler(number: int = 0, *, verbose: int = 0) -> Program:
    """The process that keeps submitted jobs going; `number`: of the programs on this machine before it."""
    arguments = [*PYTHON, "-m", "lading.cli", *["-v"] * verbose, "scheduler"]
    return Program("scheduler", arguments, metrics_port(number))


def _worker(pool: str, number: int, device: str, verbose: int) -> Program:
    kind, _, index = device.partition(":")
    shown = {"CUDA_VISIBLE_DEVICES": _of_those_given(int(index))} if index else {}
    level = ("WARNING", "INFO", "DEBUG")[min(verbose, 2)]
    # As `celery -A lading.workers.app worker`, which would look for `lading` in the working directory first.
    command = [
        *PYTHON,
        "-m",
        "lading.workers.app",
        "--quiet",
        "worker",
        "-n",
        f"{pool}-{number}@%h",
        "-l",
        level,
    ]
    environment = {"LADING_POOL": pool, "LADING_DEVICE": kind, **shown, **metrics_port(number)}
    return Program(f"worker {pool}-{number} on {device}", command, environment)


def _of_those_given(index: int) -> str:
    """The device of this number among those that our own environment leaves us (a number, a UUID, a MIG instance)."""
    given = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    return given[index] if index < len(given) else str(index)


def _devices(wanted: str, kind: str) -> list[str]:
    if wanted == "all" and kind == "cuda":
        return [f"cuda:{number}" for number in range(count())] or [kind]
    return [kind] if wanted in ("", "all") else [one.strip() for one in wanted.split(",")]
