"""Where a checkpoint is: a folder, the hub's local cache, or the hub itself. Which one it was is said, never guessed later."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from pathlib import Path
from typing import NoReturn

from . import catalogue, settings
from .content import WEIGHTS, WEIGHTS_INDEX, read_json, read_json_list
from .errors import HubAway, ModelError, nearest
from .repository import ROUTER, is_whole, module_folders, routed, shards, wanted

SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
_HUB_NAME = re.compile(r"(?P<name>[\w][\w.-]*(/[\w][\w.-]*)?)(@(?P<revision>[\w][\w./-]*))?", re.ASCII)
_HUB = "https://huggingface.co"
_LOGIN = "set HF_TOKEN to a token of that account, or log in with `hf auth login`"


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files on this machine, and where they came from."""

    folder: Path  # absolute
    origin: str  # folder | hub cache | hub
    name: str  # as the user wrote it, without @revision
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


def prompt_named(folder: Path, name: str, prompts: dict[str, str] | None = None) -> str:
    """The text of a prompt: documents and queries have other names in some checkpoints, and fall back to its default.

    `prompts`: instead of those that the checkpoint names.
    """
    if name == "none":
        return ""
    prompts = saved_prompts(folder) if prompts is None else prompts
    names = {"document": ("document", "passage", "corpus", "retrieval.passage"), "query": ("query", "retrieval.query")}
    for candidate in names.get(name, (name,)):
        if candidate in prompts:
            return prompts[candidate]
    if name not in ("document", "query"):
        hint = nearest(name, {*prompts, "document", "query", "none"})
        raise ModelError(f"{folder / SENTENCE_TRANSFORMERS}: no prompt {name!r}{hint} (or give a text: prompt_text)")
    return default_prompt(folder, prompts)


def default_prompt(folder: Path, prompts: dict[str, str]) -> str:
    """The text of the prompt that the checkpoint says is its default; "" if it says none."""
    default = read_json(folder / SENTENCE_TRANSFORMERS).get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ModelError(f"{folder / SENTENCE_TRANSFORMERS}: default_prompt_name {default!r} is none of its prompts")
    return prompts[default] if default is not None else ""


def locate(model: str, revision: str = "", *, offline: bool | None = None) -> Checkpoint:
    """Find `model`: an existing folder first, then the hub's local cache, then (unless `offline`) the hub.

    `revision` is a branch, tag or commit of a hub name, which may also be written behind it (`owner/model@revision`); "" is
    its main branch. `offline` None asks the settings. Tokens are huggingface_hub's business (HF_TOKEN, or its login); none is
    ever part of a message. Raises ModelError that says where it looked; HubAway where the hub or the disk fails, not the name.
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
    hub = _HUB_NAME.fullmatch(model)
    if hub is None:
        _no_folder(model, folder)
    if hub["revision"] and revision not in ("", hub["revision"]):
        raise ModelError(f"{model} names another revision than {revision!r}: say it once")
    model, revision = hub["name"], revision or hub["revision"] or ""
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
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            HTTPError,  # pyright: ignore[reportPrivateImportUsage]  of its HTTP client, whichever that is
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        lacking = "the hub cannot be asked without the package huggingface-hub (pip install 'lading[worker]')"
        _unknown(model, revision, None, lacking)
    page = f"{os.environ.get('HF_ENDPOINT', _HUB).rstrip('/')}/{model}"
    try:
        about = HfApi().model_info(model, revision=revision or None)
        names = [one.rfilename for one in about.siblings or []]

        def fetched(name: str) -> Path:  # one that is not there reads as empty
            return (
                Path(hf_hub_download(model, name, revision=about.sha)) if name in names else Path(name, "is not there")
            )

        folders = [*module_folders(read_json_list(fetched("modules.json"))), *routed(read_json(fetched(ROUTER)))]
        needed = wanted(names, folders, shards(read_json(fetched(WEIGHTS_INDEX))))
        patterns = [glob.escape(name) for name in needed]
        folder = snapshot_download(model, revision=revision or None, allow_patterns=patterns)
    except GatedRepoError:
        terms = f"the hub has it, but only for those who accepted its terms: accept them at {page}, then {_LOGIN}"
        _unknown(model, revision, None, terms)
    except RevisionNotFoundError:
        _unknown(model, revision, None, f"the hub has the model, but no revision {revision!r}")
    except RepositoryNotFoundError:
        _unknown(model, revision, None, "the hub has no such model (or it is private: set HF_TOKEN)")
    except (HTTPError, OSError, HFValidationError) as problem:
        if isinstance(problem, HfHubHTTPError) and problem.response.status_code == 401:
            refused = "the hub refuses the token that it was given (HF_TOKEN, or that of `hf auth login`)"
            _unknown(model, revision, None, refused)
        told = " ".join(str(problem).split())[:300]
        if isinstance(problem, HFValidationError):
            _unknown(model, revision, None, f"the hub knows no such names: {told}")
        if isinstance(problem, OSError) and problem.errno is not None and not isinstance(problem, ConnectionError):
            raise HubAway(f"{model} cannot be stored in the hub's cache ({cache_folder()}): {told}") from problem
        _unknown(model, revision, None, f"the hub could not be reached: {told}", error=HubAway)
    path = Path(folder).absolute()
    if path.name != about.sha:  # a branch that moved meanwhile: the names are those of before, the files of after
        return _download(model, revision)
    return Checkpoint(path, "hub", model, path.name)


def _no_folder(model: str, folder: Path) -> NoReturn:
    parent = folder.parent
    if not parent.is_dir():
        raise ModelError(f"no model {model}: there is no folder {parent}")
    near = nearest(folder.name, _folders(parent)) if _folders(parent) else f"; {parent} has no folders"
    raise ModelError(f"no model {model}: no such folder{near}")


def _unknown(
    model: str, revision: str, found: Checkpoint | None, hub: str, *, error: type[ModelError] = ModelError
) -> NoReturn:
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
    hint = f"; did you mean {near[0]!r}?" if near else catalogue.near(model)
    raise error(f"no model {model}{at}: not a folder here, {held}, and {hub}{hint}")


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
