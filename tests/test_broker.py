"""The way to Redis: URLs, secrets, TLS, and what happens when the server or the network fails."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from lading.config.errors import BrokerError, QueueFull, UsageError
from lading.schedulers import outages
from lading.schedulers.connection import Broker, arguments, for_celery, redact
from lading.schedulers.outages import patiently
from tests.redis_server import RedisServer, executable

LIST = "lading.cpu.requests"
LARGE = 1 << 30


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://user:sesame@host:1/0", "redis://***@host:1/0"),
        ("redis://:ses/ame@host", "redis://***@host"),
        ("redis://:ses#ame@host", "redis://***@host"),
        ("redis://:ses@ame@host", "redis://***@host"),
        ("redis://:ses://ame@host", "redis://***@host"),
        ("rediss://sesame@host?ssl_ca_certs=/ca", "rediss://***@host?ssl_ca_certs=/ca"),
        ("redis://host/0?password=sesame&x=1", "redis://host/0?password=***&x=1"),
        ("user:sesame@host", "***@host"),
        ("redis:/user:sesame@host", "***@host"),
    ],
)
def test_secrets_are_hidden(url: str, told: str) -> None:
    """What may be a user or a password is never shown, however badly the URL is written."""
    assert redact(url) == told


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "must begin with redis:// or rediss://"),
        ("amqp://user:sesame@host", "must begin with redis://"),
        ("redis://:ses/ame@host:1", "in a password, write / as %2F"),
        ("redis://:ses#ame@host:1", "in a password, write / as %2F"),
        ("redis://:ses?ame@host:1", "in a password, write / as %2F"),
        ("redis://user:sesame@host:port", "expected HOST:PORT/DB"),
        ("redis://user:sesame@host:99999", "expected HOST:PORT/DB"),
        ("redis://user:sesame@host/name", "expected HOST:PORT/DB"),
        ("redis://user:sesame@[host", "expected HOST:PORT/DB"),
        ("redis://user:sesame@/0", "expected HOST:PORT/DB"),
        ("redis://user:sesame@host?ssl_ca_certs=/ca", "ssl_ca_certs is for TLS, which begins with rediss://"),
        ("redis://user:sesame@host?retry_on_timeout=1", "unknown parameter 'retry_on_timeout'"),
        ("rediss://user:sesame@host?ssl_ca_cert=/ca", "did you mean 'ssl_ca_certs'"),
        ("rediss://user:sesame@host?ssl_ca_certs=/no/ca", "ssl_ca_certs: no file /no/ca"),
        ("rediss://user:sesame@host?ssl_cert_reqs=none", "ssl_cert_reqs=none would talk to any server unverified"),
        ("rediss://user:sesame@host?ssl_cert_reqs=CERT_OPTIONAL", "unverified"),
        ("rediss://user:sesame@host?ssl_cert_reqs=", "unverified"),
        ("rediss://user:sesame@host?ssl_check_hostname=false", "unknown parameter 'ssl_check_hostname'"),
    ],
)
def test_a_wrong_url_is_refused_without_its_secrets(url: str, told: str) -> None:
    """A URL that names no Redis, or TLS that would not be verified, is refused before any connection, in words that hide passwords."""
    for connect in (Broker.connect, Broker.connect_async):
        with pytest.raises(UsageError) as refused:
            connect(url)
        assert str(refused.value).startswith("LADING_BROKER_URL: ")
        assert told in str(refused.value)
        for secret in ("sesame", "ses", "ame@"):
            assert secret not in str(refused.value)
        assert refused.value.__cause__ is refused.value.__context__ is None


def test_a_url_is_read_whole() -> None:
    """Host, port, database and quoted credentials are taken as written, with the usual port and database if left out."""
    found = arguments("redis://us%40er:pa%2Fss%23@host:7/3")
    assert [found[name] for name in ("host", "port", "db", "username", "password")] == ["host", 7, 3, "us@er", "pa/ss#"]
    found = arguments("rediss://:p@host?ssl_cert_reqs=CERT_REQUIRED")
    assert [found[name] for name in ("port", "db", "ssl_cert_reqs")] == [6379, 0, "required"]


def test_celery_is_told_to_verify() -> None:
    """Celery gets the same URL, with the parameter that its results ask for."""
    assert for_celery("redis://host/0") == "redis://host/0"
    assert for_celery("rediss://host") == "rediss://host?ssl_cert_reqs=required"
    assert for_celery("rediss://host?ssl_cert_reqs=required") == "rediss://host?ssl_cert_reqs=required"
    with pytest.raises(UsageError):
        for_celery("rediss://host?ssl_cert_reqs=none")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_nobody_there(caplog: pytest.LogCaptureFixture) -> None:
    """Where no server answers, the error says where, hides the password and names the setting."""
    caplog.set_level(logging.DEBUG)
    url = f"redis://user:sesame@127.0.0.1:{free_port()}/0"
    broker, other = Broker.connect(url), Broker.connect_async(url)
    queue = broker.queue(LIST)
    calls = [broker.check, lambda: queue.send([b"1"]), lambda: queue.pull(1, 1), lambda: queue.wait(1), queue.counts]
    for call in [*calls, lambda: asyncio.run(other.send(LIST, [b"1"]))]:
        with pytest.raises(
            BrokerError, match=r"cannot reach the broker at redis://\*\*\*@127\.0\.0\.1:\d+/0: .*LADING_BROKER_URL"
        ) as failed:
            call()
        assert "sesame" not in repr(failed.value) + repr(failed.value.__cause__)
    stopping = threading.Event()
    stopping.set()
    assert patiently(broker.check, stopping) is None
    assert "sesame" not in caplog.text + repr(broker) + repr(other) + repr(broker.client) + repr(other.client)
    assert "sesame" not in repr(queue)


def test_a_wrong_password_is_said_and_not_waited_out(own_redis: RedisServer) -> None:
    """An outage passes, a wrong password does not: it is told at once, without the password."""
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("requirepass", "open")
    broker = Broker.connect(f"redis://:sesame@127.0.0.1:{own_redis.port}/0")
    with pytest.raises(BrokerError, match=r"refuses this user.*check user and password in LADING_BROKER_URL") as failed:
        patiently(broker.check, threading.Event())
    assert "sesame" not in str(failed.value)
    with pytest.raises(BrokerError, match="refuses this user"):
        patiently(Broker.connect(own_redis.url).check, threading.Event())


class Listener(logging.Handler):
    """Sets an event when a message comes that contains a word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word, self.heard = word, threading.Event()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        if self.word in self.said[-1]:
            self.heard.set()


@pytest.fixture(autouse=True)
def no_outage_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process remembers that it has told of an outage; the tests begin without one."""
    monkeypatch.setattr(outages, "_outage", outages._Outage())


@pytest.fixture
def outage() -> Iterator[Listener]:
    """Hears when the outage is noticed."""
    listener = Listener("broker away")
    outages._log.addHandler(listener)
    yield listener
    outages._log.removeHandler(listener)


def test_an_outage_is_waited_out(own_redis: RedisServer, outage: Listener) -> None:
    """A call goes on when Redis is back, with what its log holds; the outage is told once, by many threads, and its end once."""
    broker = Broker.connect(own_redis.url)
    broker.client.config_set("appendfsync", "always")
    queue = broker.queue(LIST)
    queue.send([b"1"])
    leases = queue.pull(1, LARGE)
    queue.send([b"2"])
    own_redis.kill()
    found: list[object] = []
    waiters = [
        threading.Thread(target=lambda: found.append(patiently(queue.counts, threading.Event()))) for _ in range(3)
    ]
    for waiter in waiters:
        waiter.start()
    assert outage.heard.wait(60)
    own_redis.start()
    for waiter in waiters:
        waiter.join()
    assert [(one.waiting, one.in_flight) for one in found] == [(1, 1)] * 3
    assert [said.split(":")[0].split(" after")[0] for said in outage.said] == [
        "broker away",
        "broker back",
    ]
    assert queue.ack(leases) == 1  # the scripts are gone with the server, and nobody notices
    assert [lease.raw for lease in queue.pull(9, LARGE)] == [b"2"]


def test_stopping_ends_the_wait(own_redis: RedisServer, outage: Listener) -> None:
    """A worker that is told to stop in an outage does not wait for its end."""
    queue = Broker.connect(own_redis.url).queue(LIST)
    own_redis.kill()
    stopping, found = threading.Event(), []
    waiter = threading.Thread(target=lambda: found.append(patiently(lambda: queue.pull(1, 1), stopping)))
    waiter.start()
    assert outage.heard.wait(60)
    stopping.set()
    waiter.join()
    assert found == [None]
    own_redis.start()
    assert patiently(lambda: queue.pull(1, 1), threading.Event()) == []


def test_a_flushed_redis_goes_on(redis_server: RedisServer) -> None:
    """After FLUSHALL and SCRIPT FLUSH leases are gone, and all else works as before."""
    broker = Broker.connect(redis_server.url)
    queue = broker.queue(LIST)
    queue.send([b"1", b"2"])
    before = queue.pull(1, LARGE)
    broker.client.flushall()
    broker.client.script_flush()
    assert queue.ack(before) == queue.renew(before) == queue.release(before) == 0
    queue.send([b"3"], limit=5)
    [lease] = queue.pull(9, LARGE)
    assert lease.raw == b"3"
    assert queue.restore(0) == 1


class Cut:
    """A way to a server that breaks after the reply to a command has arrived, and before the client gets it."""

    def __init__(self, port: int, command: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._port, self._command = port, command
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            self.connections += 1
            with client, socket.create_connection(("127.0.0.1", self._port)) as server:
                while asked := client.recv(1 << 16):
                    server.sendall(asked)
                    answer = server.recv(1 << 16)
                    if self._command in asked:
                        break
                    client.sendall(answer)


def test_a_lost_reply_loses_nothing(redis_server: RedisServer) -> None:
    """If the connection breaks after a pull was done, it is not done again, and what it took comes back as its lease runs out."""
    queue = Broker.connect(redis_server.url).queue(LIST)
    queue.send([b"1", b"2", b"3"])
    cut = Cut(redis_server.port, b"LTRIM")
    with pytest.raises(BrokerError, match="cannot reach"):
        Broker.connect(cut.url).queue(LIST).pull(2, LARGE)
    assert cut.connections == 1
    assert (queue.counts().waiting, queue.counts().in_flight) == (1, 2)
    assert queue.restore(0) == 2
    assert [lease.raw for lease in queue.pull(9, LARGE)] == [b"1", b"2", b"3"]


def test_a_full_redis_can_be_emptied(own_redis: RedisServer) -> None:
    """Without memory Redis takes no message more, and every step that leads to a message's end still works."""
    broker = Broker.connect(own_redis.url)
    queue = broker.queue(LIST)
    queue.send([b"1", b"2", b"3", b"4"])
    broker.client.config_set("maxmemory", 1)
    for limit in (0, 100):
        with pytest.raises(QueueFull, match="has no memory left"):
            queue.send([b"5"], limit=limit)
    assert queue.wait(1)
    leases = queue.pull(3, LARGE)
    assert [lease.raw for lease in leases] == [b"1", b"2", b"3"]
    assert queue.renew(leases) == 3
    assert queue.restore(0) == 3
    first, second, third = queue.pull(3, LARGE)
    assert queue.begin_alone(first) == 1
    assert queue.release([first]) == 1
    assert queue.bury(second, "why")
    assert queue.ack([third]) == 1
    broker.alive("cpu", "w")
    assert broker.workers("cpu") == 1
    assert queue.ack(queue.pull(9, LARGE)) == 2
    assert not queue.wait(0.01)


def test_an_error_in_the_middle_loses_nothing(redis_server: RedisServer) -> None:
    """Where another program's key is in the way, a step fails and the messages stay where they were."""
    broker = Broker.connect(redis_server.url)
    queue = broker.queue(LIST)
    queue.send([b"1", b"2"])
    broker.client.set(f"unacked:{LIST}", "theirs")
    with pytest.raises(BrokerError, match=r"refuses: .*WRONGTYPE"):
        queue.pull(2, LARGE)
    broker.client.delete(f"unacked:{LIST}")
    leases = queue.pull(2, LARGE)
    assert [lease.raw for lease in leases] == [b"1", b"2"]
    broker.client.set(LIST, "theirs")
    for give_back in (lambda: queue.release(leases), lambda: queue.restore(0)):
        with pytest.raises(BrokerError, match=r"refuses: .*WRONGTYPE"):
            give_back()
    broker.client.delete(LIST)
    assert queue.restore(0) == 2
    [lease, _] = queue.pull(2, LARGE)
    broker.client.set(f"dead:{LIST}", "theirs")
    with pytest.raises(BrokerError, match=r"refuses: .*WRONGTYPE"):
        queue.bury(lease, "why")
    assert queue.renew([lease]) == 1


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA of our own, a server's certificate for localhost from it, and another CA."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}")  # fmt: skip
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-out", "server.crt", "-extfile", "names")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tls_port(authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis that talks TLS. A server built without it: skipped."""
    binary = executable()
    if binary is None:
        pytest.skip("no redis-server")
    probe = subprocess.run([binary, "--tls-port", "x", "--port", "0"], capture_output=True, check=False, text=True)
    if "Bad directive" in probe.stdout + probe.stderr:
        pytest.skip("this redis-server was built without TLS")
    port = free_port()
    words = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(authority / "ca.crt")]
    words += ["--tls-cert-file", str(authority / "server.crt"), "--tls-key-file", str(authority / "server.key")]
    server = RedisServer(tmp_path_factory.mktemp("tls-redis"), *words)
    yield port
    server.close()


def test_tls_is_verified(authority: Path, tls_port: int) -> None:
    """A server with a certificate of the named CA is taken; under another CA, the public ones, or another name it is refused."""
    where = f"user:sesame@localhost:{tls_port}/0"
    good = f"rediss://localhost:{tls_port}/0?ssl_ca_certs={authority}/ca.crt"
    queue = Broker.connect(good).queue(LIST)
    queue.send([b"1"])
    assert queue.ack(queue.pull(1, 1)) == 1
    asyncio.run(Broker.connect_async(good + "&ssl_cert_reqs=required").send(LIST, [b"2"]))
    assert queue.ack(queue.pull(1, 1)) == 1
    for url in (f"rediss://{where}", f"rediss://{where}?ssl_ca_certs={authority}/other.crt"):
        with pytest.raises(BrokerError, match=r"cannot be verified: .*name its CA with \?ssl_ca_certs=FILE") as refused:
            Broker.connect(url).check()
        assert "sesame" not in str(refused.value)
    with pytest.raises(BrokerError, match="cannot be verified"):
        Broker.connect(good.replace("localhost", "127.0.0.1")).check()
