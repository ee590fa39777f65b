"""The metrics port: three pages for who reads, nothing for anyone else, whatever they send and however slowly."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from lading.config.errors import UsageError
from lading.schedulers import endpoint
from lading.schedulers.endpoint import ANSWERERS, HEAD_BYTES, Endpoint
from tests.scraping import connected, get


class Claims:
    unhealthy = unready = ""


@pytest.fixture
def claims() -> Claims:
    return Claims()


@pytest.fixture
def served(claims: Claims) -> Iterator[Endpoint]:
    registry = CollectorRegistry()
    Gauge("answer", "Of everything.", registry=registry).set(42)
    one = Endpoint("127.0.0.1", 0, registry, unhealthy=lambda: claims.unhealthy, unready=lambda: claims.unready)
    yield one
    one.close()


def asked(port: int, *words: bytes) -> bytes:
    """All that comes back when these are sent, one after the other."""
    with connected(port) as line:
        for word in words:
            line.sendall(word)
        found = b""
        try:
            while more := line.recv(1 << 16):
                found += more
        except ConnectionResetError:  # it was closed with something unread
            pass
    return found


def status(reply: bytes) -> int:
    return int(reply.split()[1]) if reply else 0


def test_it_serves_what_is_measured(served: Endpoint) -> None:
    """/metrics in Prometheus' text format, whatever the query; HEAD without the body."""
    assert get(served.port, "/metrics")[1].splitlines()[-1] == "answer 42.0"
    assert get(served.port, "/metrics?name[]=x")[0] == 200
    head = asked(served.port, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status(head) == 200
    assert b"text/plain; version=0.0.4" in head
    assert head.endswith(b"\r\n\r\n")
    body = get(served.port, "/metrics")[1]
    assert int(head.partition(b"Content-Length: ")[2].split()[0]) == len(body)


@pytest.mark.parametrize(("path", "claim"), [("/healthz", "unhealthy"), ("/readyz", "unready")])
def test_claims_are_one_line(served: Endpoint, claims: Claims, path: str, claim: str) -> None:
    """200 and ok, or 503 and what is wrong."""
    assert get(served.port, path) == (200, "ok\n")
    setattr(claims, claim, "stuck: a batch has not ended for 180 s")
    assert get(served.port, path) == (503, "stuck: a batch has not ended for 180 s\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"PUT /healthz HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"DELETE /readyz HTTP/1.1\r\n\r\n", 405),
        (b"OPTIONS /metrics HTTP/1.1\r\n\r\n", 405),
        (b"get /metrics HTTP/1.1\r\n\r\n", 405),
        (b"POST /jobs HTTP/1.1\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"GET //metrics HTTP/1.1\r\n\r\n", 404),
        (b"GET /../metrics HTTP/1.1\r\n\r\n", 404),
        (b"GET /%6Detrics HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics\x00 HTTP/1.1\r\n\r\n", 404),
        (b"GET http://elsewhere/metrics HTTP/1.1\r\n\r\n", 404),
        (b"CONNECT elsewhere:443 HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics SPDY/9\r\n\r\n", 400),
        (b"\xff\xfe\x00\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * (2 * HEAD_BYTES) + b"\r\n\r\n", 431),
    ],
)
def test_it_takes_no_work(served: Endpoint, words: bytes, expected: int) -> None:
    """Other methods, paths and forms are refused, a huge head is not read to its end, and the port goes on."""
    assert status(asked(served.port, words)) == expected
    assert get(served.port, "/healthz")[0] == 200


def test_a_body_is_not_read(served: Endpoint) -> None:
    """The answer comes though a gigabyte was announced and never sent."""
    assert status(asked(served.port, b"POST /metrics HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n")) == 405


def test_who_says_nothing_or_little_is_left(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that does not come whole in time ends its connection, also when it comes a letter at a time."""
    monkeypatch.setattr(endpoint, "ASKING_S", 0.5)
    assert asked(served.port) == b""
    with connected(served.port) as line:
        deadline = time.monotonic() + 60
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() < deadline:
                line.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() < deadline
    assert get(served.port, "/healthz")[0] == 200


def test_who_does_not_read_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is not taken is given up, and others are answered meanwhile."""
    monkeypatch.setattr(endpoint, "ANSWERING_S", 1.0)
    registry = CollectorRegistry()
    many = Gauge("many", "Samples.", ["n"], registry=registry)
    for number in range(100_000):  # more than the system keeps for a reader
        many.labels(f"{number:064}").set(1)
    one = Endpoint("127.0.0.1", 0, registry)
    try:
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", one.port))
            line.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            line.recv(1)
            assert get(one.port, "/healthz") == (200, "ok\n")
            for thread in [one for one in threading.enumerate() if "process_request_thread" in one.name]:
                thread.join(60)
                assert not thread.is_alive()
    finally:
        one.close()


def test_only_a_few_are_heard_at_once(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """More connections than there are threads are closed unheard; when the first have gone, there is room again."""
    lines = [socket.create_connection(("127.0.0.1", served.port), timeout=60) for _ in range(ANSWERERS)]
    for line in lines:
        line.sendall(b"GET /healthz")
    deadline = time.monotonic() + 60
    while (reply := asked(served.port, b"GET /healthz HTTP/1.1\r\n\r\n")) and time.monotonic() < deadline:
        time.sleep(0.01)  # the last of them may not have been accepted yet
    assert reply == b""
    for line in lines:
        line.close()
    while not asked(served.port, b"GET /healthz HTTP/1.1\r\n\r\n") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert get(served.port, "/healthz")[0] == 200


def test_a_port_in_use_is_refused_by_name(served: Endpoint) -> None:
    """As is an address that is not this machine's, or none."""
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{served.port} \(Address already in use\): .*--metrics-port"):
        Endpoint("127.0.0.1", served.port, CollectorRegistry())
    for bind, port in (("192.0.2.1", 0), ("metrics.example.org", 0), ("", 0), ("127.0.0.1", 65536)):
        with pytest.raises(UsageError, match=f"metrics cannot be served on {bind}:{port} "):
            Endpoint(bind, port, CollectorRegistry())


def test_it_listens_where_it_is_told_alone(served: Endpoint) -> None:
    """On loopback, another address of the machine gets nothing; IPv6 will do."""
    with socket.socket() as line, pytest.raises(ConnectionRefusedError):
        line.connect(("127.0.0.2", served.port))
    if socket.has_ipv6:
        try:
            six = Endpoint("::1", 0, CollectorRegistry())
        except UsageError:
            pytest.skip("no IPv6 here")
        with socket.create_connection(("::1", six.port), timeout=60) as line:
            line.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
            assert status(line.recv(1 << 16)) == 200
        six.close()
