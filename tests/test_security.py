"""Lines of SECURITY.md that no other test holds: what our code never calls, and what a worker that runs shows to others."""

from __future__ import annotations

import ast
import pickle
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from celery import Celery

from lading.cli import main
from lading.schedulers.connection import Broker
from tests.processes import LADING, Process
from tests.redis_server import RedisServer
from tests.test_imports import MODULES, ROOT

CANARY = "canary-Xq7dV2mK9w"  # a password and a token that must be seen nowhere
UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "pty",
    "telnetlib",
}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "numpy.load", "np.load", "yaml.load",
                "yaml.full_load", "yaml.unsafe_load", "tempfile.mktemp"}  # fmt: skip
ALLOWED = {("config/strict_yaml.py", "yaml.load")}  # with a loader of its own
FROM_HUB = {"from_pretrained", "hf_hub_download", "snapshot_download", "model_info"}
SECURITY = (ROOT / "SECURITY.md").read_text()


# -- what our code never calls


def unsafe(source: str, path: str) -> list[str]:
    """Lines of a module that could run what somebody else wrote."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: {one.name}" for one in node.names if one.name.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.append(f"{node.lineno}: {node.module}")
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {one.arg: one.value for one in node.keywords}
        if called in UNSAFE_CALLS and (path, called) not in ALLOWED:
            found.append(f"{node.lineno}: {called}()")
        if ast.unparse(given.get("shell", ast.Constant(False))) != "False":
            found.append(f"{node.lineno}: a shell")
        if ast.unparse(given.get("trust_remote_code", ast.Constant(False))) != "False":
            found.append(f"{node.lineno}: trust_remote_code")
        # torch's Embedding.from_pretrained takes a tensor, and nothing from a hub.
        hub = called.split(".")[-1] in FROM_HUB and not called.endswith("Embedding.from_pretrained")
        if (
            hub
            and "revision" not in given
            and ast.unparse(given.get("local_files_only", ast.Constant(False))) != "True"
        ):
            found.append(f"{node.lineno}: {called}() of no revision")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_others_wrote(path: Path) -> None:
    """No pickle nor its kin, no eval, no shell, no remote code; what comes from the hub is of a revision or on this disk."""
    assert unsafe(path.read_text(), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from cloudpickle import loads", "import marshal as m", "torch.load(path)", "eval(text)", "yaml.load(text, Loader)",
     "subprocess.run(command, shell=True)", "auto.from_pretrained(folder, revision='x', trust_remote_code=True)",
     "auto.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)", "hf_hub_download(model, name)"],
)  # fmt: skip
def test_the_ban_sees(line: str) -> None:
    """Each of these would be found."""
    assert unsafe(line, "config/some.py")


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_types_in_a_parquet_file_run_nothing(tmp_path: Path, tiny_encoder: Path) -> None:
    """A column whose Arrow extension type would be unpickled is read as what it is stored as."""
    marker = tmp_path / "marker"
    code = pickle.dumps(_Touch(marker))
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": code}
    schema = pa.schema([pa.field("text", pa.string(), metadata=extension)])
    pq.write_table(pa.table({"text": ["a file", "a list"]}, schema=schema), tmp_path / "in.parquet")
    pickle.loads(code).close()
    assert marker.exists()  # the trap works
    marker.unlink()
    words = [
        "encode",
        f"{tmp_path}/in.parquet",
        "--text",
        "text",
        "--model",
        str(tiny_encoder),
        "--to",
        f"parquet://{tmp_path}/out",
    ]
    assert main(words) == 0
    assert pq.read_table(tmp_path / "out").num_rows == 2
    assert not marker.exists()


# -- a worker that runs


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("guarded"), "--requirepass", CANARY)
    yield server
    server.close()


@pytest.fixture(scope="module")
def url(guarded: RedisServer) -> str:
    return guarded.url.replace("//", f"//:{CANARY}@")


@pytest.fixture(scope="module")
def worker(
    guarded: RedisServer, url: str, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """A worker, talkative, whose environment has a password and tokens; it has done a job and answered a bad message."""
    folder = tmp_path_factory.mktemp("worker")
    environment = {"LADING_BROKER_URL": url, "LADING_JOBS": f"{folder}/jobs", "LADING_ROOTS": str(folder),
                   "HF_TOKEN": f"hf_{CANARY}", "AWS_SECRET_ACCESS_KEY": CANARY, "HOME": str(folder)}  # fmt: skip
    process = Process([*LADING, "-v", "worker"], environment, folder / "worker.log")
    pq.write_table(pa.table({"text": ["a file", "a list"]}), folder / "in.parquet")
    queue = Broker.connect(url).queue("lading.cpu.requests")
    queue.send([pickle.dumps(_Touch(folder / "marker")), b'{"task": "os.system"}', b"\xff"])
    submit = [
        "encode",
        f"{folder}/in.parquet",
        "--model",
        str(tiny_encoder),
        "--to",
        f"parquet://{folder}/out",
        "--submit",
    ]
    submitting = Process([*LADING, "-v", *submit], environment, folder / "submit.log")
    assert submitting.wait() == 0, submitting.said()
    process.until(lambda: queue.counts().dead == 3 and list(folder.glob("out.lading/jobs/*/closed.json")))
    yield process
    process.close()


def listening(pid: int) -> set[tuple[str, int]]:
    """(address in hex, port) of every TCP socket that a process listens at."""
    inodes = {match[1] for path in Path(f"/proc/{pid}/fd").iterdir()
              if (match := re.fullmatch(r"socket:\[(\d+)\]", str(path.readlink())))}  # fmt: skip
    found: set[tuple[str, int]] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            local, _, state, *_, inode = line.split()[1:10]
            if state == "0A" and inode in inodes:
                address, port = local.split(":")
                found.add((address, int(port, 16)))
    return found


def test_a_worker_listens_on_loopback_alone(worker: Process) -> None:
    """No port, or that of the metrics, on this machine's own address."""
    loopback = {"0100007F", "00000000000000000000000001000000"}
    found = set().union(*(listening(pid) for pid in [worker.pid, *worker.children()]))
    assert {address for address, _ in found} <= loopback
    assert len(found) <= 1


def test_no_secret_is_told(worker: Process, guarded: RedisServer, url: str) -> None:
    """Passwords and tokens of the environment are in no log, no file beside the output, no dead letter and no metric."""
    folder = worker.log.parent
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"worker.log", "submit.log", "plan.json"} <= {path.name for path in files}
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    with Broker.connect(url).client as client:
        keys: Any = client.keys("*")
        assert keys
        assert [key for key in keys if CANARY.encode() in (client.dump(key) or b"")] == []
    for _, port in set().union(*(listening(pid) for pid in worker.children())):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as served:
            assert CANARY.encode() not in served.read()


def test_what_is_unpickled_elsewhere_is_a_dead_letter_here(worker: Process, url: str) -> None:
    """A pickle, the name of a function and bytes that are nothing: none ran, none ended the worker, all are kept with a reason."""
    assert not (worker.log.parent / "marker").exists()
    letters = Broker.connect(url).queue("lading.cpu.requests").dead()
    assert len(letters) >= 3
    assert all(letter.reason for letter in letters)
    assert worker.running()


def test_nobody_controls_a_worker_from_afar(worker: Process, url: str) -> None:
    """Celery's remote control is off: a ping, and an order to end, are heard by nobody."""
    with Celery("stranger", broker=url, set_as_current=False) as app:
        assert app.control.ping(timeout=2.0) == []
        app.control.shutdown()
    queue = Broker.connect(url).queue("lading.cpu.requests")
    letters = queue.counts().dead
    queue.send([b"later"])
    worker.until(lambda: queue.counts().dead > letters)


def test_the_page_names_tests_that_exist() -> None:
    """Each file and function that SECURITY.md links to is there."""
    named = re.findall(r"\]\((tests/[\w/]+\.py)\)", SECURITY)
    assert len(named) > 15
    assert [path for path in named if not (ROOT / path).exists()] == []
    functions = re.findall(r"`(test_\w+)`", SECURITY)
    text = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name in functions if f"def {name}(" not in text] == []
