"""What modules.json and the folders it names say about how token vectors become a text's vector.

Known: Transformer, Pooling, any number of Dense, Normalize, in this order, as sentence-transformers 2 to 6 saves them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from .content import integer_at, read_json, read_json_list, text_at, weight_files
from .errors import ModelError, nearest

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


@dataclasses.dataclass(frozen=True, slots=True)
class Module:
    kind: str  # Transformer | Pooling | Dense | Normalize; Transformer | LogitScore
    path: str  # sub-folder, "" for the checkpoint's own folder


def read_modules(folder: Path) -> list[Module]:
    """The pipeline of modules.json; without one [Transformer, Pooling], which is mean pooling and nothing after it."""
    path = folder / "modules.json"
    listed = read_json_list(path)
    if listed is None:
        return [Module("Transformer", ""), Module("Pooling", "")]
    modules = []
    for one in listed:
        kind, where = text_at(one, "type", path), one.get("path") or ""
        package, _, name = kind.rpartition(".")
        if not package.startswith("sentence_transformers.") or name not in (
            "Transformer",
            "Pooling",
            "Dense",
            "Normalize",
            "LogitScore",
        ):
            raise ModelError(
                f"{path}: module {kind} is none that Lading knows (Transformer, Pooling, Dense, Normalize, LogitScore)"
            )
        if not isinstance(where, str) or Path(where).is_absolute() or ".." in Path(where).parts:
            raise ModelError(f"{path}: module {kind}: path {where!r} is not a sub-folder")
        modules.append(Module(name, where))
    order = [module.kind for module in modules]
    if order == ["Transformer", "LogitScore"] and not modules[0].path:
        return modules
    tail = order[2:-1] if order[-1:] == ["Normalize"] else order[2:]
    if order[:1] != ["Transformer"] or (order[1:] and (order[1] != "Pooling" or set(tail) - {"Dense"})):
        raise ModelError(
            f"{path}: {', '.join(order)}: Lading knows Transformer, Pooling, any number of Dense, Normalize, in this order"
        )
    if modules[0].path:
        raise ModelError(
            f"{path}: the Transformer lies in {modules[0].path}; move its files beside modules.json and set its path to ''"
        )
    return modules


def read_pooling(folder: Path, config: dict[str, Any], modules: list[Module]) -> tuple[str, bool, int]:
    """Pooling, whether the prompt's tokens count in it, and the dimensions after every Dense; each checked against the one before."""
    hidden = integer_at(config, ("hidden_size", "dim", "d_model", "n_embd"), folder / "config.json")
    if hidden is None:
        raise ModelError(f"{folder / 'config.json'}: no hidden_size")
    pooling, include_prompt, dims, said_by = "mean", True, hidden, "config.json"
    for module in modules[1:]:
        path = folder / module.path / "config.json"
        if module.kind == "Pooling" and module.path:
            found = read_json(path)
            pooling, include_prompt = _pooling_mode(path, found), bool(found.get("include_prompt", True))
            takes = gives = integer_at(found, ("embedding_dimension", "word_embedding_dimension"), path)
        elif module.kind == "Dense":
            takes, gives = _dense(path)
        else:
            _check_normalize(path)
            continue
        if takes != dims:
            raise ModelError(
                f"{path}: takes {takes} dimensions, but {said_by} gives {dims}: the files do not belong together"
            )
        dims, said_by = gives or dims, f"{module.path}/config.json"
    return pooling, include_prompt, dims


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


def _dense(path: Path) -> tuple[int, int]:
    found = read_json(path)
    takes, gives = integer_at(found, ("in_features",), path), integer_at(found, ("out_features",), path)
    if takes is None or gives is None:
        raise ModelError(f"{path}: a Dense module needs in_features and out_features")
    activation = found.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in DENSE_ACTIVATIONS:
        raise ModelError(f"{path}: activation_function {activation}{nearest(str(activation), DENSE_ACTIVATIONS)}")
    _check_keys(path, found)
    weight_files(path.parent)
    return takes, gives


def _check_normalize(path: Path) -> None:
    _check_keys(path, read_json(path))


def _check_keys(path: Path, found: dict[str, Any]) -> None:
    for key in ("module_input_name", "module_output_name"):
        if found.get(key) not in (None, "sentence_embedding"):
            raise ModelError(
                f"{path}: {key} is {found[key]!r}; Lading applies modules to the text's vector (sentence_embedding) only"
            )
