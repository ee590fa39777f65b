"""A job's small files beside its output, and the put-if-absent that decides which attempt counts.

Owns atomicity and durability of names and bytes, on a local disk or any fsspec store; knows nothing of what they mean.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import time
import uuid
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from ..config.errors import OutputError, StopJob
from .failures import is_outside, stopping
from .stores import open_store

PUT_ATTEMPTS = 7  # within six seconds at most


class Folder(Protocol):
    """Files by name, `/` in names for subfolders. A file that was put never changes."""

    url: str  # absolute local path or fsspec URL

    def put(self, name: str, data: bytes) -> bytes:
        """Put-if-absent, durable on return: the bytes that stand there now, `data` itself if this call was first.

        "Exists" is not yet "lost": a put that was reported as failed may have been ours, so callers compare
        the bytes. Raises StopJob if the store fails (full, gone).
        """
        ...

    def leave(self, name: str, data: bytes) -> None:
        """A small file for others to find, replaced if it is there; a power cut may lose it. Raises StopJob."""
        ...

    def read(self, name: str) -> bytes | None:
        """The bytes, or None if there is no such file."""
        ...

    def exists(self, name: str) -> bool: ...

    def names(self, under: str = "") -> list[str]:
        """Names (without `under`) of the files directly in a subfolder, sorted; [] if there is none."""
        ...

    def stream(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A new file to write to, durable when the block ends, gone if the block fails."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A file to read. Raises FileNotFoundError."""
        ...

    def adopt(self, source: Folder, staged: str, name: str) -> bool:
        """Move a file of `source` (a folder on the same store) here, durably; False if it is not there (any more).

        Locally a rename, which happens once whoever tries it; on an object store a copy, and the source stays
        for the caller to delete.
        """
        ...

    def overwrite(self, name: str, data: bytes) -> None:
        """Replace a file that only people read (a report). Atomic, not ordered against other writers."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file or, with everything in it, a subfolder; nothing to remove is no error. What comes meanwhile may stay."""
        ...

    def clean(self, under: str, older_than_s: float) -> int:
        """Remove the files directly in a subfolder that nobody has written to for so long; their bytes."""
        ...

    def check(self) -> None:
        """Raises OutputError unless this store is writable and really refuses the second put of a name."""
        ...


def open_folder(url: str) -> Folder:
    """The folder at an absolute local path or an fsspec URL; made when first written to."""
    return StoreFolder(url) if "://" in url else LocalFolder(url)


def folder_names(url: str) -> list[str]:
    """Names of the subfolders of a place, sorted; [] if it does not exist."""
    if "://" not in url:
        return sorted(entry.name for entry in os.scandir(url) if entry.is_dir()) if os.path.isdir(url) else []
    filesystem, root = _store(url)
    with stopping("list", url), contextlib.suppress(FileNotFoundError):
        return sorted(
            entry["name"].rsplit("/", 1)[-1]
            for entry in filesystem.ls(root, detail=True)
            if entry["type"] == "directory"
        )
    return []


def make_durable(files: Iterable[str | Path], *, may_be_gone: bool = False) -> None:
    """fsync files and then the folders they lie in, so that a power cut keeps both contents and names.

    `may_be_gone`: others may remove some of them meanwhile, and what is gone needs no keeping. Else raises FileNotFoundError.
    """
    folders: set[Path] = set()
    passed = (FileNotFoundError,) if may_be_gone else ()
    for file in files:
        with contextlib.suppress(*passed):
            _sync(Path(file))
        folders.add(Path(file).parent)
    for folder in folders:
        _sync(folder)


def make_folder(path: str | Path) -> None:
    """Make a local folder and its parents, durably."""
    path = Path(path)
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync(path.parent)


class LocalFolder:
    """On a local (or POSIX network) file system: write a temporary file, fsync, link it to its name."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = Path(url)

    def put(self, name: str, data: bytes) -> bytes:
        final = self._root / name
        with stopping("write", final):
            temporary = self._write(data)
            try:
                os.link(temporary, final)
                standing = data
            except FileNotFoundError:
                make_folder(final.parent)
                return self.put(name, data)
            except FileExistsError:
                standing = final.read_bytes()
            finally:
                temporary.unlink()
            # Also by the one who lost: it goes on to act on a name that its winner may not have made durable.
            _sync(final.parent)
        return standing

    def leave(self, name: str, data: bytes) -> None:
        path = self._root / name
        with stopping("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def read(self, name: str) -> bytes | None:
        with stopping("read", self._root / name), contextlib.suppress(FileNotFoundError):
            return (self._root / name).read_bytes()
        return None

    def exists(self, name: str) -> bool:
        return (self._root / name).exists()

    def names(self, under: str = "") -> list[str]:
        with stopping("list", self._root / under), contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(self._root / under) if entry.is_file())
        return []

    @contextlib.contextmanager
    def stream(self, name: str) -> Generator[BinaryIO, None, None]:
        final = self._root / name
        make_folder(final.parent)
        try:
            with open(final, "xb") as file:
                yield file
            make_durable([final])
        except BaseException:
            final.unlink(missing_ok=True)
            raise

    def open(self, name: str) -> BinaryIO:
        return open(self._root / name, "rb")

    def adopt(self, source: Folder, staged: str, name: str) -> bool:
        final = self._root / name
        make_folder(self._root)
        try:
            os.rename(Path(source.url) / staged, final)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise OutputError(
                    f"{self.url} and {source.url} are on different file systems; write to a folder below {self.url}"
                ) from error
            raise
        _sync(final.parent)
        return True

    def clean(self, under: str, older_than_s: float) -> int:
        removed = 0
        for name in self.names(under):
            path = self._root / under / name
            with contextlib.suppress(FileNotFoundError):  # whoever left it has come back for it
                status = path.stat()
                if time.time() - status.st_mtime >= older_than_s:
                    path.unlink()
                    removed += status.st_size
        return removed

    def overwrite(self, name: str, data: bytes) -> None:
        final = self._root / name
        with stopping("write", final):
            make_folder(final.parent)
            os.replace(self._write(data), final)
            _sync(final.parent)

    def delete(self, name: str) -> None:
        path = self._root / name
        if path.is_dir():
            try:
                for entry in path.iterdir():
                    self.delete(f"{name}/{entry.name}")
                path.rmdir()
            except OSError as error:
                # Others remove the same, or write here again.
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise
        else:
            path.unlink(missing_ok=True)

    def check(self) -> None:
        try:
            _check_twice(self)
        except StopJob as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (
                errno.EPERM,
                errno.EOPNOTSUPP,
                errno.ENOSYS,
            ):
                raise OutputError(
                    f"{self.url}: this file system has no hard links, which decide who was first; write to another one"
                ) from error
            raise OutputError(f"cannot write beside the output: {error}") from error

    def _write(self, data: bytes) -> Path:
        # Temporary files have a folder of their own, so that a listing of markers shows markers only.
        temporary = self._root / "tmp" / uuid.uuid4().hex
        make_folder(temporary.parent)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary


class StoreFolder:
    """On an object store, through fsspec, whose mode "create" is a conditional put (`check` asks whether the store obeys)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._store, self._root = _store(url)

    def put(self, name: str, data: bytes) -> bytes:
        attempt = 0
        while True:
            attempt += 1
            with stopping("write", f"{self.url}/{name}"):
                try:
                    self._store.pipe_file(self._path(name), data, mode="create")
                    return data
                except Exception as error:
                    if not is_outside(error):
                        raise
                    # A put that timed out may have been stored all the same, and then refused when the client tried it
                    # again: what stands there decides. If that cannot be read either, the first reason says more.
                    with contextlib.suppress(StopJob):
                        if (standing := self.read(name)) is not None:
                            return standing
                    # S3's word for puts that met, none of which was stored.
                    if "ConditionalRequestConflict" not in str(error) or attempt == PUT_ATTEMPTS:
                        raise
            time.sleep(random.uniform(0, 0.05 * 2**attempt))

    def leave(self, name: str, data: bytes) -> None:
        self.overwrite(name, data)

    def read(self, name: str) -> bytes | None:
        with stopping("read", f"{self.url}/{name}"), contextlib.suppress(FileNotFoundError):
            return self._store.cat_file(self._path(name))
        return None

    def exists(self, name: str) -> bool:
        with stopping("look up", f"{self.url}/{name}"):
            return self._store.exists(self._path(name))

    def names(self, under: str = "") -> list[str]:
        with stopping("list", f"{self.url}/{under}"), contextlib.suppress(FileNotFoundError):
            found = self._store.ls(self._path(under), detail=True)
            # S3's consoles make a folder by an object of its name and a slash: a file without a name.
            return sorted(filter(None, (one["name"].rsplit("/", 1)[-1] for one in found if one["type"] == "file")))
        return []

    @contextlib.contextmanager
    def stream(self, name: str) -> Generator[BinaryIO, None, None]:
        # Held back until it is whole: a store's own file, given up half-way, stores what it has when it is collected.
        with io.BytesIO() as file:
            yield file
            with stopping("write", f"{self.url}/{name}"):
                self._store.pipe_file(self._path(name), file.getvalue())

    def open(self, name: str) -> BinaryIO:
        return self._store.open(self._path(name), "rb")

    def adopt(self, source: Folder, staged: str, name: str) -> bool:
        with stopping("copy to", f"{self.url}/{name}"), contextlib.suppress(FileNotFoundError):
            self._store.cp_file(f"{source.url}/{staged}", self._path(name))
            return True
        return False

    def clean(self, under: str, older_than_s: float) -> int:
        removed = 0
        for name in self.names(under):
            path = self._path(f"{under}/{name}")
            with stopping("clean", f"{self.url}/{under}"), contextlib.suppress(FileNotFoundError):
                size, age = self._store.size(path), time.time() - self._store.modified(path).timestamp()
                if age >= older_than_s:
                    self._store.rm_file(path)
                    removed += size
        return removed

    def overwrite(self, name: str, data: bytes) -> None:
        with stopping("write", f"{self.url}/{name}"):
            self._store.pipe_file(self._path(name), data)

    def delete(self, name: str) -> None:
        with stopping("delete", f"{self.url}/{name}"), contextlib.suppress(FileNotFoundError):
            self._store.rm(self._path(name), recursive=True)

    def check(self) -> None:
        try:
            _check_twice(self)
        except (StopJob, ValueError, NotImplementedError) as error:
            # "Not implemented" is what S3's protocol has for a header that a store does not know.
            if isinstance(error, StopJob) and getattr(error.__cause__, "errno", None) != errno.ENOSYS:
                raise OutputError(f"cannot write beside the output: {error}") from error
            raise OutputError(
                f"cannot put a file only if absent in {self.url}: {error}; use a store with conditional writes"
            ) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")


def _check_twice(folder: Folder) -> None:
    name = f"check/{uuid.uuid4().hex}"
    seen = [folder.put(name, b"first"), folder.put(name, b"second"), folder.read(name)]
    folder.delete(name)
    if seen != [b"first"] * 3:
        raise OutputError(
            f"{folder.url}: this store lets a second write replace the first, so nothing there can be written exactly once"
        )


def _store(url: str):
    # Other processes write here too: a cached listing would hide their markers.
    return open_store(url, OutputError, use_listings_cache=False)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
