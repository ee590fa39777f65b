"""An S3 server for tests on a free port of 127.0.0.1: moto in a process of its own, which checks every signature.

Run as a script it prints how to reach it, then serves until its standard input ends. Its buckets:

* `docs`         does what S3 does
* `forgetful`    ignores If-None-Match, as S3 did until 2024 and other stores still do
* `contended`    answers the first conditional put of each name with 409, having written nothing
* `lost-answer`  does each conditional put, and answers the first one of each name with 500
"""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BUCKETS = ("docs", "forgetful", "contended", "lost-answer")
REGION = "eu-central-1"
ACCOUNT = "123456789012"  # moto's own
POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


class Server:
    """The process, seen from a test. `environment` is all that a client needs, in the variables that clients share."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said, "the S3 server did not start: what it said is above"
        self.environment: dict[str, str] = json.loads(said)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


# -- in the process


class _Application:
    """moto's, with conditional puts that are atomic: alone it looks first and writes later, so that two racers may win."""

    def __init__(self, moto: Any, forget: Callable[[str], None]) -> None:
        self._moto = moto
        self._forget = forget  # the header itself is signed, and must stay
        self._lock = threading.Lock()
        self._seen: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("HTTP_IF_NONE_MATCH") != "*":
            return self._moto(environ, start_response)
        # Before the lock is taken: a client may be frozen while it sends.
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        path: str = environ["PATH_INFO"]
        with self._lock:
            first = path not in self._seen
            self._seen.add(path)
            if first and path.startswith("/contended/"):
                return _refuse(start_response, "409 Conflict", "ConditionalRequestConflict")
            if path.startswith("/forgetful/"):
                self._forget(path)
            if first and path.startswith("/lost-answer/"):
                list(self._moto(environ, lambda *_: None))
                return _refuse(start_response, "500 Internal Server Error", "InternalError")
            return list(self._moto(environ, start_response))


def _refuse(start_response: Any, status: str, code: str) -> list[bytes]:
    body = f"<Error><Code>{code}</Code><Message>as the bucket's name says</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _serve() -> None:
    from moto import settings
    from moto.iam.models import iam_backends
    from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    s3 = s3_backends[ACCOUNT]["aws"]
    for bucket in BUCKETS:
        s3.create_bucket(bucket, REGION)
    iam = iam_backends[ACCOUNT]["aws"]
    iam.create_user(REGION, "lading")
    iam.put_user_policy("lading", "s3", json.dumps(POLICY))
    key = iam.create_access_key("lading")
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0  # from here on, who signs wrongly is refused
    logging.getLogger("werkzeug").setLevel(os.environ.get("S3_SERVER_LOG", "WARNING"))
    application = _Application(
        create_backend_app("s3"),
        forget=lambda path: s3.delete_object("forgetful", path.removeprefix("/forgetful/")),
    )
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": key.access_key_id,
        "AWS_SECRET_ACCESS_KEY": key.secret_access_key,
        "AWS_REGION": REGION,
        "AWS_ALLOW_HTTP": "true",
    }
    print(json.dumps(environment), flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
