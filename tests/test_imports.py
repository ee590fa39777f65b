"""Which room may import which, and what a start of the command line may not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "config": set(),
    "schedulers": {"config"},
    "adapters": {"config"},
    "pipelines": {"schedulers", "config"},
    "workers": {"pipelines", "adapters", "schedulers", "config"},
    "cli": {"workers", "pipelines", "schedulers", "config"},
}
TORCH = {"torch", "transformers", "flash_attn"}
BROKER = {"celery", "redis", "kombu"}
MODULES = sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> tuple[set[str], set[str]]:
    """Rooms and outside packages that a module names in any import, at its top or inside a function."""
    rooms: set[str] = set()
    outside: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == 2:
            rooms |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{path}: rooms are flat, nothing is {node.level} levels up"
    return rooms, outside


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are loaded after `code` ran in a new interpreter."""
    ask = code + "\nimport sys; print('\\n'.join({name.split('.')[0] for name in sys.modules}))"
    return set(
        subprocess.run([sys.executable, "-I", "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    """A room imports only the rooms below it, relatively; torch lives in adapters, the broker in schedulers."""
    room = path.relative_to(ROOT).parts[0]
    rooms, outside = imported(path)
    assert rooms <= MAY_IMPORT[room], f"{room} may import {sorted(MAY_IMPORT[room])}"
    assert not outside & {"lading", *MAY_IMPORT}, "between rooms, imports are relative"
    assert room == "adapters" or not outside & TORCH
    assert room == "schedulers" or path == ROOT / "workers" / "app.py" or not outside & BROKER


def test_help_loads_nothing_heavy() -> None:
    """`lading --help`, and the help of every verb, starts without torch, transformers, pyarrow, Lance or numpy."""
    heavy = TORCH | BROKER | {"pyarrow", "lance", "lancedb", "numpy", "pandas", "rich", "structlog"}
    verbs = ["encode", "score", "extract", "run", "plan", "status", "rejects", "query", "optimize", "completion"]
    verbs += ["submit", "watch", "retry", "cancel", "scheduler", "worker", "up", "exporter"]
    verbs += ["queues", "dead", "dead list", "dead show", "dead replay", "dead drop"]
    verbs += ["models", "models show", "models verify"]
    calls = "\n".join(f"assert main([*{verb.split()}, '--help']) == 0" for verb in verbs)
    loaded = loaded_by(
        "import contextlib, io\nfrom lading.cli import main\nwith contextlib.redirect_stdout(io.StringIO()):\n    main(['--help'])\n    "
        + calls.replace("\n", "\n    ")
    )
    assert "click" in loaded
    assert not loaded & heavy


def test_a_producer_needs_no_torch() -> None:
    """Everything that describes, checks and watches a job imports without torch, which producers do not install."""
    rooms = [
        f"lading.{path.parent.name}.{path.stem}"
        for path in MODULES
        if path.parent.name in ("config", "schedulers", "pipelines", "cli")
    ]
    names = [name.removesuffix(".__init__") for name in rooms if not name.endswith("__main__")]
    assert not loaded_by("import " + ", ".join(names)) & TORCH


def test_the_adapters_are_few_lines() -> None:
    """One packed forward pass and small heads, not a forward pass a family: under 3,000 lines of code, whatever is added."""

    def lines_of(path: Path) -> int:
        source = path.read_text(encoding="utf-8")
        nodes = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        firsts = [node.body[0] for node in nodes if ast.get_docstring(node, clean=False) is not None]
        described = {line for first in firsts for line in range(first.lineno, (first.end_lineno or first.lineno) + 1)}
        code = [
            number
            for number, line in enumerate(source.splitlines(), 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        return len(set(code) - described)

    assert 2_000 < sum(lines_of(path) for path in (ROOT / "adapters").glob("*.py")) < 3_000
