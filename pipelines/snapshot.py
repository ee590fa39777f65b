"""Finds the files and tables a source names, and tells whether one is still what it was. Knows endings, not contents."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

import lance
import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ..config.errors import LadingError, ShardError, SourceChanged, SourceError, nearest
from .failures import reason
from .records import Input
from .spec import SourceSpec
from .stores import open_store

ENDINGS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".lance": "lance",
    ".txt": "text",
    ".md": "text",
    ".markdown": "text",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
READ_BYTES = 1 << 20
TOGETHER = 16  # requests to a store that wait at the same time

T = TypeVar("T")


def find(spec: SourceSpec) -> tuple[str, list[Input]]:
    """The format and every input that `spec.paths` names, sorted by path, each once. See `sources.snapshot`."""
    formats = sorted(set(ENDINGS.values()))
    if spec.format and spec.format not in formats:
        raise SourceError(f"source format {spec.format!r} is unknown{nearest(spec.format, formats)}")
    found: dict[str, Input] = {}
    kinds: dict[str, str] = {}  # format -> the first path that has it
    for path in spec.paths:
        try:
            expanded = list(_expand(path, spec))
        except Exception as error:
            if not is_read_error(error, path):
                raise
            said = f"{path}: {type(error).__name__}: {error}"
            if not is_local(path):
                said = (
                    f"{path} cannot be looked up: {reason(error)}; see that the store can be reached, and what the "
                    "environment's credentials allow"
                )
            raise SourceError(said) from error
        for format, one in expanded:
            found.setdefault(one.path, one)
            kinds.setdefault(format, one.path)
    if len(kinds) > 1:
        seen = ", ".join(f"{kind} ({path})" for kind, path in sorted(kinds.items()))
        raise SourceError(f"the source mixes formats: {seen}; name one with format, or a narrower glob")
    format = next(iter(kinds), spec.format)
    inputs = sorted(found.values(), key=lambda one: one.path)
    if spec.version and (format != "lance" or len(inputs) != 1):
        raise SourceError(
            f"version {spec.version} can be asked of one Lance table only; the source is {len(inputs)} x {format}"
        )
    return format, inputs


def is_read_error(error: Exception, path: str) -> bool:
    """Whether the world is to blame, not this code: OSError, Arrow's errors, and whatever a remote store's client raises."""
    return isinstance(error, OSError | pa.ArrowException) or not (is_local(path) or isinstance(error, LadingError))


def open_input(one: Input, *, read_ahead: bool = True) -> BinaryIO:
    """The file of an input, to read and seek. Without `read_ahead` a store is asked for what is read and no more."""
    if is_local(one.path):
        return open(one.path, "rb", buffering=READ_BYTES)
    fs, path = url_to_fs(one.path)
    if not read_ahead:
        return fs.open(path, "rb", cache_type="none")
    # s3fs would read 50 MB ahead: fourteen times the bytes of a JSONL file that is read in shards of 3 MB.
    return io.BufferedReader(fs.open(path, "rb", block_size=READ_BYTES), READ_BYTES)


def contents(inputs: list[Input]) -> Iterator[bytes]:
    """The whole files of inputs, in their order."""
    return _of_each(inputs, _content)


def verify_all(inputs: list[Input], format: str) -> None:
    """`verify` each of them."""
    for _ in _of_each(inputs, lambda one: verify(one, format)):
        pass


def _content(one: Input) -> bytes:
    with open_input(one, read_ahead=False) as file:
        return file.read()


def _of_each(inputs: list[Input], ask: Callable[[Input], T]) -> Iterator[T]:
    """The answers in order; of a store some at the same time, since each takes longer to come than to read."""
    if len(inputs) < 2 or is_local(inputs[0].path):
        yield from map(ask, inputs)
        return
    with ThreadPoolExecutor(TOGETHER) as pool:
        for start in range(0, len(inputs), TOGETHER):
            yield from pool.map(ask, inputs[start : start + TOGETHER])


def verify(one: Input, format: str) -> None:
    """Raises SourceChanged unless the input is what the snapshot saw, ShardError if its store does not say."""
    try:
        if format == "lance":
            now = _table(one.path, int(one.stamp.partition("-")[0]))
        elif is_local(one.path):
            now = _local_file(one.path, one.name)
        else:
            fs, root = url_to_fs(one.path)
            fs.invalidate_cache(posixpath.dirname(root))
            now = _remote_file(fs, root, one.name)
    except (FileNotFoundError, SourceError) as error:
        raise SourceChanged(
            f"{one.path} is gone since the job was planned; put it back, or run again for a new job without it"
        ) from error
    except Exception as error:
        if not is_read_error(error, one.path):
            raise
        raise ShardError(f"{one.path} cannot be looked up: {type(error).__name__}: {error}; run again") from error
    if (now.size, now.stamp) != (one.size, one.stamp):
        raise SourceChanged(f"{one.path} changed since the job was planned; run again: the changed source is a new job")


def table_at(one: Input) -> lance.LanceDataset:
    """The Lance table of an input at the version of the snapshot."""
    return lance.dataset(one.path, version=int(one.stamp.partition("-")[0]))


def _expand(path: str, spec: SourceSpec) -> Iterator[tuple[str, Input]]:
    """(format, input) for everything one path of the spec names. Raises SourceError if that is nothing."""
    if path.startswith("lance://"):
        yield "lance", _table(_absolute(path.removeprefix("lance://")), spec.version)
        return
    fs, root = open_store(path, SourceError)
    fs.invalidate_cache()  # what this process saw of a store earlier may have changed
    root = os.path.normpath(root) if isinstance(fs, LocalFileSystem) else root.rstrip("/")
    if fs.exists(root):
        matches, base = [root], root if fs.isdir(root) else posixpath.dirname(root)
    elif set("*?[") & set(root):
        matches = sorted(str(match) for match in fs.glob(root))
        base = root[: min(root.find(magic) for magic in "*?[" if magic in root)].rpartition("/")[0]
    else:
        matches, base = [], ""
    if not matches:
        raise SourceError(f"nothing matches {path}{_near(fs, root)}")
    files = [file for match in matches for file in ([match] if _is_one(fs, match, spec) else _walk(fs, match, spec))]
    if not files:
        endings = [ending for ending, format in ENDINGS.items() if format == (spec.format or format)]
        raise SourceError(f"nothing under {path} ends in {', '.join(endings)}")
    for file in files:
        format = spec.format or _format(file)
        yield format, _table(_url(fs, file), spec.version) if format == "lance" else _file(fs, file, format, base)


def _is_one(fs: Any, path: str, spec: SourceSpec) -> bool:
    """Whether a path is an input by itself: a file or a table, not a folder of them."""
    return path.endswith(".lance") or spec.format == "lance" or not fs.isdir(path)


def _walk(fs: Any, folder: str, spec: SourceSpec) -> Iterator[str]:
    """Files and tables below a folder whose ending a format knows (if one is named: that format); no hidden ones."""
    tables: set[str] = set()
    for file in sorted(str(file) for file in fs.find(folder)):
        parts = file[len(folder) :].strip("/").split("/")
        if any(part.startswith((".", "_")) for part in parts):
            continue
        inner = next((n for n, part in enumerate(parts) if part.endswith(".lance")), None)
        if inner is not None:
            table = posixpath.join(folder, *parts[: inner + 1])
            if table not in tables and spec.format in ("", "lance"):
                tables.add(table)
                yield table
            continue
        ending = posixpath.splitext(file)[1].lower()
        if ending in COMPRESSED and posixpath.splitext(file[: -len(ending)])[1].lower() in ENDINGS:
            _format(file)  # refuses it: leaving it out in silence would lose rows
        if ENDINGS.get(ending) == (spec.format or ENDINGS.get(ending, "")):
            yield file


def _format(path: str) -> str:
    ending = posixpath.splitext(path)[1].lower()
    if ending in COMPRESSED:
        raise SourceError(
            f"{path} is compressed as a whole, so it cannot be cut into shards; decompress it or convert it to Parquet"
        )
    if ending not in ENDINGS:
        raise SourceError(
            f"{path}: the ending {ending!r} names no format; name one with format, or one of {', '.join(ENDINGS)}"
        )
    return ENDINGS[ending]


def _file(fs: Any, path: str, format: str, base: str) -> Input:
    name = posixpath.relpath(path, base or "/") if format == "text" else ""
    return _local_file(path, name) if isinstance(fs, LocalFileSystem) else _remote_file(fs, path, name)


def _local_file(path: str, name: str) -> Input:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{path!a}: the file's name is not UTF-8; rename it or leave it out") from error
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for without end
        raise SourceError(f"{path} is no regular file, so it cannot be read twice: write what it gives to a file first")
    return Input(path, state.st_size, str(state.st_mtime_ns), name)


def _remote_file(fs: Any, path: str, name: str) -> Input:
    info = fs.info(path)
    stamp = next(
        (info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified") if info.get(key)),
        None,
    )
    if stamp is None:
        try:
            stamp = fs.modified(path)
        except (NotImplementedError, AttributeError):
            stamp = ""  # the size is all this store tells
    return Input(_url(fs, path), int(info["size"]), str(stamp), name)


def _table(path: str, version: int) -> Input:
    """A Lance table pinned at `version`, 0 for the newest. Its stamp names the version and hashes what it is made of."""
    try:
        table = lance.dataset(path, version=version or None)
        fragments = [fragment.metadata.to_json() for fragment in table.get_fragments()]
    except (ValueError, OSError, RuntimeError) as error:
        which = f" at version {version}" if version else ""
        raise SourceError(f"{path} cannot be opened as a Lance table{which}: {reason(error)}") from error
    made_of = hashlib.sha256(json.dumps(fragments, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return Input(path, table.count_rows(), f"{table.version}-{made_of}")


def is_local(path: str) -> bool:
    return "://" not in path


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path


def _url(fs: Any, path: str) -> str:
    """What opens this path again without `fs`: absolute for local files, else with its protocol."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _near(fs: Any, root: str) -> str:
    """A hint: the names that are there, nearest first."""
    folder, name = posixpath.split(root)
    while folder not in ("", "/") and not fs.isdir(folder):
        folder, name = posixpath.split(folder)
    try:
        names = [posixpath.basename(str(one).rstrip("/")) for one in fs.ls(folder or "/", detail=False)]
    except (OSError, NotImplementedError):
        names = []
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or sorted(names)[:5]
    return f"; in {folder or '/'} there is {', '.join(close)}" if close else f"; {folder or '/'} is empty or not there"
