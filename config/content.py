"""The files of a checkpoint: which ones matter, whether they are safe to open, and the hash of what is in them.

Reads JSON and bytes, never weights as tensors. Knows nothing of what a model computes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from . import settings
from .errors import ModelError
from .events import tell
from .natives import is_known

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# Formats that can run code when opened, or that belong to other frameworks.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
# What, beside the weights, can change a result.
_CONFIGS = ("config.json", "modules.json", "config_sentence_transformers.json")
_TABLES = ("idf.json", "router_config.json", "artifact.metadata")  # of some sparse and multi-vector models
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_HASH_CACHE = "file-hashes.json"
_CACHED_FROM_BYTES = 1 << 20  # smaller files are hashed faster than they are looked up
_CACHED_FILES = 1000
_BEFORE_KEY, _BEFORE_VALUE = re.compile(r'\s*[{,]\s*(?=")'), re.compile(r"\s*:\s*")
_END = re.compile(r"\s*({\s*)?}\s*$")

_log = logging.getLogger(__name__)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; {} where there is no such file. Raises ModelError with file and line."""
    found = _parse(path)
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def read_json_list(path: Path) -> list[dict[str, Any]] | None:
    """The JSON list of objects in `path`; None where there is no such file."""
    if not path.exists():
        return None
    found = _parse(path)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ModelError(f"{path}: expected a JSON list of objects")
    return found


def read_json_value(path: Path, key: str) -> Any:
    """The value of one key of the JSON object in `path`; None where there is no such key or file. What comes after it is not parsed.

    For tokenizer.json, whose settings come before its vocabulary: all of it took 0.7 s (XLM-R's size, 16 MB), the settings 0.06 s.
    """
    with _complaining(path):
        text, decoder, at = path.read_text(encoding="utf-8"), json.JSONDecoder(), 0
        while name := _BEFORE_KEY.match(text, at):
            found, at = decoder.raw_decode(text, name.end())
            colon = _BEFORE_VALUE.match(text, at)
            if colon is None:
                raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
            value, at = decoder.raw_decode(text, colon.end())
            if found == key:
                return value
        if not _END.match(text, at):
            raise json.JSONDecodeError("Expecting a JSON object", text, at)
    return None


def _parse(path: Path) -> object:
    with _complaining(path):
        return json.loads(path.read_bytes())
    return {}


@contextlib.contextmanager
def _complaining(path: Path) -> Generator[None]:
    """Errors as ModelErrors with file and line; a file that is not there is none."""
    try:
        yield
    except FileNotFoundError:
        return
    except json.JSONDecodeError as problem:
        raise ModelError(f"{path}, line {problem.lineno}: not valid JSON: {problem.msg}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as problem:
        raise ModelError(f"{path}: cannot be read: {problem}") from None


def text_at(found: dict[str, Any], key: str, path: Path) -> str:
    value = found.get(key)
    if not isinstance(value, str) or not value:
        raise ModelError(f"{path}: {key}: expected text, found {value!r}")
    return value


def integer_at(found: dict[str, Any], keys: tuple[str, ...], path: Path) -> int | None:
    """The first of `keys` that is there and not null."""
    for key in keys:
        value = found.get(key)
        if isinstance(value, float) and value.is_integer():  # 1e30, written by some tokenizers
            return int(value)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ModelError(f"{path}: {key}: expected a whole number, found {value!r}")
        if value is not None:
            return value
    return None


def special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, mask_token and the like, by these names, as the tokenizer's files have them."""
    found = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in found.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def check_safe(folder: Path, *, table: bool = False) -> None:
    """Raise ModelError unless `folder` holds a model that loads without running anybody's code, whole.

    `table`: a lookup table beside its tokenizer, which has no config.json.
    """
    if not table and not (folder / "config.json").is_file():
        lora = " (adapter_config.json: a LoRA adapter; give its base as the model, and this as adapter)"
        raise ModelError(
            f"{folder}: no config.json{lora if (folder / 'adapter_config.json').exists() else ': not a model folder'}"
        )
    for name in ("config.json", "tokenizer_config.json"):
        found = read_json(folder / name)
        if found.get("auto_map") and not is_known(found):
            raise ModelError(
                f"{folder / name}: has `auto_map`, so the model needs Python code from its own repository, which Lading never runs; "
                "use a checkpoint of an architecture that transformers itself has"
            )
    if not (table and (folder / "idf.json").is_file()):
        weight_files(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder}: no tokenizer.json; make it from the older tokenizer files with: "
            f"python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the module in `folder`, sorted. Raises ModelError: none, a missing shard, or only unsafe ones."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        shards = read_json(folder / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(_is_plain_name(name) for name in shards.values()):
            raise ModelError(f"{folder / WEIGHTS_INDEX}: no usable `weight_map`")
        files = sorted({folder / name for name in shards.values()})
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(
                f"{folder}: {WEIGHTS_INDEX} lists {', '.join(missing)}, which is not there; fetch the model again"
            )
        return files
    others = sorted(
        file.name for file in folder.iterdir() if file.suffix in _OTHER_WEIGHTS and file.name != "training_args.bin"
    )
    if not others:
        raise ModelError(f"{folder}: no weights ({WEIGHTS}, or {WEIGHTS_INDEX} with its shards)")
    names = read_json(folder / "config.json").get("architectures")
    name = names[0] if isinstance(names, list) and names and str(names[0]).isidentifier() else "AutoModel"
    raise ModelError(
        f"{folder}: weights only as {', '.join(others)}; Lading opens safetensors only, because other formats can run code. If you "
        f"trust the file, convert it: python -c \"from transformers import {name} as M; M.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and os.path.basename(name) == name


def content_hash(folder: Path, modules: list[str], *, part: str = "", files: Sequence[str] = ()) -> str:
    """sha256 over name and content of every file that can change a result; `modules` are sub-folders that count.

    `part`: the sub-folder with the model's own files, "" for `folder`; `files`: further weights in it that are used.
    Independent of where the folder lies and of READMEs, other formats' weights and the like.
    """
    home = folder / part
    named = [home / name for name in (*_CONFIGS, *_TOKENIZER, *_TABLES, *files)]
    named += sorted(home.glob("sentence_*_config.json"))
    if part:
        named += [folder / name for name in (*_CONFIGS, *_TABLES)]
    named += [] if (home / "idf.json").is_file() else weight_files(home)
    for module in modules:
        named += [folder / module / "config.json", folder / module / WEIGHTS]
    present = sorted({file.relative_to(folder).as_posix(): file for file in named if file.is_file()}.items())
    return files_hash(present)


def files_hash(files: list[tuple[str, Path]]) -> str:
    """sha256 over the names given to these files and their contents."""
    known = _read_cache()
    total, fresh = hashlib.sha256(), {}
    for name, file in files:
        key = _identity(file)
        digest = known.get(key)
        if digest is None:
            with open(file, "rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            # A file that changed while it was read has no hash worth remembering.
            if key == _identity(file) and file.stat().st_size >= _CACHED_FROM_BYTES:
                fresh[key] = digest
        total.update(f"{name}\0{digest}\n".encode())
    if fresh:
        _write_cache(known | fresh)
    return total.hexdigest()


def _identity(file: Path) -> str:
    """Changes whenever the file may have: the change time catches a replacement that copied the modification time."""
    real = file.resolve()
    stat = real.stat()
    return f"{real}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"


def _read_cache() -> dict[str, str]:
    path = settings.load().cache_dir / _HASH_CACHE
    try:
        found = json.loads(path.read_bytes())
        return {key: value for key, value in found["files"].items() if isinstance(value, str) and len(value) == 64}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        tell(_log, "hash cache ignored", path=path, why=problem)
        return {}


def _write_cache(hashes: dict[str, str]) -> None:
    folder = settings.load().cache_dir
    kept = dict(list(hashes.items())[-_CACHED_FILES:])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=_HASH_CACHE, delete=False) as file:
            json.dump({"version": 1, "files": kept}, file)
        os.replace(file.name, folder / _HASH_CACHE)
    except OSError as problem:
        tell(_log, "hash cache not kept", why=problem)
