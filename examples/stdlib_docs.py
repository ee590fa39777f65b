"""The documentation of the Python standard library on this machine, as a Parquet file: real texts without a download.

Modules, classes, functions and methods that have a docstring give a row each: `id` (the dotted name), `name` (the
same in words), `kind` and `body` (the docstring's first paragraph). Sources are parsed, never imported. Rows are in
the order of their ids; of rows with equal bodies only the first is kept, so that each text has one right answer.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

# Not documentation: tests, vendored or installed packages, and programs that happen to live there.
EXCLUDED = {
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "ensurepip",
    "turtledemo",
    "__phello__",
}
KINDS = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}
MIN_CHARS = 20  # "See above." finds nothing


class Doc(NamedTuple):
    id: str
    name: str
    kind: str
    body: str


def first_paragraph(docstring: str) -> str:
    """The docstring up to its first empty line, on one line."""
    return " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())


def words(dotted: str) -> str:
    """`json.JSONEncoder.iter_encode` -> `json JSON Encoder iter encode`: a name as someone would type it."""
    return " ".join(re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+", dotted))


def docs_of(tree: ast.Module, module: str) -> Iterator[Doc]:
    """The module's own docstring, then those of its public classes, functions and methods."""
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop()
        kind = KINDS.get(type(node))
        if kind is None:
            continue
        body = first_paragraph(ast.get_docstring(node) or "")  # type: ignore[arg-type]
        if len(body) >= MIN_CHARS:
            yield Doc(name, words(name), kind, body)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [(f"{name}.{child.name}", child) for child in ast.iter_child_nodes(node) if _is_public(child)]


def _is_public(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")


def collect(stdlib: Path) -> list[Doc]:
    """Every documented public name below `stdlib`, in the order of ids, the first of equal bodies."""
    found: dict[str, Doc] = {}
    for path in stdlib.rglob("*.py"):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if EXCLUDED & set(parts) or any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old docstrings are not ours to report
            tree = ast.parse(path.read_bytes(), str(path))
        for doc in docs_of(tree, module):
            found.setdefault(doc.id, doc)  # a name defined twice, under an `if`
    bodies: set[str] = set()
    return [doc for _, doc in sorted(found.items()) if not (doc.body in bodies or bodies.add(doc.body))]


def write(path: Path, limit: int = 0) -> int:
    """Write the rows to a Parquet file, `limit` of them at even steps (0 is all). Returns how many."""
    docs = collect(Path(sysconfig.get_paths()["stdlib"]))
    if limit and len(docs) > limit:
        docs = [docs[place * len(docs) // limit] for place in range(limit)]
    columns = zip(*docs, strict=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({field: list(column) for field, column in zip(Doc._fields, columns, strict=True)}), path)
    return len(docs)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".demo/docs.parquet")
    print(f"{write(target):,} texts in {target}")
