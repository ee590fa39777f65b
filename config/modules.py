"""What modules.json and the folders it names say about how token vectors become a text's results.

Known are the lines of modules in _LINES, as sentence-transformers 2 to 6 and PyLate save them; a Router is the line of its route.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from .content import integer_at, read_json, read_json_list, text_at, weight_files
from .errors import ModelError, nearest
from .natives import is_known

# pooling_mode, and the flags it replaced, in the recipe's words.
_POOLING = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
# What may follow a Dense module's linear layer, as sentence-transformers names it.
DENSE_ACTIVATIONS = (
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.activation.GELU",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.activation.Sigmoid",
    "torch.nn.modules.activation.SiLU",
    "torch.nn.modules.activation.Tanh",
)
# Module -> its letter in the lines below.
_LETTERS = {
    "Transformer": "T",
    "Pooling": "P",
    "Dense": "D",
    "Normalize": "N",
    "SpladePooling": "S",
    "SparseStaticEmbedding": "I",
    "StaticEmbedding": "L",
    "MultiVectorMask": "M",
    "LogitScore": "G",
}
_LINES = {
    "dense": "T(PD*N?)?",
    "static": "LN?",
    "sparse": "TS",
    "idf": "I",
    "score": "TG",
    "multi_vector": "TD+(MN?|NM?)?",
}
# Modules that look tokens up in a table, and what a recipe calls a model of this kind.
TABLES = {"StaticEmbedding": "static", "SparseStaticEmbedding": "idf"}
_OTHER_NAMES = {
    "MLMTransformer": "Transformer",
    "pylate.models.Dense.Dense": "sentence_transformers.Dense",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Module:
    kind: str  # a key of _LETTERS
    path: str  # sub-folder, "" for the checkpoint's own folder


def read_modules(folder: Path, side: str = "document") -> list[Module]:
    """The pipeline of modules.json; without one [Transformer, Pooling], which is mean pooling and nothing after it.

    `side`: query or document, where a Router has a line of modules for each.
    """
    path = folder / "modules.json"
    listed = read_json_list(path)
    if listed is None:
        kind = "StaticEmbedding" if read_json(folder / "config.json").get("model_type") == "model2vec" else ""
        return [Module(kind, "")] if kind else [Module("Transformer", ""), Module("Pooling", "")]
    if is_routed(folder):
        return _route(folder, _inside(listed[0].get("path") or "", "Router", path), side)
    kinds = [text_at(one, "type", path) for one in listed]
    if kinds[0] == "custom_st.Transformer" and is_known(read_json(folder / "config.json")):
        kinds[0] = (
            "sentence_transformers.models.Transformer"  # its authors' own, which chooses an adapter: natives.py does
        )
    modules = [_module(kind, one.get("path") or "", path) for kind, one in zip(kinds, listed, strict=True)]
    line = line_of(modules)
    if not line:
        raise ModelError(
            f"{path}: {', '.join(one.kind for one in modules)}: Lading knows Transformer, Pooling, any number of Dense, Normalize, "
            "in this order; Transformer, SpladePooling; Transformer, Dense, MultiVectorMask, Normalize; StaticEmbedding, Normalize"
        )
    if line in ("dense", "sparse", "multi_vector", "score") and modules[0].path:
        raise ModelError(
            f"{path}: the Transformer lies in {modules[0].path}; move its files beside modules.json and set its path to ''"
        )
    return modules


def is_routed(folder: Path) -> bool:
    """Whether queries and documents go through modules of their own."""
    listed = read_json_list(folder / "modules.json") or []
    return len(listed) == 1 and str(listed[0].get("type")).endswith(".Router")


def line_of(modules: list[Module]) -> str:
    """Which of the known lines of modules this is: dense, static, sparse, idf, score, multi_vector; "" for none."""
    letters = "".join(_LETTERS[module.kind] for module in modules)
    return next((line for line, pattern in _LINES.items() if re.fullmatch(pattern, letters)), "")


def _module(kind: str, where: object, path: Path, home: str = "") -> Module:
    package, _, name = _OTHER_NAMES.get(kind, kind).rpartition(".")
    name = _OTHER_NAMES.get(name, name)
    if not f"{package}.".startswith("sentence_transformers.") or name not in _LETTERS:
        raise ModelError(f"{path}: module {kind} is none that Lading knows ({', '.join(_LETTERS)})")
    where = _inside(where, kind, path)
    return Module(name, f"{home}/{where}" if home and where else home or where)


def _inside(where: object, kind: str, path: Path) -> str:
    """A module's sub-folder, "" for the checkpoint's own. Raises ModelError for a place outside of it."""
    if not isinstance(where, str) or Path(where).is_absolute() or ".." in Path(where).parts:
        raise ModelError(f"{path}: module {kind}: path {where!r} is not a sub-folder")
    return "" if where == "." else where


def _route(folder: Path, home: str, side: str) -> list[Module]:
    """The line of modules that a Router has for queries or documents, as sentence-transformers finds it."""
    path = folder / home / "router_config.json"
    found = read_json(path)
    routes, types = found.get("structure"), found.get("types")
    parameters = found.get("parameters") or {}
    followed = isinstance(parameters, dict) and not parameters.get("route_mappings")
    if not isinstance(routes, dict) or not isinstance(types, dict) or not followed:
        raise ModelError(
            f"{path}: needs `structure` and `types`, and no `route_mappings`, which Lading does not follow"
        )
    names = routes.get(side)
    if not isinstance(names, list) or not names:
        raise ModelError(f"{path}: no route {side!r}, only {', '.join(map(repr, routes))}")
    modules = [_module(str(types.get(name)), _inside(name, str(name), path), path, home) for name in names]
    if line_of(modules) not in ("sparse", "idf"):
        kinds = ", ".join(module.kind for module in modules)
        raise ModelError(
            f"{path}: route {side!r} is {kinds}; Lading knows Transformer, SpladePooling and SparseStaticEmbedding"
        )
    return modules


def read_pooling(folder: Path, hidden: int, modules: list[Module]) -> tuple[str, bool, int]:
    """Pooling, whether the prompt's tokens count in it, and the dimensions after every Dense; each checked against the one before."""
    pooling, include_prompt, dims, said_by = "mean", True, hidden, "config.json"
    for module in modules[1:]:
        path = folder / module.path / "config.json"
        if module.kind == "Pooling" and module.path:
            found = read_json(path)
            pooling, include_prompt = _pooling_mode(path, found), bool(found.get("include_prompt", True))
            takes = gives = integer_at(found, ("embedding_dimension", "word_embedding_dimension"), path)
        elif module.kind == "Dense":
            takes, gives = read_dense(path, "sentence_embedding")
        else:
            check_input(path, read_json(path), "sentence_embedding")
            continue
        check_chain(path, takes, dims, said_by)
        dims, said_by = gives or dims, f"{module.path}/config.json"
    return pooling, include_prompt, dims


def hidden_size(folder: Path, config: dict[str, Any]) -> int:
    """Dimensions of a token's vector in the transformer."""
    hidden = integer_at(config, ("hidden_size", "dim", "d_model", "n_embd"), folder / "config.json")
    if hidden is None:
        raise ModelError(f"{folder / 'config.json'}: no hidden_size")
    return hidden


def check_chain(path: Path, takes: int | None, dims: int, said_by: str) -> None:
    """Raises ModelError unless what a module takes is what the one before gives."""
    if takes != dims:
        raise ModelError(
            f"{path}: takes {takes} dimensions, but {said_by} gives {dims}: the files do not belong together"
        )


def _pooling_mode(path: Path, found: dict[str, Any]) -> str:
    modes = found.get("pooling_mode")
    if modes is None:
        names = [name for flag, name in _POOLING_FLAGS.items() if found.get(flag)] or ["mean"]
    else:
        listed = modes if isinstance(modes, list) else [modes]
        unknown = [mode for mode in listed if mode not in _POOLING]
        if unknown or not listed:
            raise ModelError(f"{path}: pooling_mode {modes!r}{nearest(str(unknown[0]) if unknown else '', _POOLING)}")
        names = [_POOLING[mode] for mode in listed]
    if len(names) > 1:
        raise ModelError(f"{path}: joins several poolings ({', '.join(names)}), which Lading does not do")
    return names[0]


def read_dense(path: Path, applied_to: str) -> tuple[int, int]:
    """Dimensions that a Dense module takes and gives. `applied_to`: sentence_embedding, or token_embeddings."""
    found = read_json(path)
    takes, gives = integer_at(found, ("in_features",), path), integer_at(found, ("out_features",), path)
    if takes is None or gives is None:
        raise ModelError(f"{path}: a Dense module needs in_features and out_features")
    activation = found.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in DENSE_ACTIVATIONS:
        raise ModelError(f"{path}: activation_function {activation}{nearest(str(activation), DENSE_ACTIVATIONS)}")
    check_input(path, found, applied_to)
    weight_files(path.parent)
    return takes, gives


def check_input(path: Path, found: dict[str, Any], applied_to: str) -> None:
    """Raises ModelError for a module that is applied to something else."""
    what = "the text's vector" if applied_to == "sentence_embedding" else "every token's vector"
    for key in ("module_input_name", "module_output_name"):
        if found.get(key) not in (None, applied_to):
            raise ModelError(
                f"{path}: {key} is {found[key]!r}; Lading applies this module to {what} ({applied_to}) only"
            )
