"""A model hub over HTTP in miniature: the few endpoints that huggingface_hub's own client asks, with private and gated models."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secretsecretsecretsecretsecret"
STRANGER = "hf_strangerstrangerstrangerstrange"  # of an account that may see nothing that is not public
_API = re.compile(r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([^/]+))?$")
_FILE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)$")


@dataclasses.dataclass(frozen=True)
class Repository:
    """`access`: public, private (there for its token only), gated (known to all, open to the token that accepted its terms)."""

    folder: Path
    access: str = "public"
    revisions: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"main": COMMIT})

    def files(self) -> dict[str, Path]:
        return {str(one.relative_to(self.folder)): one for one in sorted(self.folder.rglob("*")) if one.is_file()}


class HubServer:
    """Serves `models` until it is closed. `sent` has the files it sent, `asked` the paths it was asked for.

    `before` is called with verb and path of each request, in its thread, and may hold it.
    """

    def __init__(
        self, models: Mapping[str, Repository], *, before: Callable[[str, str], None] = lambda verb, path: None
    ) -> None:
        self.models, self.sent, self.asked = models, list[str](), list[str]()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                before(self.command, self.path)
                status, headers, body = hub.answer(self.path.partition("?")[0], self.headers.get("Authorization", ""))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)
                    if status == 200 and "/resolve/" in self.path:
                        hub.sent.append(self.path.split("/", 5)[-1])

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        if authorization not in ("", f"Bearer {TOKEN}", f"Bearer {STRANGER}"):
            return 401, {}, b'{"error": "Invalid username or password."}'
        api, file = _API.match(path), _FILE.match(path)
        name = (api or file or [""])[1] if api or file else ""
        known = self.models.get(name)
        insider, refused = authorization == f"Bearer {TOKEN}", 403 if authorization else 401
        if known is None or (known.access == "private" and not insider):
            return 404 if authorization else 401, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'
        # What a gated model is called may be asked by everybody, what is in it not.
        if known.access == "gated" and not insider and not (api and api[2] != "tree"):
            return refused, {"X-Error-Code": "GatedRepo"}, b'{"error": "Access to this model is restricted"}'
        if api:
            return self._about(known, name, api[2] or "", api[3] or "main")
        assert file is not None
        return self._file(known, file[2], file[3])

    def _about(self, known: Repository, name: str, kind: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        commit = revision if revision in known.revisions.values() else known.revisions.get(revision)
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b'{"error": "Invalid rev id"}'
        files = known.files()
        if kind == "tree":
            listed = [
                {"type": "file", "path": path, "size": one.stat().st_size, "oid": "0" * 40}
                for path, one in files.items()
            ]
            return 200, {}, json.dumps(listed).encode()
        about = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
        return 200, {}, json.dumps(about).encode()

    def _file(self, known: Repository, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        file = known.files().get(path)
        commit = revision if revision in known.revisions.values() else known.revisions.get(revision)
        if file is None or commit is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        body = file.read_bytes()
        etag = f'"{hashlib.sha1(body).hexdigest()}"'
        return 200, {"ETag": etag, "X-Repo-Commit": commit, "X-Linked-Size": str(len(body))}, body


def ask(url: str, home: Path, program: str, *arguments: str, **environ: str) -> str:
    """All that a program prints, errors too, in a process of its own: huggingface_hub reads its environment once."""
    unset = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
    variables = {name: value for name, value in os.environ.items() if name not in unset}
    variables |= {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=variables | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
