"""Which attention kernel runs, and that no choice is silent."""

from __future__ import annotations

import logging

import pytest
import torch

from lading.adapters import attention
from lading.adapters.attention import Segments, Shape
from lading.config.errors import ModelError

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "flash", "varlen", "name"),
    [
        (CPU, torch.float32, True, True, "sdpa-runs"),
        (CPU, torch.bfloat16, True, True, "matmul-runs"),
        (CUDA, torch.float16, True, True, "flash-attn"),
        (CUDA, torch.bfloat16, False, True, "torch-varlen"),
        (CUDA, torch.bfloat16, False, False, "sdpa-runs"),
        (CUDA, torch.float32, True, True, "sdpa-runs"),
    ],
)
def test_the_fastest_installed_kernel_is_chosen(device, dtype, flash, varlen, name, monkeypatch, caplog):
    """The choice follows device, dtype and what is installed; it is logged, and a missing CUDA kernel is a warning."""
    monkeypatch.setattr(attention, "_has_flash_attn", lambda: flash)
    monkeypatch.setattr(attention, "_has_torch_varlen", lambda: varlen)
    with caplog.at_level(logging.INFO, "lading.adapters.attention"):
        assert attention.choose(device, dtype).name == name
    assert f"attention: {name} on {device.type}" in caplog.text
    slower = device.type == "cuda" and name == "sdpa-runs"
    assert any(record.levelno == logging.WARNING for record in caplog.records) == slower


def test_a_kernel_can_be_forced(monkeypatch):
    """LADING_ATTENTION names the kernel; an unknown name is refused with the valid ones."""
    monkeypatch.setenv(attention.OVERRIDE, "matmul-runs")
    assert attention.choose(CPU, torch.float32).name == "matmul-runs"
    monkeypatch.setenv(attention.OVERRIDE, "fastest")
    with pytest.raises(ModelError, match="flash-attn, matmul-runs"):
        attention.choose(CPU, torch.float32)


def attend_plainly(query, key, value, lengths, shape: Shape) -> torch.Tensor:
    """Softmax attention of each text alone, in float64, by the book."""
    out, start = [], 0
    groups = query.shape[1] // key.shape[1]
    for length in lengths:
        rows = slice(start, start + length)
        q, k, v = (tensor[rows].double().transpose(0, 1) for tensor in (query, key, value))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        scores = q @ k.transpose(1, 2) * shape.scale
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        hidden = torch.zeros(length, length, dtype=torch.bool)
        if shape.causal:
            hidden |= distance < 0
        if shape.window is not None:
            hidden |= distance.abs() >= shape.window
        out.append((scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1))
        start += length
    return torch.cat(out)


@pytest.mark.parametrize("kernel", ["sdpa-runs", "matmul-runs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_kernels_agree_with_the_definition(kernel, dtype, causal, window, key_heads):
    """Each CPU kernel gives softmax attention per text: runs of equal lengths, causal, windowed, grouped heads."""
    lengths = [9, 9, 9, 5, 3, 3, 1, 1, 40]
    torch.manual_seed(0)
    query, key, value = (torch.randn(sum(lengths), heads, 8).to(dtype) for heads in (4, key_heads, key_heads))
    shape = Shape(0.3, causal, window)
    found = attention.BACKENDS[kernel].attend(query, key, value, Segments.of(torch.tensor(lengths), CPU), shape)
    expected = attend_plainly(query, key, value, lengths, shape)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_runs_are_neighbours_of_equal_length():
    """Segments merge neighbours of equal length into runs, and only neighbours."""
    segments = Segments.of(torch.tensor([7, 7, 3, 7]), CPU)
    assert segments.runs == [(0, 2, 7), (14, 1, 3), (17, 1, 7)]
    assert segments.edges.tolist() == [0, 7, 14, 17, 24]
    assert segments.edges.dtype == torch.int32
    assert segments.longest == 7


@pytest.mark.parametrize("option", ["softcap", "s_aux", "position_bias"])
def test_what_packing_cannot_give_is_refused(option):
    """A layer that asks for a score cap, sinks or a bias gets an error by that name, not a result without it."""
    x = torch.zeros(1, 2, 3, 8)
    segments = Segments.of(torch.tensor([3]), CPU)
    with attention.attending(segments, attention.BACKENDS["sdpa-runs"]), pytest.raises(ModelError, match=option):
        attention.packed_attention(torch.nn.Identity(), x, x, x, None, **{option: 1.0})


def test_nothing_is_left_in_flight():
    """After a batch, failed or not, the thread has no segments: the next padded batch is refused."""
    segments = Segments.of(torch.tensor([3]), CPU)
    with pytest.raises(RuntimeError, match="boom"), attention.attending(segments, attention.BACKENDS["sdpa-runs"]):
        raise RuntimeError("boom")
    assert attention.segments_in_flight() is None


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["torch-varlen", "flash-attn"])
@pytest.mark.parametrize("causal", [False, True])
def test_cuda_kernels_agree_with_the_definition(kernel, causal):
    """Each CUDA kernel that is installed gives softmax attention per text."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if kernel == "flash-attn":
        pytest.importorskip("flash_attn")
    lengths = [9, 9, 5, 1, 40]
    torch.manual_seed(0)
    query, key, value = (torch.randn(sum(lengths), 4, 32, dtype=torch.float16) for _ in range(3))
    shape = Shape(0.3, causal, None)
    segments = Segments.of(torch.tensor(lengths), CUDA)
    found = attention.BACKENDS[kernel].attend(query.cuda(), key.cuda(), value.cuda(), segments, shape)
    expected = attend_plainly(query, key, value, lengths, shape)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-2, atol=1e-2)
