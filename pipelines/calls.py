"""A call of an application cut into requests that fit a message, and their results put together again. Pure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ..config.errors import BadMessage, InputsFailed, RequestFailed, UsageError
from ..config.words import counted
from ..schedulers.bodies import INPUT_BYTES, NAME_CHARACTERS, Request, request_options, show
from ..schedulers.results import Failure
from . import wire

# More would fit in a message, but the results must fit in memory, and several workers can share a call.
PART_INPUTS = 256


class Options(TypedDict, total=False):
    """What every verb takes, as in a job's step and policy (docs/job-spec.md)."""

    revision: str
    adapter: str  # a LoRA adapter on the model: a folder that the workers have, or name or name@revision on the hub
    max_tokens: int
    precision: str  # float32 | bfloat16 | float16 | int8
    known_as: str
    long_text: str  # truncate | reject
    truncation_side: str  # right | left
    token_columns: bool


class EncodeOptions(Options, total=False):
    dims: int
    vector_type: str  # float32 | float16 | int8 | binary
    prompt: str
    prompt_text: str
    instruction: str
    pooling: str
    normalize: bool | None
    outputs: Sequence[str]  # dense, sparse, multi_vector; left out: what the model is made for
    top_k: int
    threshold: float
    token_pooling: int


class ScoreOptions(Options, total=False):
    instruction: str
    activation: str  # identity | sigmoid
    template: str
    instruction: str


@dataclasses.dataclass(frozen=True, slots=True)
class Vectors:
    """Quantised vectors as they are stored: one row per text."""

    data: np.ndarray  # int8 (n, dims), or uint8 (n, dims / 8) with the first dimension in the highest bit
    scale: np.ndarray  # float32 (n,)

    def floats(self) -> np.ndarray:
        """float32 (n, dims): what the quantisation left of the vectors."""
        if self.data.dtype == np.int8:
            return self.data * self.scale[:, None]
        return (np.unpackbits(self.data, axis=1).astype(np.float32) * 2 - 1) * self.scale[:, None]


class SparseVector(NamedTuple):
    """The token ids that have a weight, ascending, and their weights."""

    indices: np.ndarray  # int32 (n,)
    values: np.ndarray  # float32 (n,)


@dataclasses.dataclass(frozen=True, slots=True)
class Embeddings:
    """Of a call that asked for several outputs, each for all texts in order; None for what was not asked for."""

    dense: np.ndarray | Vectors | None
    sparse: list[SparseVector] | None
    multi_vector: list[np.ndarray] | None  # float32 or float16 (tokens, dims) for each text


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """A verb's result with `token_columns`."""

    result: Any  # what the verb returns without
    tokens: np.ndarray  # int32 (n,): tokens that the model saw, special ones and the prompt included; 0 where it failed
    truncated: np.ndarray  # bool (n,): whether the input lost tokens to the limit


Inputs = Sequence[str] | Sequence[tuple[str, str]]
ItemErrors = list[wire.ItemError]


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """The requests of one call. Request `n` has the call's inputs `starts[n]:starts[n + 1]`."""

    requests: list[Request]
    starts: list[int]
    outputs: tuple[str, ...] = ()  # of encode, as asked for
    counted: bool = False  # option token_columns

    @property
    def count(self) -> int:
        return self.starts[-1]


def plan(verb: str, model: str, inputs: object, options: Mapping[str, Any], into: str = "", ids: object = ()) -> Call:
    """Raises UsageError naming the option, or the index of the input, that cannot be sent."""
    if not _is_text(model) or not 0 < len(model) <= NAME_CHARACTERS:
        raise UsageError(f"model: expected a name or a folder, found {show(model)}")
    try:
        asked = request_options(options, verb)
    except BadMessage as bad:
        raise UsageError(str(bad)) from None
    given = _listed(inputs, "pairs" if verb == "score" else "texts")
    sizes = [_size(one, place, verb) for place, one in enumerate(given)]
    names = _ids(ids, into, len(given))
    for place, id in enumerate(names):
        sizes[place] += _text_size(id, f"ids[{place}]")
    starts = _starts(sizes, verb)
    requests = [
        Request(verb, model, given[start:stop], asked, into, names[start:stop])
        for start, stop in itertools.pairwise(starts)
    ]
    return Call(requests, starts, asked.outputs, asked.token_columns and not into)


def paired(inputs: Any, query: str | None) -> Any:
    """The inputs of `score`: as they are, or documents that each go with the one query. Raises UsageError: a document that is none."""
    if query is None:
        return inputs
    documents = _listed(inputs, "documents")
    for place, document in enumerate(documents):
        if not isinstance(document, str):
            raise UsageError(
                f"documents[{place}]: expected text, since there is one query for all, found {show(document)}"
            )
    return [(query, document) for document in documents]


def _listed(values: object, what: str) -> list[Any]:
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise UsageError(f"{what}: expected a list of {what}, found {show(values)}")
    return list(values)  # pyright: ignore[reportArgumentType]  a series, an array, a generator


def _size(one: Any, place: int, verb: str) -> int:
    if verb != "score":
        size = _text_size(one, f"texts[{place}]")
    else:
        if isinstance(one, str) or not isinstance(one, Sequence) or len(one) != 2:
            raise UsageError(f"pairs[{place}]: expected two texts, found {show(one)}")
        size = sum(_text_size(text, f"pairs[{place}][{side}]") for side, text in enumerate(one))
    return size


def _text_size(text: object, where: str) -> int:
    if not isinstance(text, str):
        raise UsageError(f"{where}: expected text, found {show(text)}")
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{where}: half of a surrogate pair (\\ud800 to \\udfff) is no character") from None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _ids(ids: object, into: str, count: int) -> list[str]:
    names = _listed(ids, "ids")
    if not into:
        if names:
            raise UsageError("ids: name rows of a table, and there is no table: give into= too")
        return []
    if not _is_text(into) or len(into) > NAME_CHARACTERS:
        raise UsageError(f"into: expected an output like lancedb://FOLDER/TABLE, found {show(into)}")
    if len(names) != count:
        raise UsageError(f"ids: {counted(len(names), 'id')} for {counted(count, 'input')}: give one for each")
    seen: dict[str, int] = {}
    for place, id in enumerate(names):
        if not isinstance(id, str) or not id:
            raise UsageError(f"ids[{place}]: expected text, found {show(id)}")
        if seen.setdefault(id, place) != place:
            raise UsageError(f"ids[{place}]: {show(id)} is also the id of input {seen[id]}")
    return names


def _starts(sizes: list[int], verb: str) -> list[int]:
    starts, held = [0], 0
    for place, size in enumerate(sizes):
        if size > INPUT_BYTES:
            what = "pairs" if verb == "score" else "texts"
            raise UsageError(
                f"{what}[{place}]: {size:,} bytes, a request takes {INPUT_BYTES:,}: use a job (lading run) for long texts"
            )
        if held + size > INPUT_BYTES or place - starts[-1] == PART_INPUTS:
            starts.append(place)
            held = 0
        held += size
    return [*starts, len(sizes)] if sizes else [0]


# -- results


def merge(
    call: Call, verb: str, results: Sequence[dict[str, Any] | Failure], *, dims: int = 0
) -> tuple[Any, ItemErrors]:
    """The call's result in the order of its inputs, and its failed inputs.

    A request that failed whole is that many failed inputs, unless all did: then RequestFailed, in the worker's words.
    """
    answers: list[wire.Answer | None] = []
    failures: list[Failure] = []
    errors: ItemErrors = []
    for start, request, result in zip(call.starts, call.requests, results, strict=False):
        answer = result if isinstance(result, Failure) else _read(result, request)
        if isinstance(answer, Failure):
            failures.append(answer)
            detail = f"{answer.error}: {answer.message}"
            errors += [(start + place, "failed", detail) for place in range(len(request.inputs))]
            answers.append(None)
        else:
            errors += [(start + place, code, detail) for place, code, detail in answer.errors]
            answers.append(answer)
    if failures and len(failures) == len(call.requests):
        raise RequestFailed(failures[0].message, failures[0].error)
    merged = _merged(call, verb, answers, dims)
    if call.counted:
        tokens = _joined(call, [answer and answer.tokens for answer in answers], np.zeros(0, np.int32))
        truncated = _joined(call, [answer and answer.truncated for answer in answers], np.zeros(0, bool))
        merged = Counted(merged, tokens, truncated)
    return merged, errors


def finished(merged: tuple[Any, ItemErrors], count: int, on_error: str) -> Any:
    """What the caller gets: the result, with its errors if `on_error` is "return"; raises InputsFailed for errors else."""
    result, errors = merged
    if on_error == "return":
        return result, errors
    if errors:
        first = "; ".join(f"input {place}: {code}: {detail}" for place, code, detail in errors[:3])
        more = "; ..." if len(errors) > 3 else ""
        raise InputsFailed(
            f"{counted(len(errors), 'input', of=count)} failed: {first}{more} (the others are in the error's `result`)",
            errors,
            result,
        )
    return result


def _read(result: dict[str, Any], request: Request) -> wire.Answer | Failure:
    """The answer, if it is one to this request."""
    try:
        answer = wire.read(result)
    except wire.BadResult as error:
        return Failure("BadResult", str(error))
    parts: dict[str, list[Any]] = {"score": [answer.scores], "extract": [answer.entities]}
    parts["encode"] = [answer.vectors, answer.sparse, answer.multi_vectors]
    count = len(request.inputs)
    if request.into:
        fits = answer.rows is not None
    else:
        values = [value for value in parts[request.verb] if value is not None]
        values += [answer.tokens, answer.truncated] if request.options.token_columns else []
        failed = len(answer.errors) == count
        fits = all(failed if value is None else len(value) == count for value in values) if values else failed
    if not fits or not all(0 <= place < count for place, _, _ in answer.errors):
        return Failure("BadResult", f"a result that does not fit {counted(count, 'input')}")
    return answer


def _merged(call: Call, verb: str, answers: list[wire.Answer | None], dims: int) -> Any:
    if call.requests and call.requests[0].into:
        return sum(answer.rows or 0 for answer in answers if answer)
    if verb == "extract":
        whole: list[list[dict[str, Any]]] = [[] for _ in range(call.count)]
        for start, answer in zip(call.starts, answers, strict=False):
            if answer and answer.entities is not None:
                whole[start : start + len(answer.entities)] = answer.entities
        return whole
    if verb == "score":
        return _joined(call, [answer and answer.scores for answer in answers], np.zeros(0, np.float32))
    given = [answer for answer in answers if answer]
    sparse, multi = (
        _listed_for(call, answers, name)
        if output in call.outputs or any(getattr(answer, name) is not None for answer in given)
        else None
        for output, name in (("sparse", "sparse"), ("multi_vector", "multi_vectors"))
    )
    only_lists = (sparse is not None or multi is not None) and "dense" not in call.outputs
    dense = None if only_lists and all(answer.vectors is None for answer in given) else _dense(call, answers, dims)
    sparse = None if sparse is None else [SparseVector(*one) for one in sparse]
    told = [one for one in (dense, sparse, multi) if one is not None]
    return told[0] if len(told) == 1 else Embeddings(dense, sparse, multi)


def _listed_for(call: Call, answers: list[wire.Answer | None], name: str) -> list[Any]:
    """One entry for each input, of nothing where it failed."""
    nothing: Any = (
        (np.zeros(0, np.int32), np.zeros(0, np.float32)) if name == "sparse" else np.zeros((0, 0), np.float32)
    )
    whole: list[Any] = [nothing] * call.count
    for start, answer in zip(call.starts, answers, strict=False):
        found = getattr(answer, name) if answer else None
        if found is not None:
            whole[start : start + len(found)] = found
    return whole


def _dense(call: Call, answers: list[wire.Answer | None], dims: int) -> np.ndarray | Vectors:
    data = _joined(call, [answer and answer.vectors for answer in answers], np.zeros((0, dims), np.float32))
    if any(answer and answer.scale is not None for answer in answers):
        return Vectors(data, _joined(call, [answer and answer.scale for answer in answers], np.zeros(0, np.float32)))
    return data


def _joined(call: Call, parts: list[np.ndarray | None], like: np.ndarray) -> np.ndarray:
    """One array, zeros where a part is missing; `like` is a part with no rows, for when all are."""
    known = [part for part in parts if part is not None]
    if len(known) == 1 and len(parts) == 1:
        return known[0]
    first = known[0] if known else like
    whole = np.zeros((call.count, *first.shape[1:]), first.dtype)
    for start, part in zip(call.starts, parts, strict=False):
        if part is not None:
            whole[start : start + len(part)] = part
    return whole
