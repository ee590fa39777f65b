"""What the two kinds of messages ask for, as plain data, and the checks that plain data must pass. Pure.

The checks are those of docs/schemas, written by hand: a schema library takes a hundred times as long.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from ..config.catalogue import POOLINGS
from ..config.columns import OUTPUTS
from ..config.errors import BadMessage, nearest

VERSION = 1
INPUT_BYTES = 64 << 10  # UTF-8 of all inputs and ids of one request; a Redis that holds a million is big enough then
INPUTS = 4096
NAME_CHARACTERS = 4096  # of a model, a revision, a table, a prompt
LARGEST = 1 << 31

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = 80
show = _shortened.repr  # what was found, short enough for a message

# The arguments of each task, in order, for producers that give them by position.
SHARD = ("version", "job", "shard", "generation", "recipe")
REQUEST = ("version", "verb", "model", "inputs", "options", "into", "ids")
VERBS = ("encode", "score", "extract")
_JOB = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}").fullmatch  # it becomes part of a path
_RECIPE = re.compile(r"[0-9a-f]{16}").fullmatch


@dataclasses.dataclass(frozen=True, slots=True)
class ShardPointer:
    """One shard of a registered job. Names no path: the worker looks the job up where it keeps its own."""

    job: str
    shard: int
    generation: int
    recipe: str  # its hash: shards of one recipe share batches

    def to_dict(self) -> dict[str, Any]:
        """The arguments of the task."""
        return {
            "version": VERSION,
            "job": self.job,
            "shard": self.shard,
            "generation": self.generation,
            "recipe": self.recipe,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """How the inputs are turned to results: the keys of a job's step and policy, with the same meanings and defaults."""

    revision: str = ""
    max_tokens: int = 0
    precision: str = "float32"
    dims: int = 0
    vector_type: str = "float32"
    prompt: str = "document"
    prompt_text: str = ""
    outputs: tuple[str, ...] = ()
    top_k: int = 0
    threshold: float = 0.0
    token_pooling: int = 1
    instruction: str = ""
    activation: str = ""
    pooling: str = ""
    normalize: bool | None = None
    known_as: str = ""
    template: str = ""
    adapter: str = ""
    long_text: str = "truncate"  # truncate | reject
    truncation_side: str = ""  # right | left
    token_columns: bool = False

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults."""
        kept = {name: value for name, like in _DEFAULTS.items() if (value := getattr(self, name)) != like}
        return kept | ({"outputs": list(self.outputs)} if self.outputs else {})


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(RequestOptions)}
_NO_OPTIONS = RequestOptions()
_CHOICES: dict[str, tuple[str, ...]] = {
    "precision": ("float32", "bfloat16", "float16", "int8"),
    "vector_type": ("float32", "float16", "int8", "binary"),
    "activation": ("", "identity", "sigmoid"),
    "pooling": ("", *POOLINGS),
    "long_text": ("truncate", "reject"),
    "truncation_side": ("", "right", "left"),
}
# Options that not every verb has -> the verbs that have them.
_ONLY = {
    **dict.fromkeys(("dims", "vector_type", "prompt", "prompt_text", "pooling", "normalize"), ("encode",)),
    **dict.fromkeys(("outputs", "top_k", "threshold", "token_pooling"), ("encode",)),
    "instruction": ("encode", "score"),
    "activation": ("score",),
    "template": ("score",),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A few inputs of an application, with all that a worker needs to know to answer."""

    verb: str  # encode | score | extract
    model: str
    inputs: Sequence[str] | Sequence[tuple[str, str]]  # pairs for score
    options: RequestOptions = _NO_OPTIONS
    into: str = ""  # the table that takes the results; "" sends them back
    ids: Sequence[str] = ()  # one per input with `into`

    def to_dict(self) -> dict[str, Any]:
        """The arguments of the task."""
        kwargs: dict[str, Any] = {"version": VERSION, "verb": self.verb, "model": self.model}
        kwargs["inputs"] = list(self.inputs)
        if options := self.options.to_dict():
            kwargs["options"] = options
        if self.into:
            kwargs |= {"into": self.into, "ids": list(self.ids)}
        return kwargs


def shard(given: dict[str, Any]) -> ShardPointer:
    """The checked pointer. Raises BadMessage naming the field."""
    _check_names(given, SHARD, needed=SHARD)
    job, number, generation, recipe = given["job"], given["shard"], given["generation"], given["recipe"]
    if not isinstance(job, str) or not _JOB(job):
        _refuse("job", "a job's id (letters, digits, '_', '-', '.')", job)
    if not isinstance(recipe, str) or not _RECIPE(recipe):
        _refuse("recipe", "16 hex digits", recipe)
    _check_number("shard", number)
    _check_number("generation", generation)
    return ShardPointer(job, number, generation, recipe)


def request(given: dict[str, Any]) -> Request:
    """The checked request. Raises BadMessage naming the field."""
    _check_names(given, REQUEST, needed=REQUEST[:4])
    verb, model, inputs = given["verb"], given["model"], given["inputs"]
    into, ids = given.get("into", ""), given.get("ids", ())
    if verb not in VERBS:
        _refuse("verb", f"one of {', '.join(VERBS)}", verb)
    _check_text("model", model)
    if not model:
        raise BadMessage("model: is empty")
    _check_text("into", into)
    texts = _texts(inputs, verb)
    options = request_options(given["options"], verb) if "options" in given else _NO_OPTIONS
    if into:
        ids = _ids(ids, len(inputs))
        texts = texts + ids
    elif ids:
        raise BadMessage("ids: name rows of a table, and there is no table (into)")
    _check_size(texts)
    pairs = [(first, second) for first, second in inputs] if verb == "score" else inputs
    return Request(verb, model, pairs, options, into, ids if into else ())


def _texts(inputs: object, verb: str) -> list[str]:
    """All texts of the inputs, one after the other."""
    if not isinstance(inputs, list) or not inputs:
        _refuse("inputs", "a list with at least one input", inputs)
    if len(inputs) > INPUTS:
        raise BadMessage(f"inputs: {len(inputs):,} of them, the limit is {INPUTS:,}")
    if verb != "score":
        _check_all_text("inputs", inputs)
        return inputs
    texts: list[str] = []
    for place, pair in enumerate(inputs):
        if not isinstance(pair, list) or len(pair) != 2:
            _refuse(f"inputs[{place}]", "a pair of texts", pair)
        _check_all_text(f"inputs[{place}]", pair)
        texts += pair
    return texts


def _ids(ids: object, count: int) -> list[str]:
    if not isinstance(ids, list) or len(ids) != count:
        _refuse("ids", f"a list of {count:,} texts, one per input", ids)
    _check_all_text("ids", ids)
    if not all(ids):
        raise BadMessage(f"ids[{ids.index('')}]: is empty")
    if len(set(ids)) != count:
        twice = next(id for place, id in enumerate(ids) if id in ids[:place])
        raise BadMessage(f"ids: {show(twice)} is there twice")
    return ids


def _check_all_text(name: str, values: list[Any]) -> None:
    for place, value in enumerate(values):
        if value.__class__ is not str:
            _refuse(f"{name}[{place}]", "text", value)


def _check_size(texts: list[str], name: str = "inputs") -> None:
    try:
        size = len("".join(texts).encode())
    except UnicodeEncodeError:
        raise BadMessage(f"{name}: half of a surrogate pair is no character (JSON \\ud800 to \\udfff)") from None
    if size > INPUT_BYTES:
        raise BadMessage(
            f"{name}: {size:,} bytes of text, the limit is {INPUT_BYTES:,}: send several requests, or a job"
        )


def request_options(given: object, verb: str) -> RequestOptions:
    """The checked options of a request. Raises BadMessage naming the option."""
    if not isinstance(given, dict):
        _refuse("options", "an object", given)
    for name, value in given.items():
        if name not in _DEFAULTS:
            raise BadMessage(f"options.{name[:40]}: unknown{nearest(name[:40], _DEFAULTS)}")
        if _DEFAULTS[name] is None:
            if value is not None and not isinstance(value, bool):
                _refuse(f"options.{name}", "true, false or null", value)
        elif name == "outputs":
            _check_outputs(value)
        elif isinstance(_DEFAULTS[name], float):
            _check_size_of(f"options.{name}", value)
        elif isinstance(_DEFAULTS[name], bool):
            if not isinstance(value, bool):
                _refuse(f"options.{name}", "true or false", value)
        elif isinstance(_DEFAULTS[name], int):
            _check_number(f"options.{name}", value)
        else:
            _check_text(f"options.{name}", value)
        if name in _CHOICES and value not in _CHOICES[name]:
            _refuse(f"options.{name}", f"one of {', '.join(filter(None, _CHOICES[name]))}", value)
        owners = _ONLY.get(name, VERBS)
        if verb not in owners and (tuple(value) if name == "outputs" else value) != _DEFAULTS[name]:  # pyright: ignore[reportArgumentType]
            raise BadMessage(
                f"options.{name}: only {' and '.join(owners)} {'have' if owners[1:] else 'has'} this option"
            )
    if given.get("token_pooling") == 0:
        raise BadMessage("options.token_pooling: expected a whole number from 1, found 0")
    options = RequestOptions(**given)
    if options.outputs:  # a list in JSON
        options = dataclasses.replace(options, outputs=tuple(options.outputs))
    if options.prompt_text and options.prompt != "document":
        raise BadMessage("options.prompt_text: give either prompt_text or a prompt's name, not both")
    if options.truncation_side == "left" and options.long_text != "truncate":
        raise BadMessage("options.truncation_side: left needs long_text truncate")
    if options.vector_type == "binary" and options.dims % 8:
        raise BadMessage(f"options.dims: binary packs 8 dimensions into a byte, and {options.dims} is no multiple of 8")
    return options


def _check_names(given: dict[str, Any], known: Collection[str], *, needed: Collection[str]) -> None:
    for name in needed:
        if name not in given:
            raise BadMessage(f"{name}: is missing")
    for name in given:
        if name not in known:
            raise BadMessage(f"{name[:40]}: unknown field{nearest(name[:40], known)}")


def _check_number(name: str, value: object) -> None:
    if value.__class__ is not int or not 0 <= value < LARGEST:  # pyright: ignore  (to Python, true is 1)
        _refuse(name, "a whole number from 0", value)


def _check_size_of(name: str, value: object) -> None:
    if value.__class__ not in (int, float) or not 0 <= value < LARGEST:  # pyright: ignore
        _refuse(name, "a number from 0", value)


def _check_outputs(value: object) -> None:
    if not isinstance(value, list | tuple) or not all(output in OUTPUTS for output in value):
        _refuse("options.outputs", f"a list of {', '.join(OUTPUTS)}", value)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        _refuse(name, "text", value)
    if len(value) > NAME_CHARACTERS:
        raise BadMessage(f"{name}: {len(value):,} characters, the limit is {NAME_CHARACTERS:,}")
    if not value.isascii():
        _check_size([value], name)


def _refuse(name: str, wanted: str, found: object) -> NoReturn:
    raise BadMessage(f"{name}: expected {wanted}, found {show(found)}")
