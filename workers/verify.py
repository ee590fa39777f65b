"""A model's results beside those of sentence-transformers on the same weights, for `lading models verify`.

The reference reads the checkpoint's files by itself, so that the reading is compared too; only what a folder without
modules.json leaves open, and the recipe settles, is built for it. It always computes in float32 on the CPU.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
from typing import Any

import numpy as np
import pyarrow as pa

from .. import adapters
from ..config.checkpoint import Checkpoint
from ..config.errors import ModelError, UsageError
from ..config.recipe import Recipe

FAILED = 3  # exit code
# Of vectors the cosine with the reference's, at least, and the length of the difference in lengths of the reference's vector, at
# most: the latter sees what a cosine does not, such as a missing normalisation. docs/models.md promises the former.
COSINE = {"float32": 0.99999, "bfloat16": 0.9995, "float16": 0.9995}
VECTOR_ERROR = {"float32": 0.005, "bfloat16": 0.04, "float16": 0.04}
# Of scores the difference, at most, in units of the reference's score or of 1, whichever is larger.
SCORE_ERROR = {"float32": 1e-4, "bfloat16": 0.03, "float16": 0.03}
# Words of a text, from one to more than most models take.
LENGTHS = (1, 2, 3, 4, 6, 9, 13, 17, 24, 31, 45, 60, 90, 128, 200, 310, 610)
_SENTENCES = (
    "A ship's bill of lading lists, in 1 document, exactly what was put aboard: 42 crates of tea; 7 barrels of salted cod and a "
    "piano (Blüthner, Leipzig). The captain signs it. 日本語の文章も ここに あります, кириллица тоже, and naïve café-goers' prices: €3.50 each, "
    "http://example.org/a?b=c included. Who, if anybody, reads all of it before the harbour disappears behind the horizon?"
)
_WORDS = _SENTENCES.split()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What the comparison found."""

    model: str  # and where it was found
    recipe: str  # its hash
    precision: str
    kernel: str
    reference: str  # library and version
    compared: int  # texts, or pairs
    worst_error: float  # see VECTOR_ERROR, SCORE_ERROR
    error_bound: float
    lowest_cosine: float | None  # None for scores
    cosine_bound: float | None
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The comparison for people."""
        what = "pairs" if self.lowest_cosine is None else "texts"
        lines = [
            f"model   {self.model}",
            f"recipe  {self.recipe}, {self.kernel}",
            f"beside  {self.reference} in float32, {self.compared} {what} of 1 to {LENGTHS[-1]} words",
            f"error   {self.worst_error:.2e} at worst (bound {self.error_bound:g})",
        ]
        if self.lowest_cosine is not None:
            lines.append(f"cosine  {self.lowest_cosine:.7f} at worst (bound {self.cosine_bound:g})")
        return [*lines, "pass" if self.passed else "fail: the results are not those of the reference library"]


def check_installed() -> None:
    """Raises UsageError where there is no reference library."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UsageError(
            "verify compares with sentence-transformers, which is not installed: pip install 'lading[verify]'"
        )


def texts() -> list[str]:
    """The fixed texts: ragged lengths, none of which begins as another does."""
    return [
        " ".join(_WORDS[(7 * place + number) % len(_WORDS)] for number in range(words))
        for place, words in enumerate(LENGTHS)
    ]


def verify(checkpoint: Checkpoint, recipe: Recipe, *, device: str = "auto") -> Verified:
    """Run the fixed texts through the adapter, as one batch, and through the reference library.

    Raises ModelError where the recipe's task has no counterpart in that library, or it cannot load the checkpoint.
    """
    if recipe.task not in _REFERENCES:
        raise ModelError(
            f"verify compares {' and '.join(_REFERENCES)}: for `{recipe.task}` sentence-transformers has no counterpart"
        )
    adapter = adapters.load(recipe, checkpoint.folder, device=device)
    given = texts()
    columns = [given, given[::-1]][: adapter.inputs]
    prepared = adapter.prepare([pa.array(column, pa.string()) for column in columns])
    outputs = adapter.run([(prepared, np.arange(len(prepared.rows), dtype=np.int64))])
    if prepared.bad or outputs.bad:
        reasons = [*(detail for _, detail in prepared.bad.values()), *outputs.bad.values()]
        raise ModelError(f"{checkpoint.name}: the model failed on {len(reasons)} of {len(given)} texts: {reasons[0]}")
    column = outputs.batch.column(0)
    found = np.stack(column.to_numpy(zero_copy_only=False)).astype(np.float64)
    expected = np.asarray(_REFERENCES[recipe.task](checkpoint, recipe, columns), np.float64)
    if expected.shape != found.shape:
        raise ModelError(f"{checkpoint.name}: results are {found.shape}, the reference's {expected.shape}")
    cosine = error_bound = cosine_bound = None
    if recipe.task == "score":
        error = float((np.abs(found - expected) / np.maximum(np.abs(expected), 1)).max())
        error_bound = SCORE_ERROR[recipe.precision]
    else:
        lengths = np.linalg.norm(expected, axis=1)
        error = float((np.linalg.norm(found - expected, axis=1) / lengths).max())
        cosine = float(((found * expected).sum(axis=1) / lengths / np.linalg.norm(found, axis=1)).min())
        error_bound, cosine_bound = VECTOR_ERROR[recipe.precision], COSINE[recipe.precision]
    return Verified(
        model=checkpoint.describe(),
        recipe=recipe.hash,
        precision=recipe.precision,
        kernel=adapter.kernel,
        reference=f"sentence-transformers {importlib.metadata.version('sentence-transformers')}",
        compared=len(given),
        worst_error=error,
        error_bound=error_bound,
        lowest_cosine=cosine,
        cosine_bound=cosine_bound,
        passed=error <= error_bound and (cosine is None or cosine_bound is None or cosine >= cosine_bound),
    )


def _vectors(checkpoint: Checkpoint, recipe: Recipe, columns: list[list[str]]) -> Any:
    from sentence_transformers import SentenceTransformer

    folder = str(checkpoint.folder)
    if (checkpoint.folder / "modules.json").exists():
        model = SentenceTransformer(folder, device="cpu", local_files_only=True)
    else:
        model = SentenceTransformer(modules=_modules(folder, recipe), device="cpu")
    model.max_seq_length = recipe.max_tokens
    return model.encode(columns[0], prompt=recipe.prompt, batch_size=1, show_progress_bar=False)


def _modules(folder: str, recipe: Recipe) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    modes = {"last": "lasttoken", "weighted_mean": "weightedmean", "mean_sqrt_len": "mean_sqrt_len_tokens"}
    mode: Any = modes.get(recipe.pooling, recipe.pooling)  # it wants a Literal
    pooling = Pooling(recipe.dims, pooling_mode=mode)
    return [Transformer(folder), pooling, *[Normalize()] * recipe.normalize]


def _scores(checkpoint: Checkpoint, recipe: Recipe, columns: list[list[str]]) -> Any:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(checkpoint.folder), device="cpu", max_length=recipe.max_tokens, local_files_only=True)
    return model.predict(list(zip(*columns, strict=True)), batch_size=1, show_progress_bar=False)


_REFERENCES = {"encode": _vectors, "score": _scores}
