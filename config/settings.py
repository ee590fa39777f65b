"""Settings of the machine and the installation, from four layers. The only reader of LADING_* settings.

Packaged defaults.yaml < settings.yaml in LADING_CONFIG_DIR < LADING_<KEY> in the environment < the command line,
whose part is the caller's (`dataclasses.replace`). What a job computes is never a setting: that is the job spec.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UsageError, nearest
from .strict_yaml import load_mapping, parse_mapping

FILE = "settings.yaml"
FILES = (FILE, "pools.yaml", "models.yaml")  # that may lie in LADING_CONFIG_DIR
WINDOW_BATCHES = 16  # batches' worth of tokens sorted together unless window_tokens says otherwise
CHOICES = {"capacity": ("on-demand", "spot"), "log_format": ("auto", "console", "json")}  # settings of a few words
MOST = {"metrics_port": 65535}
# LADING_ variables that are read elsewhere and are not settings; a test compares the list with the code.
_NOT_SETTINGS = (
    "LADING_ATTENTION",
    "LADING_CONFIG_DIR",
    "LADING_DEBUG",
    "LADING_DEVICE",
    "LADING_FAILPOINT",
    "LADING_LINEAR",
    "LADING_POOL",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, checked. defaults.yaml says what each one means, and has the value of each."""

    batch_tokens_cpu: int
    batch_tokens_cuda: int
    window_tokens: int
    threads: int
    fold_interval_s: float
    cache_dir: Path
    offline: bool
    broker_url: str
    lease_s: float
    jobs: str  # absolute path or fsspec URL
    sweep_interval_s: float
    grace_s: float
    exit_when_idle_s: float
    result_ttl_s: int
    max_waiting_requests: int
    roots: str  # config/roots.py reads it
    metrics_port: int  # 0: none is served
    metrics_bind: str  # an address of this machine
    price_per_hour: float  # dollars; 0.0: unknown
    capacity: str  # on-demand | spot
    log_format: str  # auto | console | json

    def batch_tokens(self, device: str) -> int:
        """The token budget of a batch on `device` (`cpu`, `cuda`, `cuda:0`)."""
        return self.batch_tokens_cuda if device.startswith("cuda") else self.batch_tokens_cpu

    def window(self, budget: int) -> int:
        """Tokens gathered and sorted before batches of `budget` tokens are cut."""
        return max(self.window_tokens or WINDOW_BATCHES * budget, budget)


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings for this process. Raises UsageError naming the file (or variable), the key and the nearest valid one."""
    values = _packaged()
    values |= _from_folder(environ.get("LADING_CONFIG_DIR", ""), values)
    values |= _from_environment(environ, values)
    values["cache_dir"] = _cache_dir(values["cache_dir"], environ)
    values["jobs"] = _jobs(values["jobs"], environ)
    return Settings(**values)


def layered_file(name: str, environ: Mapping[str, str] = os.environ) -> tuple[dict[Any, Any], str]:
    """A configuration file that LADING_CONFIG_DIR may have in place of the packaged one: its content, and its name for messages."""
    path = _in_folder(environ.get("LADING_CONFIG_DIR", ""), name)
    return (load_mapping(path, UsageError), str(path)) if path else (_packaged(name), name)


def own_file(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """A configuration file in LADING_CONFIG_DIR that adds to the packaged ones, None if it is not there."""
    return _in_folder(environ.get("LADING_CONFIG_DIR", ""), name)


def _packaged(name: str = "defaults.yaml") -> dict[Any, Any]:
    text = importlib.resources.files("lading.config").joinpath(name).read_text(encoding="utf-8")
    return parse_mapping(text, name, UsageError)


def _in_folder(folder: str, name: str) -> Path | None:
    """A file of LADING_CONFIG_DIR, None if it is not there. Raises UsageError for a folder that holds none that is ours."""
    if not folder:
        return None
    if not os.path.isdir(folder):
        raise UsageError(f"LADING_CONFIG_DIR: {folder} is not a folder")
    names = sorted(os.listdir(folder))
    for other in names:
        if other not in FILES and other.lower().endswith((".yaml", ".yml")) and not other.startswith("."):
            raise UsageError(f"{os.path.join(folder, other)}: not a file Lading reads{nearest(other, FILES)}")
    if not set(names) & set(FILES):
        raise UsageError(f"LADING_CONFIG_DIR: {folder} has neither {' nor '.join(FILES)}")
    return Path(folder, name) if name in names else None


def _from_folder(folder: str, defaults: dict[str, Any]) -> dict[str, Any]:
    path = _in_folder(folder, FILE)
    if path is None:
        return {}
    found = load_mapping(path, UsageError)
    for key, value in found.items():
        if key not in defaults:
            raise UsageError(f"{path}: unknown key {key!r}{nearest(str(key), defaults)}")
        found[key] = _checked(value, key, defaults[key], str(path))
    return found


def _from_environment(environ: Mapping[str, str], defaults: dict[str, Any]) -> dict[str, Any]:
    names = {f"LADING_{key.upper()}": key for key in defaults}
    found = {}
    for name, text in environ.items():
        if name in names:
            key = names[name]
            found[key] = _checked(_parsed(text, defaults[key]), key, defaults[key], name)
        # Not every foreign LADING_ variable is a mistake: Kubernetes puts LADING_SERVICE_HOST and the like into
        # every pod beside a service named lading. Only what is nearly one of ours is taken for a misspelling.
        elif name.startswith("LADING_") and name not in _NOT_SETTINGS:
            close = difflib.get_close_matches(name, [*names, *_NOT_SETTINGS], n=1, cutoff=0.85)
            if close:
                raise UsageError(f"{name}: unknown setting in the environment; did you mean {close[0]!r}?")
    return found


def _parsed(text: str, like: object) -> object:
    """The text of an environment variable as the type of `like`; the text itself where it is not one."""
    if isinstance(like, bool):
        return {"1": True, "true": True, "0": False, "false": False}.get(text.strip().lower(), text)
    if isinstance(like, int | float):
        try:
            return type(like)(text)
        except ValueError:
            return text
    return text


def _checked(value: object, key: str, default: object, where: str) -> Any:
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        wanted = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
        raise UsageError(f"{where}: {key}: expected {wanted[type(default).__name__]}, found {value!r}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        least = 1 if key.startswith(("batch_tokens", "lease", "result_ttl")) else 0
        if not math.isfinite(value) or value < least:
            raise UsageError(f"{where}: {key}: must be at least {least}, found {value!r}")
        if value > MOST.get(key, math.inf):
            raise UsageError(f"{where}: {key}: must be at most {MOST[key]}, found {value!r}")
    if key in CHOICES and value not in CHOICES[key]:
        raise UsageError(
            f"{where}: {key}: {value!r} is none of {', '.join(CHOICES[key])}{nearest(str(value), CHOICES[key])}"
        )
    return value


def _cache_dir(named: str, environ: Mapping[str, str]) -> Path:
    if named:
        return Path(named).expanduser()
    home = environ.get("XDG_CACHE_HOME")
    return Path(home, "lading") if home else Path("~/.cache/lading").expanduser()


def _jobs(named: str, environ: Mapping[str, str]) -> str:
    if "://" in named:
        return named.rstrip("/")
    home = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return os.path.abspath(os.path.expanduser(named or os.path.join(home, "lading", "jobs")))
