"""How a language model is asked for a score: the text around a pair, from the checkpoint's chat template or the table of known models.

A template is a tuple of pieces, of which one holds {query} and one {document}, perhaps the same.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from pathlib import Path
from typing import Any

from .content import read_json, special_tokens
from .errors import ModelError, nearest
from .strict_yaml import parse_mapping
from .wishes import Opened, Wishes

FILE = "rerank_templates.yaml"
QUERY, DOCUMENT = "{query}", "{document}"
_INSTRUCTION = "{instruction}"
# What stands for the pair while a chat template is rendered: characters that no template writes itself.
_MARKS = {QUERY: "\ue000q\ue001", DOCUMENT: "\ue000d\ue001"}
# Texts that a template must hand on as they are.
_ODD = (" <&\"'>{{ x }}\n", "\n\t ü ")


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    pieces: tuple[str, ...]
    answers: tuple[int, ...] = ()
    activation: str = ""


def named_template(opened: Opened, wish: Wishes) -> Template:
    """The template of the table that the job names, or that the checkpoint's name and class stand for.

    Raises ModelError: none fits and none was named, or the tokenizer lacks its answers.
    """
    table = parse_mapping(
        importlib.resources.files("lading.config").joinpath(FILE).read_text("utf-8"), FILE, ModelError
    )
    where = opened.folder / "config.json"
    if wish.template and wish.template not in table:
        raise ModelError(f"template {wish.template!r}{nearest(wish.template, table)}")
    called = f"{opened.checkpoint.name} {opened.folder.name}".lower()
    name = wish.template or next((name for name, one in table.items() if _is_meant(one, called, opened)), "")
    if not name:
        raise ModelError(
            f"{where}: {opened.architecture} is a language model, and nothing says how it is asked for a score: set `template` "
            f"(--template) to one of {', '.join(table)}, if it was trained on that"
        )
    found: dict[str, Any] = table[name]
    said = wish.instruction or found.get("instruction", "")
    check_text(said, "instruction")
    form = found.get("instruction_form", _INSTRUCTION).replace(_INSTRUCTION, said) if said else ""
    pieces = tuple(piece.replace(_INSTRUCTION, form) for piece in found["pieces"])
    return Template(pieces, _ids_of(opened.folder, found["answers"]), found["activation"])


def chat_template(opened: Opened, format: str, system: str, options: dict[str, Any]) -> Template:
    """The checkpoint's own chat template, rendered as sentence-transformers 6 does: roles system, query and document.

    Raises ModelError: no template, one that fails, or one that does more with the texts than putting them in.
    """
    folder = opened.folder
    source, path = _chat_source(folder)
    check_text(system, "the instruction")

    def render(query: str, document: str) -> str:
        messages = [("system", system)] if system else []
        messages += [("query", query), ("document", document)]
        given = [{"role": role, "content": _content(text, format)} for role, text in messages]
        return _rendered(source, {"messages": given, **special_tokens(folder), **options}, path)

    text = render(_MARKS[QUERY], _MARKS[DOCUMENT])
    for name, mark in _MARKS.items():
        if text.count(mark) != 1 or name in text:
            raise ModelError(f"{path}: must put the text of the role {name[1:-1]} into the prompt once, as it is")
    if render(*_ODD) != text.replace(_MARKS[QUERY], _ODD[0]).replace(_MARKS[DOCUMENT], _ODD[1]):
        raise ModelError(f"{path}: changes the texts that it is given (trims them, say), which Lading does not do")
    return Template((text.replace(_MARKS[QUERY], QUERY).replace(_MARKS[DOCUMENT], DOCUMENT),))


def check_text(text: str, what: str) -> None:
    if any(mark in text for mark in (QUERY, DOCUMENT, *_MARKS.values())):
        raise ModelError(f"{what}: may not hold {QUERY} or {DOCUMENT}, which stand for the texts")


def _is_meant(found: dict[str, Any], called: str, opened: Opened) -> bool:
    return opened.architecture == found["architecture"] and any(part in called for part in found["models"])


def _ids_of(folder: Path, answers: list[str]) -> tuple[int, ...]:
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: tokens with their scores
        vocabulary = {entry[0]: place for place, entry in enumerate(vocabulary)}
    ids = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []} | vocabulary
    for answer in answers:
        if answer not in ids:
            raise ModelError(
                f"{path}: {answer!r} is not a single token of this tokenizer, and the template asks for its logit: the model was "
                "not trained on it"
            )
    return tuple(ids[answer] for answer in answers)


def _chat_source(folder: Path) -> tuple[str, Path]:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8"), path
    path = folder / "tokenizer_config.json"
    source = read_json(path).get("chat_template")
    if not isinstance(source, str):
        raise ModelError(f"{folder}: the model takes chat messages, but has no chat template (chat_template.jinja)")
    return source, path


def _content(text: str, format: str) -> Any:
    return [{"type": "text", "text": text}] if format == "structured" else text


def _rendered(source: str, values: dict[str, Any], path: Path) -> str:
    """In Jinja's sandbox, with the settings that transformers has: a template is data, not code to trust."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    jinja: Any = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    jinja.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    jinja.globals["raise_exception"] = refuse
    try:
        return jinja.from_string(source).render(add_generation_prompt=False, **values)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, RecursionError, OverflowError) as error:
        raise ModelError(f"{path}: the chat template fails on a query and a document: {error}") from None
