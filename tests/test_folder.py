"""The job folder's files: put once, durable, on a disk or an object store."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem

from lading.config.errors import OutputError, StopJob
from lading.pipelines.folder import Folder, folder_names, make_durable, open_folder


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "s3":
        return open_folder(f"{request.getfixturevalue('s3')}/job")
    return open_folder(str(tmp_path / "job") if request.param == "local" else f"memory://{uuid.uuid4().hex}/job")


def test_the_first_put_stands(folder: Folder) -> None:
    """Whoever puts second is told what stands, and changes nothing."""
    assert folder.put("markers/0.json", b"first") == b"first"
    assert folder.put("markers/0.json", b"second") == b"first"
    assert folder.read("markers/0.json") == b"first"


def test_names_lists_only_finished_files_of_one_subfolder(folder: Folder) -> None:
    """A listing of markers shows no temporary file, no other folder's file and no subfolder."""
    assert folder.names("markers") == []
    folder.put("markers/1.json", b"1")
    folder.put("markers/deep/2.json", b"2")
    folder.put("plan.json", b"3")
    assert folder.names("markers") == ["1.json"]
    assert folder.names() == ["plan.json"]


def test_what_is_not_there_reads_as_none(folder: Folder) -> None:
    """Asking is not an error."""
    assert folder.read("plan.json") is None
    assert not folder.exists("plan.json")
    folder.delete("plan.json")


def test_overwrite_and_delete(folder: Folder) -> None:
    """A report may be replaced, and a subfolder goes with everything in it."""
    folder.overwrite("report.json", b"old")
    folder.overwrite("report.json", b"new")
    assert folder.read("report.json") == b"new"
    folder.put("staging/a/b", b"1")
    folder.delete("staging")
    assert not folder.exists("staging/a/b")


def test_cleaning_spares_what_is_young(folder: Folder) -> None:
    """Only files that nobody has touched for the time given are removed."""
    folder.put("staging/a", b"1234")
    assert folder.clean("staging", 3600) == 0
    assert folder.exists("staging/a")
    assert folder.clean("staging", 0) == 4
    assert folder.names("staging") == []


def _write_half(folder: Folder) -> None:
    with folder.stream("staging/bad") as file:
        file.write(b"half")
        raise RuntimeError("no more")


def test_a_stream_that_fails_leaves_no_file(folder: Folder) -> None:
    """A file is there whole or not at all."""
    with folder.stream("staging/good") as file:
        file.write(b"whole")
    with pytest.raises(RuntimeError, match="no more"):
        _write_half(folder)
    assert folder.names("staging") == ["good"]
    with folder.open("staging/good") as file:
        assert file.read() == b"whole"


def test_adopting_is_done_once(folder: Folder) -> None:
    """A staged file moves under its new name; once its source is gone there is nothing to adopt."""
    data = open_folder(folder.url + "-data")
    folder.put("staging/x", b"rows")
    assert data.adopt(folder, "staging/x", "part")
    folder.delete("staging/x")
    assert data.read("part") == b"rows"
    assert not data.adopt(folder, "staging/x", "part")


def test_job_names_are_the_subfolders(folder: Folder) -> None:
    """The jobs of an output are the folders in its `jobs`; an output without any has none."""
    assert folder_names(folder.url) == []
    folder.put("job-a/plan.json", b"{}")
    folder.put("job-b/plan.json", b"{}")
    assert [name for name in folder_names(folder.url) if name != "tmp"] == ["job-a", "job-b"]


def test_check_passes_a_store_that_refuses_the_second_put(folder: Folder) -> None:
    """The check leaves nothing behind that counts."""
    folder.check()
    assert folder.names("check") == []


class ForgetfulFileSystem(MemoryFileSystem):
    """A store without conditional writes: mode "xb" is taken for "wb"."""

    protocol = "forgetful"
    store: dict = {}  # noqa: RUF012  the parent's is shared, too
    pseudo_dirs = [""]  # noqa: RUF012

    def _open(self, path: str, mode: str = "rb", **kwargs):
        return super()._open(path, mode.replace("x", "w"), **kwargs)


class LostAnswerFileSystem(MemoryFileSystem):
    """A store that does what it is told and then says that it could not be reached."""

    protocol = "lost-answer"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs):
        super().pipe_file(path, value, mode, **kwargs)
        raise TimeoutError("no answer")


fsspec.register_implementation("forgetful", ForgetfulFileSystem, clobber=True)
fsspec.register_implementation("lost-answer", LostAnswerFileSystem, clobber=True)


@pytest.mark.parametrize("url", ["forgetful://bucket/job", "s3://forgetful/job"])
def test_check_refuses_a_store_that_lets_the_second_put_through(url: str, s3: str) -> None:
    """A store on which nothing can be written exactly once is refused before the job begins."""
    with pytest.raises(OutputError, match="second write"):
        open_folder(url).check()


@pytest.mark.parametrize("url", ["lost-answer://bucket/job", "s3://lost-answer/job"])
def test_a_put_whose_answer_was_lost_may_have_been_ours(url: str, s3: str) -> None:
    """What stands there decides, not what the store said: S3's client tries again, and is refused by its own first put."""
    assert open_folder(url).put("marker", b"mine") == b"mine"


def test_puts_that_met_are_tried_again(s3: str) -> None:
    """S3 may refuse two puts that meet, neither of which it stored; that is no failure."""
    assert open_folder("s3://contended/job").put("marker", b"mine") == b"mine"


def test_a_folder_that_a_console_made_is_empty(s3: str) -> None:
    """S3's consoles show a folder by an empty object of its name; it is no file in it."""
    folder = open_folder(s3)
    fsspec.filesystem("s3").pipe_file(f"{s3}/markers/", b"")
    assert folder.names("markers") == []
    folder.put("markers/1.json", b"1")
    assert folder.names("markers") == ["1.json"]
    assert folder_names(s3) == ["markers"]
    folder.delete("markers")
    assert not folder.exists("markers")


BROKEN = {
    "no such bucket": ("s3://nowhere/job", {}, "bucket does not exist"),
    "wrong key": ("s3://docs/job", {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, "signature"),
    "unknown key": ("s3://docs/job", {"AWS_ACCESS_KEY_ID": "AKIARZPUZDIKUNKNOWN0"}, "Access Key Id"),
    "no key": ("s3://docs/job", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Unable to locate credentials"),
    "nobody there": ("s3://docs/job", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect to the endpoint"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_store_that_fails_is_said_in_words(case: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a store's client raises, the job is told where and why, without a secret."""
    url, environment, words = BROKEN[case]
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY", "none")
    S3FileSystem.clear_instance_cache()  # or it would go on with the keys it was made with
    try:
        folder = open_folder(url)
        with pytest.raises(OutputError, match=f"{folder.url}.*{words}") as caught:
            folder.check()
        assert secret not in str(caught.value)
        for act in (lambda: folder.overwrite("a", b"1"), lambda: folder.put("a", b"1")):
            with pytest.raises(StopJob, match=f"could not write {folder.url}/a: .*{words}.*run the same command again"):
                act()
    finally:
        S3FileSystem.clear_instance_cache()


def test_of_racers_one_wins_each_name(folder: Folder) -> None:
    """Four writers, twenty names: each name has exactly one winner, and its bytes stand."""
    if folder.url.startswith("memory"):
        return  # fsspec's memory store knows no concurrent writers
    barrier = threading.Barrier(4)

    def put_all(value: bytes) -> list[bool]:
        barrier.wait()
        return [folder.put(f"markers/{number}", value) == value for number in range(20)]

    values = [b"a", b"b", b"c", b"d"]
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(put_all, values))
    for number, winners in enumerate(zip(*won, strict=True)):
        assert sum(winners) == 1
        assert folder.read(f"markers/{number}") == values[winners.index(True)]


def test_a_full_disk_stops_the_job_and_leaves_no_half_file(tmp_path: Path) -> None:
    """No space is said, with the place and what to do; nothing is left under the name."""
    folder = open_folder(str(tmp_path / "job"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StopJob, match=r"markers/0\.json.*free space and run the same command again"):
            folder.put("markers/0.json", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not folder.exists("markers/0.json")
    assert os.listdir(tmp_path / "job" / "tmp") == []


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    """A file where the folder should be is an output error, before any work."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write") as caught:
        open_folder(str(tmp_path / "file" / "job")).check()
    assert isinstance(caught.value.__cause__, StopJob)
    assert caught.value.__cause__.__cause__.errno in (errno.ENOTDIR, errno.EEXIST)


def test_what_others_removed_needs_no_keeping(tmp_path: Path) -> None:
    """A file that is gone when it is to be synced is an error, unless its owner may take it back at any moment."""
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    kept.write_bytes(b"1")
    with pytest.raises(FileNotFoundError):
        make_durable([kept, gone])
    make_durable([kept, gone], may_be_gone=True)
