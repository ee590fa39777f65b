"""Where a checkpoint is: a folder, the hub's local cache, or the hub itself. Which one it was is said, never guessed later."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from . import settings
from .content import WEIGHTS, WEIGHTS_INDEX, read_json
from .errors import ModelError, nearest

SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
# What a checkpoint may consist of here; weights in other formats and exports for other runtimes stay on the hub.
_WANTED = ["*.json", "*.txt", "*.safetensors", "*.model"]
_UNWANTED = ["onnx/*", "openvino/*", "original/*", "*/checkpoint-*"]
_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files on this machine, and where they came from."""

    folder: Path  # absolute
    origin: str  # folder | hub cache | hub
    name: str  # as the user wrote it
    revision: str  # hub: the commit; "" for a folder

    @property
    def prompts(self) -> dict[str, str]:
        """The checkpoint's own prompts that are not empty, by name (its config_sentence_transformers.json)."""
        return {name: text for name, text in saved_prompts(self.folder).items() if text}

    def describe(self) -> str:
        """One phrase for logs and plans: what was found and where."""
        if self.origin == "folder":
            return f"folder {self.folder}"
        commit = f" at {self.revision[:12]}" if self.revision else ""
        return f"{self.name}{commit} ({self.origin}: {self.folder})"


def saved_prompts(folder: Path) -> dict[str, str]:
    """Every prompt the checkpoint names, empty ones too. Raises ModelError where they are not texts."""
    path = folder / SENTENCE_TRANSFORMERS
    found = read_json(path).get("prompts") or {}
    if not isinstance(found, dict) or not all(text is None or isinstance(text, str) for text in found.values()):
        raise ModelError(f"{path}: prompts: expected names with texts")
    return {name: text or "" for name, text in found.items()}


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has what a model needs: other programs may have fetched only some of its files."""
    weights = (folder / WEIGHTS).exists() or (folder / WEIGHTS_INDEX).exists()
    return weights and (folder / "config.json").exists() and (folder / "tokenizer.json").exists()


def locate(
    model: str,
    revision: str = "",
    *,
    offline: bool | None = None,
    is_whole: Callable[[Path], bool] = _is_whole,
) -> Checkpoint:
    """Find `model`: an existing folder first, then the hub's local cache, then (unless `offline`) the hub.

    `revision` is a branch, tag or commit of a hub name; "" is its main branch. `offline` None asks the settings.
    `is_whole`: whether a folder of the cache has all that is needed. Raises ModelError that says where it looked.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision:
            raise ModelError(
                f"{model} is a folder, and only a name on the hub has revisions: leave out revision {revision!r}"
            )
        return Checkpoint(folder.resolve(), "folder", model, "")
    if folder.is_file():
        raise ModelError(f"{model} is a file; name the folder with config.json, tokenizer.json and the weights")
    if not _HUB_NAME.fullmatch(model):
        _no_folder(model, folder)
    found = _in_cache(model, revision)
    if found is not None and is_whole(found.folder):
        return found
    if settings.load().offline if offline is None else offline:
        _unknown(model, revision, found, "the hub was not asked (offline)")
    return _download(model, revision)


def cache_folder() -> Path:
    """The folder where huggingface_hub keeps what it downloaded, by the same variables in the same order."""
    for variable, below in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        if os.environ.get(variable):
            return Path(os.path.expandvars(os.environ[variable])).expanduser() / below
    return Path("~/.cache/huggingface/hub").expanduser()


def _in_cache(model: str, revision: str) -> Checkpoint | None:
    repository = cache_folder() / f"models--{model.replace('/', '--')}"
    wanted = revision or "main"
    commit = wanted
    ref = repository / "refs" / wanted
    if ".." not in Path(wanted).parts and ref.is_file():
        commit = ref.read_text(encoding="utf-8").strip()
    folder = repository / "snapshots" / commit
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or not folder.is_dir():
        return None
    return Checkpoint(folder.absolute(), "hub cache", model, commit)


def _download(model: str, revision: str) -> Checkpoint:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        _unknown(
            model,
            revision,
            None,
            "the hub cannot be asked without the package huggingface-hub (pip install 'lading[worker]')",
        )
    try:
        folder = snapshot_download(model, revision=revision or None, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    except GatedRepoError:
        _unknown(
            model,
            revision,
            None,
            "the hub has it, but only for those who accepted its terms and are logged in (HF_TOKEN)",
        )
    except RevisionNotFoundError:
        _unknown(model, revision, None, f"the hub has the model, but no revision {revision!r}")
    except RepositoryNotFoundError:
        _unknown(model, revision, None, "the hub has no such model (or it is private: set HF_TOKEN)")
    except (OSError, HFValidationError) as problem:  # every network failure of huggingface_hub is an OSError
        _unknown(model, revision, None, f"the hub could not be reached: {' '.join(str(problem).split())[:300]}")
    path = Path(folder).absolute()
    return Checkpoint(path, "hub", model, path.name)


def _no_folder(model: str, folder: Path) -> NoReturn:
    parent = folder.parent
    if not parent.is_dir():
        raise ModelError(f"no model {model}: there is no folder {parent}")
    near = nearest(folder.name, _folders(parent)) if _folders(parent) else f"; {parent} has no folders"
    raise ModelError(f"no model {model}: no such folder{near}")


def _unknown(model: str, revision: str, found: Checkpoint | None, hub: str) -> NoReturn:
    at = f" at revision {revision!r}" if revision else ""
    cache = cache_folder()
    if found is not None:
        held = f"only parts of it are in the hub's cache ({found.folder}: config.json, tokenizer.json and {WEIGHTS} are needed)"
    else:
        held = f"not in the hub's cache ({cache})"
    cached = [
        name.removeprefix("models--").replace("--", "/") for name in _folders(cache) if name.startswith("models--")
    ]
    parent = Path(model).parent
    near = [*_near(model, cached), *_near(model, [str(parent / name) for name in _folders(parent)])]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ModelError(f"no model {model}{at}: not a folder here, {held}, and {hub}{hint}")


def _near(model: str, names: list[str]) -> list[str]:
    """Names that `model` may stand for: the same without its owner, or a close spelling."""
    same = [
        name for name in names if name.rpartition("/")[2].lower() == model.rpartition("/")[2].lower() and name != model
    ]
    found = nearest(model, names) if names else ""
    return same or ([found.split("'")[1]] if "did you mean" in found else [])


def _folders(parent: Path) -> list[str]:
    try:
        return sorted(one.name for one in parent.iterdir() if one.is_dir() and not one.name.startswith("."))
    except OSError:  # only for a hint: what cannot be listed has none to give
        return []
