"""docs/redis.md, typed: users, certificates and a TLS server made by its commands, and every part of Lading at work through them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
import redis
import yaml

from lading.config.errors import BrokerError
from lading.schedulers import results
from lading.schedulers.connection import Broker
from lading.schedulers.messages import ShardPointer, shard_message
from tests.queued import job_spec
from tests.test_docs import FENCE

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/redis.md").read_text()
USERS = {path.stem for path in (ROOT / "deploy/redis").glob("*.acl")} | {"admin"}
SHARDS, REQUESTS = "lading.cpu.shards", "lading.cpu.requests"


class Typed:
    """A folder in which the document's commands were typed; `server` is what the last one started."""

    def __init__(self, folder: Path) -> None:
        for tool in ("openssl", "redis-server"):
            assert shutil.which(tool), f"no {tool}: apt install openssl redis-server"
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        shutil.copytree(ROOT / "deploy/redis", folder / "deploy/redis")
        for file in ("redis.conf", "tls.conf"):
            path = folder / "deploy/redis" / file
            path.write_text(self.here(path.read_text()))
        self.lines = [line[2:] for language, block in FENCE.findall(DOCUMENT) if language == "console"
                      for line in block.splitlines() if line.startswith("$ ")]  # fmt: skip
        for line in self.lines[:-1]:
            subprocess.run(shlex.split(self.here(line)), cwd=folder, check=True, capture_output=True)
        assert self.lines[-1].startswith("redis-server")
        self.start()

    def here(self, text: str) -> str:
        """Its places in this folder, and a server on a free port of this machine."""
        text = (
            text.replace("queue.example", "localhost")
            .replace("6379", str(self.port))
            .replace("python3", sys.executable)
        )
        return text.replace("/run/tls", f"{self.folder}/tls").replace("dir /data", f"dir {self.folder}")

    def start(self) -> None:
        with open(self.folder / "redis.log", "ab") as log:
            self.server = subprocess.Popen(shlex.split(self.lines[-1]), cwd=self.folder, stdout=log, stderr=log)
        while True:
            assert self.server.poll() is None, (self.folder / "redis.log").read_text()
            try:
                Broker.connect(self.url("admin")).client.dbsize()
                return
            except (redis.ConnectionError, redis.BusyLoadingError):
                time.sleep(0.02)

    def url(self, user: str) -> str:
        """As a process of that user reads it from its settings."""
        return yaml.safe_load((self.folder / f"secrets/{user}.yaml").read_text())["broker_url"]

    def environment(self, user: str) -> dict[str, str]:
        """Of a process of that user: its settings, mounted as the image has them, and a registry of jobs that all see."""
        config = self.folder / "config" / user
        config.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.folder / f"secrets/{user}.yaml", config / "settings.yaml")
        places = {"LADING_CONFIG_DIR": str(config), "LADING_JOBS": str(self.folder / "jobs")}
        return {name: value for name, value in os.environ.items() if not name.startswith("LADING_")} | places

    def run(self, user: str, *words: str) -> str:
        command = [sys.executable, "-P", "-m", "lading.cli", *words]
        done = subprocess.run(command, env=self.environment(user), cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    one = Typed(tmp_path_factory.mktemp("redis"))
    yield one
    one.server.kill()
    one.server.wait()


@pytest.fixture
def typed(started: Typed) -> Typed:
    """The same, emptied."""
    Broker.connect(started.url("admin")).client.flushall()
    return started


def test_what_passwords_py_makes(typed: Typed) -> None:
    """A password and settings for each user; users.acl holds hashes alone, and nobody else may look into the folder."""
    folder = typed.folder / "secrets"
    assert folder.stat().st_mode & 0o077 == 0
    assert {path.stem for path in folder.glob("*.yaml")} == USERS
    acl = (folder / "users.acl").read_text()
    assert acl.startswith("user default off ")
    for user in USERS:
        password = (folder / f"{user}.password").read_text()
        assert password in typed.url(user)
        assert password not in acl
        assert len(password) >= 43


def test_it_keeps_passwords_that_are_there(tmp_path: Path) -> None:
    """Run again it changes nothing; a password that was removed is made anew; a URL with a user in it is refused."""
    script = [sys.executable, str(ROOT / "deploy/redis/passwords.py"), str(tmp_path / "secrets")]

    def made() -> dict[str, str]:
        subprocess.run(script, check=True, capture_output=True)
        return {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}

    first = made()
    assert made() == first
    (tmp_path / "secrets/worker.password").unlink()
    again = made()
    assert {name for name in first if first[name] != again[name]} == {"worker.password", "worker.yaml", "users.acl"}
    refused = subprocess.run([*script, "--url", "redis://me:secret@queue:6379"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "without user and password" in refused.stderr


def test_only_verified_tls_with_a_password_comes_in(typed: Typed, tmp_path: Path) -> None:
    """No plain connection, no default user, no other CA, no other name, and no wrong password."""
    with redis.Redis(port=typed.port) as plain, pytest.raises(redis.ConnectionError):
        plain.ping()
    good = typed.url("worker")
    Broker.connect(good).check()
    other = tmp_path / "tls"
    other.mkdir()
    subprocess.run(shlex.split(typed.here(typed.lines[2])), cwd=tmp_path, check=True, capture_output=True)
    password = (typed.folder / "secrets/worker.password").read_text()
    wrong = {
        "another CA": good.replace(str(typed.folder / "tls"), str(other)),
        "another name": good.replace("@localhost", "@127.0.0.1"),
        "no user": re.sub("worker:[^@]+@", "", good),
        "a wrong password": good.replace(password, password[::-1]),
    }
    for what, url in wrong.items():
        broker = Broker.connect(url)
        with pytest.raises(BrokerError) as refused:
            broker.check()
        assert password not in str(refused.value), what


def test_a_new_certificate_needs_no_restart(typed: Typed) -> None:
    """Made by the same command over the old one, it is served once CONFIG SET names its path again, and is trusted."""
    before = ssl.get_server_certificate(("127.0.0.1", typed.port))
    subprocess.run(shlex.split(typed.here(typed.lines[3])), cwd=typed.folder, check=True, capture_output=True)
    assert ssl.get_server_certificate(("127.0.0.1", typed.port)) == before
    Broker.connect(typed.url("admin")).client.config_set("tls-cert-file", f"{typed.folder}/tls/redis.crt")
    assert ssl.get_server_certificate(("127.0.0.1", typed.port)) != before
    Broker.connect(typed.url("worker")).check()


def test_every_role_does_its_part(typed: Typed) -> None:
    """The producer sends, the worker takes, answers and acknowledges, the scheduler counts, the autoscaler counts, over TLS."""
    roles = {user: Broker.connect(typed.url(user)) for user in USERS}
    roles["producer"].queue(REQUESTS).send([b"1", b"2"], limit=10)
    roles["scheduler"].queue(SHARDS).send([shard_message(ShardPointer("j", 0, 0, "0" * 16), now=time.time())])
    taken = roles["worker"].queue(REQUESTS).pull(2, 1 << 20)
    assert [lease.raw for lease in taken] == [b"1", b"2"]
    assert roles["autoscaler"].client.hlen(f"unacked:{REQUESTS}") == 2
    results.store(roles["worker"].client, [("id", {"version": 1})], 60, now=time.time())
    assert roles["worker"].queue(REQUESTS).ack(taken) == 2
    stored = roles["producer"].client.get(results.key("id"))
    assert isinstance(stored, bytes)
    assert json.loads(stored)["status"] == "SUCCESS"
    assert roles["scheduler"].queue(SHARDS).counts().waiting == 1
    assert roles["autoscaler"].client.llen(SHARDS) == 1
    for user in USERS - {"admin"}:
        with pytest.raises(redis.exceptions.NoPermissionError):
            roles[user].client.flushall()
    told = roles["admin"].client.config_get("maxmemory-policy", "appendonly", "appendfsync", "tls-port", "port")
    assert told == {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec",
                    "tls-port": str(typed.port), "port": "0"}  # fmt: skip


def test_the_health_check_of_the_composition(typed: Typed, tmp_path: Path) -> None:
    """deploy/compose.yaml's question to Redis is answered to who knows the autoscaler's password; an error is no answer."""
    service = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["redis"]
    kind, command = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    client = f"redis-cli --tls --cacert {typed.folder}/tls/ca.crt -p {typed.port}"
    command = command.replace("$$", "$").replace("redis-cli", client)
    (tmp_path / "autoscaler.password").write_text("wrong")
    for folder, well in ((typed.folder / "secrets", True), (tmp_path, False)):
        asked = subprocess.run(
            ["sh", "-c", command.replace("/run/secrets", str(folder))], capture_output=True, text=True
        )
        assert (asked.returncode == 0, "PONG" in asked.stdout) == (well, well), asked


def test_a_crash_keeps_what_the_log_has(typed: Typed) -> None:
    """kill -9 once the log has it, and a start from the log: what waited and what was leased is there."""
    broker = Broker.connect(typed.url("worker"))
    broker.queue(SHARDS).send([b"1", b"2", b"3"])
    assert len(broker.queue(SHARDS).pull(1, 1 << 20)) == 1
    while Broker.connect(typed.url("admin")).client.info("persistence")["aof_buffer_length"]:
        time.sleep(0.05)
    typed.server.send_signal(signal.SIGKILL)
    typed.server.wait()
    typed.start()
    counts = Broker.connect(typed.url("scheduler")).queue(SHARDS).counts()
    assert (counts.waiting, counts.in_flight) == (2, 1)


def test_a_job_is_done_through_it(typed: Typed, tiny_encoder: Path) -> None:
    """The scheduler's user submits a job and sweeps, a real worker process does it, Celery's half of it over TLS too."""
    spec = job_spec(typed.folder, tiny_encoder, "a", 3)
    output = f"{typed.folder}/out/a"
    words = [
        "encode",
        str(spec.source.paths[0]),
        "--model",
        str(tiny_encoder),
        "--to",
        f"parquet://{output}",
        "--submit",
    ]
    typed.run("scheduler", *words, "--json")
    command = [sys.executable, "-P", "-m", "lading.cli", "worker"]
    with open(typed.folder / "worker.log", "wb") as log:
        environment = typed.environment("worker")
        worker = subprocess.Popen(command, env=environment, cwd=typed.folder, stdout=log, stderr=log)
    try:
        told = json.loads(typed.run("scheduler", "watch", output, "--json"))
        assert told["rows_out"] == 6
    finally:
        worker.send_signal(signal.SIGTERM)
        code = worker.wait(120)
    log_text = (typed.folder / "worker.log").read_text()
    assert code == 0, log_text
    assert pq.read_table(output).num_rows == 6
    assert (typed.folder / "secrets/worker.password").read_text() not in log_text


def rows(heading: str) -> dict[str, int]:
    """The table of bytes below a heading of the document."""
    section = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return {
        name: int(size.replace(",", ""))
        for name, size in re.findall(r"^\| (.+?) \| ([\d,]+) \|$", section, re.MULTILINE)
    }


def test_the_sizes_are_measured(own_redis: ModuleType) -> None:
    """What the table says of bytes is what MEMORY USAGE says of real messages, within a tenth."""
    from benchmarks.footprint import in_redis

    said = rows("How much memory")
    found = in_redis(Broker.connect(own_redis.url))
    assert said == {name: pytest.approx(size, rel=0.1) for name, size in found.items()}
