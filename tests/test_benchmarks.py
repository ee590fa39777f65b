"""The benchmarks that measure models: their counts of operations are torch's, and they run from end to end on tiny shapes."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from benchmarks import families, gemm, gpu
from benchmarks.report import Report

QUICK = ["--device", "cpu", "--quick", "--json"]


def lines(text: str) -> dict[str, dict[str, Any]]:
    """What was printed as JSON, by name."""
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert all(line.keys() == {"name", "value", "unit", "against", "note", "machine"} for line in found)
    return {line["name"]: line for line in found}


@pytest.mark.parametrize("name", gpu.SHAPES)
def test_the_formula_counts_what_torch_counts(name: str):
    """On a small model of the same shape, all of the attention counted, at any lengths; causal attention needs half of it."""
    shape = gpu.SHAPES[name].small()
    config = transformers.AutoConfig.for_model(shape.model_type, **shape.family().sizes, vocab_size=100, pad_token_id=0)
    counted = gemm.counted(transformers.AutoModel.from_config(config, attn_implementation="eager").eval())
    for lengths in ([1], [40, 7, 3, 300]):
        assert shape.operations(lengths, whole=True) == counted(lengths)
    square = (shape.operations([2], whole=True) - 2 * shape.operations([1], whole=True)) / 2
    spared = shape.operations([350], whole=True) - shape.operations([350])
    assert spared == (350**2 * square / 2 if shape.causal else 0)


def test_models_have_the_operations_of_their_size():
    """A token takes two operations a weight of its linear layers: 85 million in BERT's base size, 440 million in Qwen3's 0.6B."""
    per_token = {name: shape.operations([1]) / 2e6 for name, shape in gpu.SHAPES.items()}
    assert per_token == pytest.approx({"bert-base": 85, "xlm-r-large": 302, "qwen3-0.6b": 440}, rel=0.01)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", None),
        ("NVIDIA H100 NVL", 835.0),
        ("Tesla T4", None),
    ],
)
def test_peaks_are_found_by_the_devices_name(device: str, peak: float | None):
    """The first part of the table that fits; a device that is not there has none."""
    assert gpu.stated_peak(device) == peak


def test_without_a_cuda_device_the_gpu_benchmark_says_so(capsys: pytest.CaptureFixture[str]):
    """One line on standard error, and exit code 2."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert "sees no CUDA device here" in said.err
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--device", "cpu"])
    assert ended.value.code == 2


def test_the_gpu_benchmark_runs(minilm: Path, capsys: pytest.CaptureFixture[str]):
    """Its table on tiny shapes on the CPU: every model and load, our kernels beside the reference's best batch, rates that fit each other."""
    gpu.main(QUICK)
    out = capsys.readouterr().out
    found = [json.loads(line) for line in out.splitlines()]
    names = collections.Counter(line["name"].partition(":")[0].partition(", batch")[0] for line in found)
    assert names == dict.fromkeys(("lading own choice", "lading matmul-runs", "sentence-transformers sdpa"), 7 * 6)
    for line in found:
        if line["name"].endswith(": lowest cosine"):
            assert line["value"] > 0.9999
        if line["name"] == "lading own choice: ratio":
            assert line["value"] > 0
        if line["name"].startswith("lading own choice: fill"):
            assert line["value"] == 100


def test_wrong_vectors_are_no_figures():
    """A candidate whose vectors are not the reference's ends the run with its name."""
    bench = gpu.Bench(Report(as_json=True), "cpu", None, 1.0)
    good, bad = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[::-1]
    given = {name: gpu.Contestant(lambda: good, 1.0) for name in ("lading x", "reference")}
    with pytest.raises(SystemExit, match=r"lading x: cosine 0\.0"):
        gpu.show(bench, gpu.SHAPES["bert-base"], [1, 2], given, {"reference": (1.0, good), "lading x": (1.0, bad)})


def test_the_families_benchmark_runs(minilm: Path, capsys: pytest.CaptureFixture[str]):
    """One family in two layers: rate, ratio, share of the GEMM rate, and an error that is none."""
    refused = families.run(Report(True), ["distilbert"], texts=6, threads=1, rounds=1, budget=512, quick=True)
    assert refused == 0
    found = lines(capsys.readouterr().out)
    assert list(found) == [
        f"distilbert: {what}"
        for what in ("tokens", "ratio", "operations", "share of the GEMM rate", "worst relative error")
    ]
    assert 0 < found["distilbert: worst relative error"]["value"] < 20
    assert found["distilbert: ratio"]["value"] > 0


def test_a_family_that_packing_would_change_is_reported_and_left_out(
    minilm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Its reason is printed, the others run on, and it is counted."""
    monkeypatch.setitem(
        families.FAMILIES, "xlnet", families.Family("xlnet", {"d_model": 32, "n_layer": 1, "n_head": 2})
    )
    assert families.run(Report(False), ["xlnet"], texts=4, threads=1, rounds=1, budget=512, quick=True) == 1
    assert "xlnet: not run: " in capsys.readouterr().out
