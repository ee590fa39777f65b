"""YAML files that people write: one mapping, no key twice, every complaint with file and line. Knows no schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import UsageError


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word, which loses what somebody wrote."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key.__hash__ is None:
                raise yaml.constructor.ConstructorError(None, None, "a key must be a single word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_mapping(path: Path, error: type[UsageError]) -> dict[Any, Any]:
    """The one mapping in a YAML file ({} for an empty file). Raises `error` with the file and, where known, the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path}: cannot be read as UTF-8 text ({problem})") from None
    return parse_mapping(text, str(path), error)


def parse_mapping(text: str, where: str, error: type[UsageError]) -> dict[Any, Any]:
    """`load_mapping` for text that is already here; `where` names it in messages."""
    try:
        found = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as problem:
        line = f", line {problem.problem_mark.line + 1}" if problem.problem_mark else ""
        raise error(f"{where}{line}: not valid YAML: {problem.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise error(f"{where}: not valid YAML: {problem}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise error(f"{where}: expected keys and values at the top (`key: value`), found {type(found).__name__}")
    return found
