"""A model's results beside those of sentence-transformers on the same weights, for `lading models verify`: how far apart they are.

What the library gives is reference.py's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from .. import adapters
from ..config.columns import output_columns
from ..config.errors import ModelError
from ..config.hub import Checkpoint
from ..config.recipe import Recipe
from . import reference

FAILED = 3  # exit code
# Output -> precision -> two bounds. At most: of vectors the length of the difference, in lengths of the reference's vector, which
# sees what a cosine does not, such as a missing normalisation; of scores the difference, in units of the reference's score or of 1,
# whichever is larger. At least: the cosine with the reference's vector; None for scores. A dense or sparse vector is a text's, of
# multi_vector it is a token's, and no mean over a text evens out what half precision does to one. docs/models.md promises dense cosines.
_HALF_DENSE, _HALF_SPARSE, _HALF_TOKEN, _HALF_SCORE = (0.04, 0.9995), (0.05, 0.999), (0.15, 0.99), (0.03, None)
BOUNDS: dict[str, dict[str, tuple[float, float | None]]] = {
    "dense": {"float32": (0.005, 0.99999), "bfloat16": _HALF_DENSE, "float16": _HALF_DENSE},
    "sparse": {"float32": (0.005, 0.99999), "bfloat16": _HALF_SPARSE, "float16": _HALF_SPARSE},
    "multi_vector": {"float32": (0.005, 0.99999), "bfloat16": _HALF_TOKEN, "float16": _HALF_TOKEN},
    "score": {"float32": (1e-4, None), "bfloat16": _HALF_SCORE, "float16": _HALF_SCORE},
}
# Words of a text, from one to more than most models take.
LENGTHS = (1, 2, 3, 4, 6, 9, 13, 17, 24, 31, 45, 60, 90, 128, 200, 310, 610)
_SENTENCES = (
    "A ship's bill of lading lists, in 1 document, exactly what was put aboard: 42 crates of tea; 7 barrels of salted cod and a "
    "piano (Blüthner, Leipzig). The captain signs it. 日本語の文章も ここに あります, кириллица тоже, and naïve café-goers' prices: €3.50 each, "
    "http://example.org/a?b=c included. Who, if anybody, reads all of it before the harbour disappears behind the horizon?"
)
_WORDS = _SENTENCES.split()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What was found of one output."""

    output: str  # dense, sparse, multi_vector, score
    worst_error: float | None  # see BOUNDS; None where `problem` says why there is none
    error_bound: float
    lowest_cosine: float | None  # None for scores too
    cosine_bound: float | None
    problem: str  # results that are of another number or length than the reference's; "" if they are not

    @property
    def passed(self) -> bool:
        if self.worst_error is None or not self.worst_error <= self.error_bound:
            return False
        return self.cosine_bound is None or self.lowest_cosine is None or self.lowest_cosine >= self.cosine_bound

    def line(self) -> str:
        """For people."""
        if self.worst_error is None:
            return self.problem
        said = f"error {self.worst_error:.2e} at worst (bound {self.error_bound:g})"
        if self.lowest_cosine is None:
            return said
        return f"{said}, cosine {self.lowest_cosine:.7f} at worst (bound {self.cosine_bound:g})"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What the comparison found."""

    model: str  # and where it was found
    recipe: str  # its hash
    precision: str
    kernel: str
    reference: str  # library and version
    compared: int  # texts, or pairs
    outputs: tuple[Compared, ...]

    @property
    def passed(self) -> bool:
        return all(one.passed for one in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        outputs = [dataclasses.asdict(one) | {"passed": one.passed} for one in self.outputs]
        return dataclasses.asdict(self) | {"outputs": outputs, "passed": self.passed}

    def lines(self) -> list[str]:
        """The comparison for people."""
        what = "pairs" if self.outputs[0].output == "score" else "texts"
        width = max(7, *(len(one.output) for one in self.outputs))
        told = {
            "model": self.model,
            "recipe": f"{self.recipe}, {self.kernel}",
            "beside": f"{self.reference} in float32, {self.compared} {what} of 1 to {LENGTHS[-1]} words",
            **{one.output: one.line() for one in self.outputs},
        }
        lines = [f"{name:<{width}} {said}" for name, said in told.items()]
        return [*lines, "pass" if self.passed else "fail: the results are not those of the reference library"]


def texts() -> list[str]:
    """The fixed texts: ragged lengths, none of which begins as another does."""
    return [
        " ".join(_WORDS[(7 * place + number) % len(_WORDS)] for number in range(words))
        for place, words in enumerate(LENGTHS)
    ]


def verify(checkpoint: Checkpoint, recipe: Recipe, *, side: str = "document", device: str = "auto") -> Verified:
    """Run the fixed texts through the adapter, as one batch, and through the reference library.

    Left out are pairs whose query leaves no room for the document, which a job would reject.
    `side`: the prompt's name that the recipe was resolved with; query is the other side of models that have two.
    Raises ModelError where the library has no counterpart of the model, or it cannot run the checkpoint.
    """
    reference.check_comparable(checkpoint, recipe)
    adapter = adapters.load(recipe, checkpoint.folder, device=device)
    given = texts()
    columns = [given, given[::-1]][: adapter.inputs]
    prepared = adapter.prepare([pa.array(column, pa.string()) for column in columns])
    _check_none(
        checkpoint, [why for code, why in prepared.bad.values() if code != "too-long" or not len(prepared.rows)]
    )
    outputs = adapter.run([(prepared, np.arange(len(prepared.rows), dtype=np.int64))])
    _check_none(checkpoint, list(outputs.bad.values()))
    columns = [[column[row] for row in prepared.rows] for column in columns]
    compared = [
        _compare(
            output,
            recipe.precision,
            outputs.batch.column(column),
            reference.results(output, checkpoint, recipe, columns, side),
        )
        for output, column in output_columns(recipe).items()
    ]
    return Verified(
        model=checkpoint.describe(),
        recipe=recipe.hash,
        precision=recipe.precision,
        kernel=adapter.kernel,
        reference=reference.name(),
        compared=len(prepared.rows),
        outputs=tuple(compared),
    )


def _check_none(checkpoint: Checkpoint, failed: list[str]) -> None:
    if failed:
        raise ModelError(f"{checkpoint.name}: the model failed on {len(failed)} of {len(LENGTHS)} texts: {failed[0]}")


def _compare(output: str, precision: str, column: pa.Array, expected: Any) -> Compared:
    """`expected`: of multi_vector a list of (vectors, dims), of the others (texts, numbers)."""
    error_bound, cosine_bound = BOUNDS[output][precision]
    found, wanted, problem = _READERS[output](column, expected)
    error = cosine = None
    if not problem:
        error, cosine = _distances(found, wanted)
        if cosine_bound is None:
            error, cosine = float((np.abs(found - wanted) / np.maximum(np.abs(wanted), 1)).max()), None
    return Compared(
        output=output,
        worst_error=error,
        error_bound=error_bound,
        lowest_cosine=cosine,
        cosine_bound=cosine_bound,
        problem=problem,
    )


def _distances(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Of vectors (rows, numbers): the largest difference, in lengths of the wanted one, and the lowest cosine. Two zeros are equal."""
    apart, lengths = np.linalg.norm(found - wanted, axis=1), np.linalg.norm(wanted, axis=1)
    products = lengths * np.linalg.norm(found, axis=1)
    error = np.divide(apart, lengths, out=apart.copy(), where=lengths > 0)
    cosine = np.divide((found * wanted).sum(1), products, out=(apart == 0).astype(float), where=products > 0)
    return float(error.max()), float(cosine.min())


_Read = tuple[np.ndarray, np.ndarray, str]  # found and wanted, float64 (rows, numbers); or why they cannot be compared


def _rows(column: pa.Array, expected: Any) -> _Read:
    found, wanted = np.array(column.to_pylist(), np.float64), np.asarray(expected, np.float64)
    if found.shape != wanted.shape:
        return found, wanted, f"results are {found.shape}, the reference's {wanted.shape}"
    return found.reshape(len(found), -1), wanted.reshape(len(found), -1), ""


def _weights(column: pa.Array, expected: Any) -> _Read:
    wanted = np.asarray(expected, np.float64)
    found = np.zeros_like(wanted)
    for row, one in enumerate(column.to_pylist()):
        beyond = [id for id in one["indices"] if id >= wanted.shape[1]]
        if beyond:
            return (
                found,
                wanted,
                f"text {row} has a weight for token {beyond[0]}, the reference {wanted.shape[1]} tokens",
            )
        found[row, one["indices"]] = one["values"]
    return found, wanted, ""


def _tokens(column: pa.Array, expected: Any) -> _Read:
    pairs = [
        (np.array(one, np.float64), np.asarray(two)) for one, two in zip(column.to_pylist(), expected, strict=True)
    ]
    for row, (one, two) in enumerate(pairs):
        if one.shape != two.shape:
            return one, two, f"the vectors of text {row} are {one.shape}, the reference's {two.shape}"
    return np.concatenate([one for one, _ in pairs]), np.concatenate([two for _, two in pairs]).astype(np.float64), ""


_READERS: dict[str, Callable[[pa.Array, Any], _Read]] = {
    "dense": _rows,
    "sparse": _weights,
    "multi_vector": _tokens,
    "score": _rows,
}
