"""`lading models pull`: models are in the hub's cache before anybody needs them, each file fetched once, and what cannot come is told."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lading.config.checkpoint import locate, resolve
from lading.config.repository import stored_bytes
from tests import models
from tests.hub_server import COMMIT, STRANGER, TOKEN, HubServer, Repository, ask
from tests.models_lora import tiny_adapter

PULL = """
import sys
from lading.cli import main
code = main(["models", "pull", *sys.argv[1:]])
print("ended", code, "with torch" if "torch" in sys.modules else "without torch")
"""
UNNEEDED = ("README.md", "pytorch_model.bin", "onnx/model.onnx")
WAIT_S = 60  # for a test that has failed
Pull = Callable[..., tuple[int, list[str]]]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Repository]:
    root = tmp_path_factory.mktemp("repositories")
    encoder, other = models.tiny_encoder(root / "encoder", dense=16), models.tiny_encoder(root / "other")
    for name in UNNEEDED:
        (encoder / name).parent.mkdir(exist_ok=True)
        (encoder / name).write_bytes(b"unneeded")
    pickled = models.tiny_encoder(root / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    return {
        "owner/encoder": Repository(encoder, revisions={"main": COMMIT, "v2": "f" * 40}),
        "owner/other": Repository(other),
        "owner/private": Repository(other, "private"),
        "owner/adapter": Repository(tiny_adapter(root / "adapter", encoder)),
        "owner/pickled": Repository(pickled),
    }


@pytest.fixture
def hub(repositories: dict[str, Repository]) -> Iterator[HubServer]:
    server = HubServer(repositories)
    yield server
    server.close()


def pulled(hub: HubServer, home: Path, *arguments: str, **environ: str) -> tuple[int, list[str]]:
    """How a command of its own process ended, and what it said before."""
    lines = ask(hub.url, home, PULL, *arguments, **environ).splitlines()
    assert not [line for line in lines if TOKEN in line or STRANGER in line], "the token was told to somebody"
    (end,) = [line for line in lines if line.startswith("ended ")]
    assert end.endswith("without torch")
    return int(end.split()[1]), [line for line in lines if line != end]


@pytest.fixture
def pull(hub: HubServer, tmp_path: Path) -> Pull:
    return lambda *arguments, **environ: pulled(hub, tmp_path, *arguments, **environ)


def size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def told(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_models_come_whole_and_once(
    hub: HubServer, pull: Pull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several models and an adapter: where each lies and its bytes; again, and offline, they are there, and nothing is asked for."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    names = ("owner/encoder", "owner/encoder@v2", "owner/other", "--adapter", "owner/adapter", "owner/other")
    code, lines = pull(*names, "--json")
    found = told(lines)
    assert code == 0
    assert [(one["model"], one["kind"], one["state"]) for one in found] == [
        ("owner/encoder", "model", "fetched"),
        ("owner/encoder@v2", "model", "fetched"),
        ("owner/other", "model", "fetched"),
        ("owner/adapter", "adapter", "fetched"),
    ]
    assert [one["revision"] for one in found] == [COMMIT, "f" * 40, COMMIT, COMMIT]
    encoder, _, _, adapter = found
    original = hub.models["owner/encoder"].folder
    assert encoder["folder"] == str(tmp_path / "hub/models--owner--encoder/snapshots" / COMMIT)
    assert (
        encoder["bytes"]
        == stored_bytes(original)
        == sum(map(size, original.rglob("*"))) - sum(size(original / name) for name in UNNEEDED)
    )
    lora = hub.models["owner/adapter"].folder
    assert adapter["bytes"] == size(lora / "adapter_config.json") + size(lora / "adapter_model.safetensors")
    assert "README.md" not in hub.sent
    assert resolve(locate("owner/encoder", offline=True), task="encode") == resolve(
        locate(str(original)), task="encode"
    )
    hub.asked.clear()
    code, lines = pull(*names, LADING_OFFLINE="true")
    assert code == 0
    megabytes = f"{encoder['bytes'] / 1e6:,.1f} MB"
    assert lines[0] == f"owner/encoder: there already, {megabytes} in {encoder['folder']}"
    assert hub.asked == []


def test_two_processes_fetch_each_file_once(repositories: dict[str, Repository], tmp_path: Path) -> None:
    """While one process has begun to fetch the weights, another that looks for the same model waits for them."""
    looks, both = list[str](), threading.Event()

    def before(verb: str, path: str) -> None:
        if path.endswith(f"/{COMMIT}/model.safetensors"):
            looks.append(verb)
            if looks.count("HEAD") == 2:
                both.set()
            if verb == "GET":
                both.wait(WAIT_S)  # until the second process wants what the first has begun to fetch

    hub = HubServer(repositories, before=before)
    try:
        with ThreadPoolExecutor(2) as threads:
            ends = list(threads.map(lambda _: pulled(hub, tmp_path, "owner/encoder", "--json"), range(2)))
    finally:
        hub.close()
    assert both.is_set(), "the two did not meet"
    assert [code for code, _ in ends] == [0, 0]
    assert [one["folder"] for _, lines in ends for one in told(lines)] == [
        str(tmp_path / "hub/models--owner--encoder/snapshots" / COMMIT)
    ] * 2
    assert Counter(hub.sent) == dict.fromkeys(hub.sent, 1)
    assert "model.safetensors" in hub.sent


def test_a_pool_s_preload(hub: HubServer, pull: Pull, tmp_path: Path) -> None:
    """All models that pools.yaml preloads, with their revisions and adapters; a pool that preloads none has nothing to fetch."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/pools.yaml").write_text(
        "cpu:\n  device: cpu\n  memory_bytes: 4_000_000_000\n  preload:\n"
        "    - {verb: encode, model: owner/encoder, revision: v2, pin: true}\n"
        "    - {verb: encode, model: owner/other, adapter: owner/adapter}\n"
        "    - {verb: encode, model: owner/other, prompt: query}\n"
        "bare: {device: cpu, memory_bytes: 1}\n"
    )
    config = str(tmp_path / "config")
    code, lines = pull("--pool", "cpu", "--json", LADING_CONFIG_DIR=config)
    assert code == 0
    assert [(one["model"], one["revision"]) for one in told(lines)] == [
        ("owner/encoder", "f" * 40),
        ("owner/other", COMMIT),
        ("owner/adapter", COMMIT),
    ]
    assert pull("--pool", "bare", LADING_CONFIG_DIR=config) == (0, ["pool bare preloads no models (pools.yaml)"])
    code, (line,) = pull("--pool", "gpus", LADING_CONFIG_DIR=config)
    assert (code, line) == (2, "lading: there is no pool 'gpus'; valid: bare, cpu (pools.yaml)")


def test_folders_are_looked_at(hub: HubServer, pull: Pull, tmp_path: Path) -> None:
    """A whole one is there already; one that lacks a file, or has no safetensors, is refused with what it lacks."""
    folder = models.tiny_encoder(tmp_path / "own", dense=16)
    code, (one,) = pull(str(folder), "--json")
    assert code == 0
    (found,) = told([one])
    assert (found["state"], found["folder"], found["revision"]) == ("there already", str(folder), None)
    assert found["bytes"] == stored_bytes(folder)
    (folder / "2_Dense/model.safetensors").unlink()
    assert pull(str(folder)) == (
        2,
        [f"lading: {folder}: 2_Dense/model.safetensors is not there: get the whole folder again"],
    )
    code, (one,) = pull("--adapter", str(folder), "--json")
    assert code == 2
    assert "no adapter_config.json, so it is a whole model" in told([one])[0]["reason"]
    assert hub.asked == []
    code, (line,) = pull("owner/pickled")
    assert code == 2
    assert "models--owner--pickled" in line
    assert "no weights (model.safetensors, or model.safetensors.index.json with its shards)" in line


def test_what_cannot_come_is_told_and_the_others_come(pull: Pull, tmp_path: Path) -> None:
    """2 where a name will not do; 3 where the hub is away, and the same command goes on; a private model comes with its token."""
    code, lines = pull("owner/private", "owner/nobody", "owner/other", "--json", HF_TOKEN=STRANGER)
    assert code == 2
    private, nobody, other = told(lines)
    assert (private["state"], nobody["state"], other["state"]) == ("refused", "refused", "fetched")
    assert private["bytes"] is private["folder"] is None
    assert "or it is private: set HF_TOKEN" in private["reason"]
    assert pull("owner/private", HF_TOKEN=TOKEN)[0] == 0
    code, lines = pull("owner/other", "owner/nobody", "owner/encoder", HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 3
    assert lines[0].startswith("owner/other: there already, ")
    assert "owner/encoder" in lines[2]
    assert "the hub could not be reached" in lines[2]
    code, (line,) = pull("owner/encoder", LADING_OFFLINE="true")
    assert code == 2
    assert "the hub was not asked (offline)" in line
    assert pull()[0] == 2
