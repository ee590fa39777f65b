"""The images are built, and do real work as their user on a root that cannot be written to. Minutes: `make check-images`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.redis_server import RedisServer

from .machine_images import Images

pytestmark = pytest.mark.images

UID = 10001
MODEL = "/data/model"
TEXTS = '{"id": "a", "body": "a file is opened"}\n{"id": "b", "body": "a list is sorted"}\n{"id": "c", "body": "a key is missing"}\n'
ENCODE = [
    "encode",
    "/data/texts.jsonl",
    "--text",
    "body",
    "--id",
    "id",
    "--model",
    MODEL,
    "--to",
    "parquet:///data/vectors",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    one = Images(tmp_path_factory.mktemp("images"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def producer(images: Images) -> str:
    return images.build("producer")


@pytest.fixture(scope="module")
def worker(images: Images) -> str:
    return images.build("worker-cpu", TORCH_CPU_INDEX=os.environ.get("TORCH_CPU_INDEX", ""))


@pytest.fixture
def place(tmp_path: Path, minilm: Path) -> list[tuple[Path, str, str]]:
    """The volumes of a container, its user's own, and a model that it may read only."""
    mounts = []
    for name, there in (("data", "/data"), ("jobs", "/var/lib/lading"), ("models", "/var/cache/lading")):
        (tmp_path / name).mkdir()
        mounts.append((tmp_path / name, there, "rw"))
    (tmp_path / "data/model").mkdir()
    (tmp_path / "data/texts.jsonl").write_text(TEXTS)
    for path in tmp_path.rglob("*"):
        os.chown(path, UID, UID)
    return [*mounts, (minilm, MODEL, "ro")]


class Container:
    """One image's tree, and commands in it."""

    def __init__(self, images: Images, image: str, mounts: list[tuple[Path, str, str]]) -> None:
        self.images, self.image, self.mounts = images, image, mounts
        self.root = images.root(image)

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        return self.images.start(self.image, self.root, words, self.mounts, **more)

    def run(self, *words: str, **more: Any) -> str:
        """Its output; it must succeed."""
        process = self.start(*words, **more)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said

    def python(self, code: str, **more: Any) -> str:
        return self.run("-c", code, entrypoint=["/opt/lading/bin/python", "-P"], **more)

    def size(self) -> int:
        """Bytes of its files."""
        return int(
            subprocess.run(["du", "-sxb", self.root], capture_output=True, text=True, check=True).stdout.split()[0]
        )


@pytest.mark.parametrize("target", ["producer", "worker"])
def test_it_runs_as_its_user_on_a_read_only_root(
    images: Images, place: list[tuple[Path, str, str]], request: pytest.FixtureRequest, target: str
) -> None:
    """Its uid and gid, no other group, no capability, no way to more; nothing is writable but volumes and /tmp; no pip, no compiler."""
    image = request.getfixturevalue(target)
    container = Container(images, image, place)
    assert container.run("--version").startswith("lading")
    status = container.python(
        "import os; print(os.getuid(), os.getgid(), os.getgroups()); print(open('/proc/self/status').read())"
    )
    assert status.startswith(f"{UID} {UID} [")
    for line in ("CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"):
        assert line in status
    assert {int(one) for one in status.splitlines()[0].partition("[")[2].rstrip("]").split(",") if one} <= {UID}
    tried = """
import os
for place in ("/", "/opt/lading", "/etc", "/usr", "/run", "/var/tmp", "/data", "/var/lib/lading", "/var/cache/lading", "/tmp", os.environ["HOME"]):
    try:
        open(f"{place}/probe", "w").close()
        print(place)
    except OSError as error:
        assert error.strerror == "Read-only file system", (place, error)
"""
    assert container.python(tried).split() == [
        "/data",
        "/var/lib/lading",
        "/var/cache/lading",
        "/tmp",
        "/var/lib/lading",
    ]
    for tool in ("gcc", "cc", "pip*", "curl", "wget"):
        for folder in ("usr/bin", "usr/local/bin", "opt/lading/bin"):
            assert list((container.root / folder).glob(tool)) == []
    for top in ("usr", "opt"):  # neither pip nor the wheel that another is made of
        assert [*(container.root / top).rglob("pip/__main__.py"), *(container.root / top).rglob("pip-*.whl")] == []
    labels = images.config(image)["Labels"]
    assert labels["org.opencontainers.image.title"] in ("lading-producer", "lading-worker-cpu")
    packages = (container.root / "opt/lading/packages.txt").read_text()
    assert ("\ntorch==" in packages) == (target == "worker")
    print(f"{image}: {container.size():,} bytes, {len(packages.splitlines())} packages")


def test_a_worker_encodes(images: Images, worker: str, place: list[tuple[Path, str, str]]) -> None:
    """A job of three rows with MiniLM, by the compiled kernel where the CPU has what it needs; the vectors lie in the volume."""
    container = Container(images, worker, place)
    said = container.run("-v", *ENCODE)
    assert "without a C compiler" not in said
    found = pq.read_table(place[0][0] / "vectors")
    assert (found.num_rows, len(found["vector"][0])) == (3, 384)
    assert {path.stat().st_uid for path in place[0][0].rglob("vectors/*")} == {UID}
    print([line for line in said.splitlines() if "attention" in line])


def test_a_producer_submits_and_a_worker_works(
    images: Images, producer: str, worker: str, place: list[tuple[Path, str, str]], own_redis: RedisServer
) -> None:
    """The producer, without torch, submits; a worker's container does it, is healthy by its own check, and ends well when told to."""
    at = {"LADING_BROKER_URL": own_redis.url, "LADING_METRICS_PORT": "19464"}
    sender = Container(images, producer, place)
    assert "no torch" in sender.python("try:\n import torch\nexcept ModuleNotFoundError:\n print('no torch')")
    assert "submitted: job" in sender.run(*ENCODE, "--submit", environment=at)
    runner = Container(images, worker, place)
    running = runner.start(*images.config(worker)["Cmd"], environment=at)
    try:
        assert "3 of 3 rows" in sender.run("watch", "/data/vectors", environment=at)
        kind, *check = images.config(worker)["Healthcheck"]["Test"]
        assert kind == "CMD"
        deadline = time.monotonic() + 60
        while (asked := sender.start(entrypoint=check, environment=at)).wait() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert asked.returncode == 0, asked.communicate()[0]
    finally:
        # unshare passes no signal on: the supervisor inside is what an orchestrator would tell.
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGTERM)
        said, _ = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert pq.read_table(place[0][0] / "vectors").num_rows == 3
