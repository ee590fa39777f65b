"""What `lading render pools` writes: the same pools again, for the chart or as a ConfigMap, and how a values file differs from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lading.cli import main
from lading.config.errors import UsageError
from lading.schedulers import pools, rendering

EVERYTHING = """
big:
  device: cuda
  memory_bytes: 60_000_000_000
  precisions: [bfloat16, float16]
  batch_tokens: 1024
  max_workers: 3
  pull_shards: 5
  pull_requests: 7
  memory_share: 0.5
  host_bytes: 8
  swap_patience_s: 3
  idle_unload_s: 60
  preload: [{verb: encode, model: BAAI/bge-m3, precision: bfloat16, outputs: [dense, sparse], pin: true}, {verb: score, model: m}]
small: {device: cpu, memory_bytes: 9, precisions: [float32, int8]}
"""


def installation(folder: Path, text: str = EVERYTHING) -> pools.Pools:
    (folder / "pools.yaml").write_text(text)
    return pools.load({"LADING_CONFIG_DIR": str(folder)})


def test_what_is_written_reads_as_the_same_pools(tmp_path: Path):
    """Every key arrives, in values and in a ConfigMap, and what the chart reckons with is written even where it is the default."""
    here = installation(tmp_path)
    specs = {name: block["spec"] for name, block in yaml.safe_load(rendering.values(here))["pools"].items()}
    assert pools.parse(specs, "values") == here
    assert set(specs["small"]) == {*rendering.ALWAYS, "precisions"}
    found = yaml.safe_load(rendering.config_map(here, "pools"))
    assert (found["kind"], found["metadata"]) == ("ConfigMap", {"name": "pools"})
    assert installation(tmp_path, found["data"]["pools.yaml"]) == here


def test_differences_are_named(tmp_path: Path):
    """A line for each key that differs and each pool that is not there; a pool that is left out, or a default that is said, is none."""
    here = installation(tmp_path)
    given = yaml.safe_load(rendering.values(here))
    assert rendering.differences(here, given, "v.yaml") == []
    given["pools"]["small"]["spec"]["swap_patience_s"] = 2.0
    given["pools"]["big"]["spec"]["max_workers"] = 4
    given["pools"]["other"] = {"spec": {"device": "cpu", "memory_bytes": 1}}
    assert rendering.differences(here, given, "v.yaml") == [
        "pools.big.spec.max_workers: 4, and 3 in pools.yaml",
        "pools.other: pools.yaml has no such pool",
    ]
    del given["pools"]["big"], given["pools"]["other"]
    assert rendering.differences(here, given, "v.yaml") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: s3://b", "v.yaml: pools: expected pools by name, found None"),
        ("pools: [l4]", "v.yaml: pools: expected pools by name"),
        ("pools: {small: {mode: live}}", "v.yaml: pools.small.spec: is missing"),
        (
            "pools: {small: {spec: {device: cpu, memory_bytes: 1, max_worker: 2}}}",
            "v.yaml: small.max_worker: unknown key",
        ),
    ],
)
def test_a_file_without_pools_does_not_agree(tmp_path: Path, text: str, message: str):
    """What describes no pools, or none that pools.yaml could describe, is refused by name."""
    with pytest.raises(UsageError, match=message):
        rendering.differences(installation(tmp_path), yaml.safe_load(text), "v.yaml")


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`render pools` prints values, whose --check succeeds until one of them changes: then it ends with 2 and says which."""
    monkeypatch.setenv("LADING_CONFIG_DIR", str(tmp_path))
    here = installation(tmp_path)
    assert main(["render", "pools", "--as", "configmap"]) == 0
    assert capsys.readouterr().out == rendering.config_map(here, "lading-pools")
    assert main(["render", "pools"]) == 0
    values = tmp_path.parent / "values.yml"
    values.write_text(capsys.readouterr().out)
    assert main(["render", "pools", "--check", str(values)]) == 0
    assert capsys.readouterr().out == f"{values} agrees with pools.yaml\n"
    values.write_text(values.read_text().replace("pull_shards: 5", "pull_shards: 6"))
    assert main(["render", "pools", "--check", str(values)]) == 2
    assert "differs from pools.yaml in 1 place:\n  pools.big.spec.pull_shards: 6, and 5" in capsys.readouterr().err
