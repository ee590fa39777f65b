"""The port on which a process says how it is: /metrics, /healthz, /readyz, for GET and HEAD. It takes no work, reads no body, changes nothing.

A connection is one question and one answer, within seconds, on one of a few threads: who sends slowly, or reads slowly, or comes with
many at once, takes nothing from the process but that.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest

from ..config.errors import UsageError
from ..config.events import tell

log = logging.getLogger(__name__)

HEAD_BYTES = 16 << 10  # of a request's line and headers
ASKING_S = 5.0  # for the whole head of a request to be there
ANSWERING_S = 10.0  # for the whole answer to be taken
ANSWERERS = 8  # connections at once; one more is closed unheard
TEXT = "text/plain; charset=utf-8"

Claim = Callable[[], str]  # "": all is well; else one line that says what is not

_Answer = tuple[HTTPStatus, str, bytes]  # status, content type, body


class Endpoint:
    """Listens from its making on, until `close`."""

    def __init__(
        self, bind: str, port: int, registry: CollectorRegistry, *, unhealthy: Claim = str, unready: Claim = str
    ) -> None:
        """`port`: 0 is any. Raises UsageError where nothing can listen there."""
        pages = {
            "/metrics": lambda: (HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry)),
            "/healthz": lambda: _claim(unhealthy()),
            "/readyz": lambda: _claim(unready()),
        }
        try:
            # An empty address would be all of them, and a port that is too large would come back as another.
            found = socket.getaddrinfo(bind or "no address", None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            family, _, _, _, (host, _, *more) = found[0]
            address = (host, port, *more)
            self._server = _Server(family, address, pages)
        except (OSError, OverflowError) as error:
            why = error.strerror or error if isinstance(error, OSError) else error
            raise UsageError(
                f"metrics cannot be served on {bind}:{port} ({why}): choose another with --metrics-port and --metrics-bind "
                "(LADING_METRICS_PORT, LADING_METRICS_BIND); port 0 serves none"
            ) from error
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="lading-endpoint", daemon=True).start()
        tell(log, "metrics served", bind=bind, port=self.port)

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


def _claim(wrong: str) -> _Answer:
    status = HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK
    return status, TEXT, f"{wrong or 'ok'}\n".encode()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True  # a process that was started again finds its old connections dying
    request_queue_size = 32

    def __init__(self, family: int, address: tuple[Any, ...], pages: dict[str, Callable[[], _Answer]]) -> None:
        self.address_family, self.pages = family, pages
        self._free = threading.Semaphore(ANSWERERS)
        super().__init__(address, _Handler)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # pyright: ignore
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # pyright: ignore
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        if isinstance(sys.exception(), OSError):  # it left, or did not take its answer in time
            tell(log, "scrape ended early", why=sys.exception())
        else:
            tell(log, "scrape raised", sys.exception())


class _Handler(socketserver.BaseRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    request: socket.socket

    def handle(self) -> None:
        head = self._head()
        if head is None:
            return
        method, status, kind, body = self._answer(head)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(["Allow: GET, HEAD"] if status == HTTPStatus.METHOD_NOT_ALLOWED else []),
        ]
        self.request.settimeout(ANSWERING_S)  # of sendall in all, however slowly it is read
        self.request.sendall("\r\n".join([*lines, "", ""]).encode() + (b"" if method == "HEAD" else body))

    def _head(self) -> bytes | None:
        """All up to the empty line; what is too long as far as it was read, None where it did not come in time."""
        head, until = b"", time.monotonic() + ASKING_S
        while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) <= HEAD_BYTES:
            left = until - time.monotonic()
            if left <= 0:
                return None
            self.request.settimeout(left)
            more = self.request.recv(4096)
            if not more:
                return None
            head += more
        return head

    def _answer(self, head: bytes) -> tuple[str, HTTPStatus, str, bytes]:
        line = head.partition(b"\n")[0].decode("latin-1").split()
        method, target = (line[0], line[1]) if len(line) == 3 and line[2].startswith("HTTP/1.") else ("", "")
        page = self.server.pages.get(target.partition("?")[0])
        if len(head) > HEAD_BYTES:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        elif not method:
            status = HTTPStatus.BAD_REQUEST
        elif page is None:
            status = HTTPStatus.NOT_FOUND
        elif method not in ("GET", "HEAD"):
            status = HTTPStatus.METHOD_NOT_ALLOWED
        else:
            return method, *page()
        return method, status, TEXT, f"{status.phrase}\n".encode()
