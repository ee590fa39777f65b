"""What sentence-transformers gives for the texts that `lading models verify` compares, and which models it cannot be asked about.

It reads the checkpoint's files by itself, so that the reading is compared too; only what a folder without modules.json leaves
open, and the recipe settles, is built for it. It always computes in float32 on the CPU, each text alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

from ..config.content import read_json
from ..config.errors import ModelError, UsageError
from ..config.hub import Checkpoint
from ..config.modules import TABLES
from ..config.multi_vector import COLBERT_LINEAR
from ..config.recipe import Recipe

# What the library raises for files that it does not understand, or that do not fit together.
_FAILURES = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError)


def check_installed() -> None:
    """Raises UsageError where there is no reference library."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UsageError(
            "verify compares with sentence-transformers, which is not installed: pip install 'lading[verify]'"
        )


def name() -> str:
    """The library and its version."""
    return f"sentence-transformers {importlib.metadata.version('sentence-transformers')}"


def check_comparable(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raises ModelError with the reason where sentence-transformers computes nothing that this recipe's results should equal."""
    folder = checkpoint.folder / recipe.part
    if recipe.task not in ("encode", "score"):
        raise ModelError(
            f"verify compares encode and score: sentence-transformers has no counterpart of `{recipe.task}`"
        )
    if read_json(folder / "config.json").get("auto_map"):
        raise ModelError(
            f"{folder / 'config.json'}: names code of its own (auto_map), which sentence-transformers would run and Lading never "
            "does: nothing to compare with. docs/models.md has how far its kind is from transformers' own class"
        )
    if recipe.template and not (checkpoint.folder / "modules.json").exists():
        raise ModelError(
            f"{checkpoint.name}: sentence-transformers asks a language model by what modules.json and the chat template say, and "
            "this folder has no modules.json: the template is Lading's own, so there is nothing to compare with"
        )
    theirs = {"sparse": recipe.sparse == "lexical", "multi_vector": COLBERT_LINEAR in recipe.token_modules}
    if heads := [output for output in recipe.outputs if theirs.get(output)]:
        raise ModelError(
            f"{checkpoint.name}: {' and '.join(heads)} of BGE-M3 are FlagEmbedding's, and sentence-transformers has no such head to "
            "compare with; --outputs dense compares the rest"
        )


def results(output: str, checkpoint: Checkpoint, recipe: Recipe, columns: list[list[str]], side: str) -> Any:
    """Of one output: multi_vector a list of float32 (vectors, dims), dense and sparse (texts, numbers), score (pairs,).

    `columns`: the texts, or the first and the second ones of pairs; `side`: the prompt's name. Raises ModelError where the library
    cannot run the checkpoint.
    """
    try:
        return _REFERENCES[output](checkpoint, recipe, columns, side)
    except _FAILURES as error:
        raise ModelError(
            f"{checkpoint.name}: {name()} cannot run it, so there is nothing to compare with: {error}"
        ) from error


def _dense(checkpoint: Checkpoint, recipe: Recipe, columns: list[list[str]], _side: str) -> Any:
    from sentence_transformers import SentenceTransformer

    folder = str(checkpoint.folder)
    if (checkpoint.folder / "modules.json").exists():
        model = SentenceTransformer(folder, device="cpu", local_files_only=True)
    else:
        model = SentenceTransformer(modules=_modules(folder, recipe), device="cpu")
    if recipe.architecture not in TABLES.values():  # a table's tokenizer is cut by its own file alone
        model.max_seq_length = recipe.max_tokens
    return model.encode(columns[0], prompt=recipe.prompt, batch_size=1, show_progress_bar=False)


def _modules(folder: str, recipe: Recipe) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding, Transformer

    end = [Normalize()] * recipe.normalize
    if recipe.architecture in TABLES.values():
        return [StaticEmbedding.load(folder), *end]
    modes = {"last": "lasttoken", "weighted_mean": "weightedmean", "mean_sqrt_len": "mean_sqrt_len_tokens"}
    mode: Any = modes.get(recipe.pooling, recipe.pooling)  # it wants a Literal
    return [Transformer(folder), Pooling(recipe.dims, pooling_mode=mode), *end]


def _sparse(checkpoint: Checkpoint, recipe: Recipe, columns: list[list[str]], side: str) -> Any:
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(checkpoint.folder), device="cpu", local_files_only=True)
    model.max_seq_length = recipe.max_tokens
    task = "query" if side == "query" else "document"  # chooses the route of a Router
    options: dict[str, Any] = {"prompt": recipe.prompt, "batch_size": 1, "show_progress_bar": False, "task": task}
    return model.encode(columns[0], convert_to_sparse_tensor=False, save_to_cpu=True, **options).numpy()


def _multi_vector(checkpoint: Checkpoint, recipe: Recipe, columns: list[list[str]], side: str) -> Any:
    """With lengths, markers, expansion and the side's prompt as the library finds them; a prompt of another name is given to it."""
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(checkpoint.folder), device="cpu", local_files_only=True)
    options: dict[str, Any] = {} if side in ("query", "document") else {"prompt": recipe.prompt}
    encode = model.encode_query if side == "query" else model.encode_document
    return encode(columns[0], batch_size=1, show_progress_bar=False, convert_to_numpy=True, **options)


def _scores(checkpoint: Checkpoint, recipe: Recipe, columns: list[list[str]], _side: str) -> Any:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(checkpoint.folder), device="cpu", max_length=recipe.max_tokens, local_files_only=True)
    return model.predict(list(zip(*columns, strict=True)), batch_size=1, show_progress_bar=False)


_REFERENCES: dict[str, Callable[[Checkpoint, Recipe, list[list[str]], str], Any]] = {
    "dense": _dense,
    "sparse": _sparse,
    "multi_vector": _multi_vector,
    "score": _scores,
}
