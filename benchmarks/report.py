"""What every benchmark prints: a table for people, or with --json one object a line for scripts. Knows no benchmark."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One measured figure. `against`: the rival's figure, the reference's or the bound, in the same unit."""

    name: str
    value: float
    unit: str
    against: float | None = None
    note: str = ""


@dataclasses.dataclass(slots=True)
class Report:
    """Prints each figure as it comes, so that a run that is cut short has shown what it measured."""

    as_json: bool

    def title(self, text: str) -> None:
        """A heading of the table; nothing in JSON."""
        if not self.as_json:
            print(f"\n{text}", flush=True)

    def line(self, name: str, value: float, unit: str, against: float | None = None, note: str = "") -> Line:
        """One figure."""
        line = Line(name, _rounded(value), unit, None if against is None else _rounded(against), note)
        if self.as_json:
            print(json.dumps(dataclasses.asdict(line) | {"machine": machine()}), flush=True)
        else:
            beside = "" if line.against is None else f"   against {line.against:,}"
            print(f"  {name:64}{line.value:>14,} {unit:12}{beside}{'   ' + note if note else ''}", flush=True)
        return line

    def head(self, *columns: str) -> None:
        """Column names over the rows that follow; nothing in JSON."""
        if not self.as_json:
            print(f"  {'':46}" + "".join(f"{column:>13}" for column in columns), flush=True)

    def row(self, name: str, figures: list[tuple[str, float, str, float | None]], note: str = "") -> None:
        """Several figures of one candidate, each (what, value, unit, against): a row of the table, or an object each."""
        if self.as_json:
            for what, value, unit, against in figures:
                self.line(f"{name}: {what}", value, unit, against, note)
        else:
            cells = "".join(f"{_rounded(value):>13,}" for _, value, _, _ in figures)
            print(f"  {name:46}{cells}{'   ' + note if note else ''}", flush=True)


def machine() -> str:
    """The CPU by its own name, the cores this process may use, and what decides the speed of matrix products."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    cpu = about.get("model name", platform.processor() or platform.machine())
    if "cpu family" in about:  # clouds hide the model's name, not its number
        cpu += f" (family {about['cpu family']} model {about['model']})"
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in about.get("flags", "").split()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = importlib.metadata.version("torch")
    return f"{cpu}, {cores} cores, {' '.join(flags[1:] or flags)}, torch {torch}"


def _rounded(value: float) -> float:
    """Digits that mean something: six decimals for shares and cosines, two for ratios, none for rates."""
    for bound, digits in ((1.05, 6), (10, 3), (1000, 1)):
        if abs(value) < bound:
            return round(value, digits)
    return round(value)
