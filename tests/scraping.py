"""What tests of metrics share: a scrape, as Prometheus makes it, and a look at what it brought."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lading.config.metrics import PREFIX


class Scraped:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [one for family in text_string_to_metric_families(text) for one in family.samples]

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Scraped:
        """Without a port between."""
        return cls(generate_latest(registry).decode())

    def value(self, name: str, **labels: str) -> float:
        """The only sample of that name with these labels, whatever others it has; fails if there is none, or several."""
        found = self.values(name, **labels)
        assert len(found) == 1, (name, labels, found)
        return found[0]

    def total(self, name: str, **labels: str) -> float:
        return sum(self.values(name, **labels))

    def values(self, name: str, **labels: str) -> list[float]:
        return [
            one.value for one in self.samples if one.name == PREFIX + name and labels.items() <= {**one.labels}.items()
        ]

    def labels(self, name: str, label: str) -> set[str]:
        return {one.labels[label] for one in self.samples if one.name == PREFIX + name}


def get(port: int, path: str, timeout_s: float = 30.0) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout_s) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(port: int) -> Scraped:
    status, text = get(port, "/metrics")
    assert status == 200
    return Scraped(text)


def lint(text: str) -> str:
    """What `promtool check metrics` has against it. Missing: skipped on a laptop, failed in CI."""
    tool = shutil.which("promtool")
    if tool is None:
        missing = "no promtool: install Debian's package prometheus"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, text=True)
    return done.stdout + done.stderr


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """A connection to it, for those who speak as no client should."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        yield line


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
