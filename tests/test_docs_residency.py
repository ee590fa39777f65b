"""What docs/residency.md says can be typed, with five kinds of models in one worker; and what it computes is computed so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lading.config.catalogue import find
from lading.config.weights import BYTES
from lading.schedulers import pools
from tests import models, models_outputs
from tests.redis_server import RedisServer
from tests.test_docs import FENCE, ROOT, typed
from tests.test_docs_queue import Machine, until, yaml_block

TEXT = (ROOT / "docs/residency.md").read_text()
POOL = "gpu24"


@pytest.fixture
def machine(
    tmp_path: Path, tiny_encoder: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    one = Machine(tmp_path, tiny_encoder, redis_server, monkeypatch)
    one.pool = POOL
    yield one
    one.abandon()


def test_its_commands_run(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Typed from top to bottom beside its pools.yaml, on a CPU and with small models of the same kinds: all five are there, one pinned."""
    folder = machine.folder
    machine.words |= {
        "Qwen/Qwen3-Embedding-4B": str(models.tiny_encoder(folder / "dense", "qwen3")),
        "opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill": str(
            models_outputs.inference_free(folder / "sparse")
        ),
        "lightonai/GTE-ModernColBERT-v1": str(models_outputs.late_interaction(folder / "multi_vector")),
        "BAAI/bge-reranker-v2-m3": str(models.tiny_cross_encoder(folder / "score")),
        "dslim/bert-base-NER": str(models.tiny_token_classifier(folder / "extract")),
        "cuda": "cpu",
    }
    (folder / "config").mkdir()
    (folder / "config/pools.yaml").write_text(machine.here(yaml_block(TEXT)))
    for name, value in {
        "CONFIG_DIR": f"{folder}/config",
        "ROOTS": str(folder),
        "OFFLINE": "true",
        "LEASE_S": "2",
    }.items():
        machine.patch.setenv(f"LADING_{name}", value)

    def there() -> list[str]:
        reports = machine.broker.reports(POOL).values()
        return [one["model"] for report in reports for one in report["models"] if one["tier"] == "device"]

    told: dict[str, str] = {}
    for line in typed(TEXT):
        if machine.workers:
            until(lambda: len(there()) == 5)
        told[line.partition("#")[0].strip()] = machine.type(line, capsys)
    status = told[f"lading worker status --pool {POOL}"]
    assert len(re.findall(r": device, .* MB", status)) == 5
    assert len(re.findall(r"pinned", status)) == 1
    assert told[f"lading models pull --pool {POOL}"].count(": there already, ") == 5
    machine.close()


def test_its_pool_and_its_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is valid as it stands; the table has its models, with the bytes that the catalogue's counts give, and they fit."""
    (tmp_path / "pools.yaml").write_text(yaml_block(TEXT))
    monkeypatch.setenv("LADING_CONFIG_DIR", str(tmp_path))
    pool = pools.load()[POOL]
    rows = dict(re.findall(r"^\| (\S+/\S+) \| [a-z -]+ \| ([\d,.]+) MB \|$", TEXT, re.MULTILINE))
    assert list(rows) == [one.model for one in pool.preload]
    weights = {name: find(name).parameters * BYTES["bfloat16"] for name in rows}  # pyright: ignore
    assert rows == {name: f"{size / 1e6:,.1f}" for name, size in weights.items()}
    total = sum(weights.values())
    assert f"| together | | {total / 1e6:,.1f} MB |" in TEXT
    assert f"{(pool.memory_bytes - total) / 1e9:.1f} GB of the budget are left" in TEXT
    assert total < pool.host_bytes
    assert {one.options.precision for one in pool.preload} == {*pool.precisions} == {"bfloat16"}
    assert len([block for language, block in FENCE.findall(TEXT) if language == "yaml"]) == 1
