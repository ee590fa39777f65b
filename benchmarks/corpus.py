"""Real English texts without a download: the docstrings of the Python standard library, in a fixed order.

Also `texts_of_lengths`, which cuts them to wanted lengths. Standard library only.
"""

from __future__ import annotations

import ast
import functools
import random
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path


def docstrings() -> Iterator[str]:
    """Docstrings of modules, classes and functions, by file name, cleaned of their indentation."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("*.py")) + sorted(root.glob("[a-z]*/*.py")):
        if any(
            part in ("test", "tests", "idlelib", "lib2to3", "site-packages") for part in path.relative_to(root).parts
        ):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # about escapes in their sources
                tree = ast.parse(path.read_bytes())
        except SyntaxError:  # some shipped files are broken on purpose
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text and text.strip():
                    yield text


@functools.cache
def _all() -> list[str]:
    return list(dict.fromkeys(docstrings()))


def passages(count: int, seed: int = 0) -> list[str]:
    """Different docstrings, drawn in an order that the seed fixes; at most as many as there are (some 7,000)."""
    texts = list(_all())
    random.Random(seed).shuffle(texts)
    return texts[:count]


def texts_of_lengths(words: list[int], seed: int = 0) -> list[str]:
    """One text for each wanted number of words, cut from the docstrings' running text."""
    running = " ".join(_all()).split()
    draw = random.Random(seed)
    starts = [draw.randrange(len(running) - max(words)) for _ in words]
    return [" ".join(running[start : start + count]) for start, count in zip(starts, words, strict=True)]


def natural_lengths(count: int, seed: int = 0) -> list[int]:
    """Words per text as passages of a corpus have them: log-normal, median 30, longest 400."""
    draw = random.Random(seed)
    return [min(400, max(3, round(draw.lognormvariate(3.4, 0.85)))) for _ in range(count)]
