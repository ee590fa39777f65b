"""Which files of a repository on the hub, or of a folder, a model is made of; whether they are all there, and how large they are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from .content import WEIGHTS, WEIGHTS_INDEX, read_json, read_json_list
from .errors import ModelError

ADAPTER = "adapter_config.json"  # what a LoRA adapter has in place of a config.json
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ROUTER = "router_config.json"
# Kind of a module -> the file without which its folder is only begun; a Normalize has none, nor always a folder.
_PARTS = {"Pooling": "config.json", "Dense": WEIGHTS, "LayerNorm": WEIGHTS, "StaticEmbedding": WEIGHTS}
# Root files that are other copies of the weights; the shards of `model` that are wanted are named by its index.
_OTHER_COPIES = ("model", "pytorch_model", "consolidated", "open_clip")


def is_whole(folder: Path) -> bool:
    """Whether a snapshot has what a model needs: other programs, or a download that was stopped, may have left a part of it."""
    try:
        return not lacking(folder)
    except ModelError:
        return False  # fetched anew, or said where the hub cannot be asked


def lacking(folder: Path) -> list[str]:
    """The files and folders that a model, or an adapter, needs and that are not there. Raises ModelError where its JSON cannot be read."""
    if (folder / ADAPTER).exists():
        return _not_there(folder, [ADAPTER_WEIGHTS])
    modules = module_folders(read_json_list(folder / "modules.json"))
    parts = routed(read_json(folder / ROUTER))
    needed: list[str] = []
    if not parts and "StaticEmbedding" not in modules.values():  # those have all in folders of their own
        pieces = [] if (folder / WEIGHTS).exists() else sorted(shards(read_json(folder / WEIGHTS_INDEX)))
        needed += ["config.json", "tokenizer.json", *(pieces or [WEIGHTS])]
    needed += parts
    needed += [f"{path}/{_PARTS.get(kind, '')}" for path, kind in modules.items() if path and kind != "Normalize"]
    needed += [f"{path or '.'}/tokenizer.json" for path, kind in modules.items() if kind == "StaticEmbedding"]
    return _not_there(folder, needed)


def _not_there(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (folder / name).exists()]


def module_folders(modules: list[dict[str, Any]] | None) -> dict[str, str]:
    """The folders that modules.json names -> the kind of module; "" is the root."""
    return {str(one.get("path") or ""): str(one.get("type")).rpartition(".")[2] for one in modules or []}


def routed(router: dict[str, Any]) -> list[str]:
    """The folders that a Router has its modules in, beside modules.json."""
    types = router.get("types")
    return [str(name) for name in types] if isinstance(types, dict) else []


def shards(index: dict[str, Any]) -> set[str]:
    weights = index.get("weight_map")
    return {str(name) for name in weights.values()} if isinstance(weights, dict) else set()


def wanted(names: Sequence[str], folders: Sequence[str], shards: Collection[str]) -> list[str]:
    """The files of a repository that a model is made of: root JSON and weights, and what lies in the folders of its modules.

    Other copies of the weights, exports for other runtimes, images and checkpoints of the training stay where they are.
    The files of older tokenizers come along only where there is no tokenizer.json, which can be made from them.
    """
    older = () if "tokenizer.json" in names else (".txt", ".model")
    weights = {WEIGHTS} if WEIGHTS in names else shards
    inside = tuple(f"{folder}/" for folder in folders if folder)
    found: list[str] = []
    for name in names:
        if name.startswith(inside):
            needed = name.endswith((".json", ".safetensors", ".txt"))
        elif "/" in name:
            needed = False
        elif name.endswith(".safetensors"):
            needed = name in weights or not name.startswith(_OTHER_COPIES)
        else:
            needed = name == "artifact.metadata" or name.endswith((".json", ".jinja", *older))
        found += [name] * needed
    return found


def stored_bytes(folder: Path) -> int:
    """Bytes on disk of those files in a folder that its model is made of. Raises ModelError where its JSON cannot be read."""
    names = [one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()]
    folders = [*module_folders(read_json_list(folder / "modules.json")), *routed(read_json(folder / ROUTER))]
    needed = wanted(names, folders, shards(read_json(folder / WEIGHTS_INDEX)))
    return sum((folder / name).stat().st_size for name in needed)
