"""Which attention kernel runs, and that no choice is silent."""

from __future__ import annotations

import logging

import pytest
import torch

from lading.adapters import attention
from lading.adapters.kernels import Segments, Shape, attend_natively
from lading.config.errors import ModelError

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


NATIVE_HERE = not attention._lack_of_native(CPU, torch.float32, 32)
NATIVE_HALF = not attention._lack_of_native(CPU, torch.bfloat16, 32)
needs_native = pytest.mark.skipif(not NATIVE_HERE, reason="no native kernel: no compiler at install, or no AVX-512")


@pytest.mark.parametrize(
    ("device", "dtype", "native", "flash", "varlen", "name"),
    [
        (CPU, torch.float32, True, True, True, "native"),
        (CPU, torch.float32, False, True, True, "sdpa-runs"),
        (CPU, torch.bfloat16, True, True, True, "native"),
        (CPU, torch.bfloat16, False, True, True, "matmul-runs"),
        (CUDA, torch.float16, False, True, True, "flash-attn"),
        (CUDA, torch.bfloat16, False, False, True, "torch-varlen"),
        (CUDA, torch.bfloat16, False, False, False, "sdpa-runs"),
        (CUDA, torch.float32, False, True, True, "sdpa-runs"),
    ],
)
def test_the_fastest_installed_kernel_is_chosen(device, dtype, native, flash, varlen, name, monkeypatch, caplog):
    """The choice follows device, dtype and what is installed; it is logged, and a missing CUDA kernel is a warning."""
    monkeypatch.setattr(attention, "_lack_of_native", lambda *_: "" if native else "it is missing here")
    there = {"flash_attn": flash, "torch.nn.attention.varlen": varlen}
    monkeypatch.setattr(attention, "_is_there", there.__getitem__)
    with caplog.at_level(logging.INFO, "lading.adapters.attention"):
        assert attention.choose(device, dtype, 32).name == name
    assert f"attention chosen: kernel={name} device={device.type}" in caplog.text
    assert ("it is missing here" in caplog.text) == (device.type == "cpu" and not native)
    slower = device.type == "cuda" and name == "sdpa-runs"
    assert any(record.levelno == logging.WARNING for record in caplog.records) == slower


def test_a_kernel_can_be_forced(monkeypatch):
    """LADING_ATTENTION names the kernel; one that is unknown, or cannot run here, is refused."""
    monkeypatch.setenv(attention.OVERRIDE, "matmul-runs")
    assert attention.choose(CPU, torch.float32, 32).name == "matmul-runs"
    monkeypatch.setenv(attention.OVERRIDE, "fastest")
    with pytest.raises(ModelError, match="flash-attn, matmul-runs"):
        attention.choose(CPU, torch.float32, 32)
    monkeypatch.setenv(attention.OVERRIDE, "native")
    with pytest.raises(ModelError, match="cannot run: it has no head size 40, only 16, 32"):
        attention.choose(CPU, torch.float32, 40)
    with pytest.raises(ModelError, match="cannot run: it has no float16 on cpu"):
        attention.choose(CPU, torch.float16, 32)


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


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 7, 20, 64])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 4, 32), (4, 2, 64), (3, 1, 16), (2, 2, 96), (2, 1, 128)])
def test_the_native_kernel_agrees_with_the_definition(dtype, causal, window, heads, key_heads, width):
    """Every head size it is compiled for, at lengths around its blocks of 8 queries and vectors of 16 keys."""
    if dtype == torch.bfloat16 and not NATIVE_HALF:
        pytest.skip("this CPU has no bfloat16 products")
    lengths = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 100, 1, 3]
    torch.manual_seed(0)
    # Views, as transformers hands them over: query, key and value may lie in one projection's output.
    columns = torch.randn(sum(lengths), (heads + 2 * key_heads) * width).to(dtype)
    sizes = [count * width for count in (heads, key_heads, key_heads)]
    query, key, value = (one.unflatten(1, (-1, width)) for one in columns.split(sizes, 1))
    shape = Shape(width**-0.5, causal, window)
    found = attend_natively(query, key, value, Segments.of(torch.tensor(lengths), CPU), shape)
    assert found.is_contiguous()
    expected = attend_plainly(query, key, value, lengths, shape)
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_native_kernel_keeps_what_is_not_finite_to_its_text(dtype):
    """A NaN or an infinity in one text is seen in that text's result, and in no other's; scores of any size do no harm."""
    if dtype == torch.bfloat16 and not NATIVE_HALF:
        pytest.skip("this CPU has no bfloat16 products")
    lengths = [20, 5, 33]
    torch.manual_seed(0)
    query, key, value = (torch.randn(sum(lengths), 2, 32).to(dtype) for _ in range(3))
    query[:20] *= 1e4  # scores beyond what exp can take
    key[22, 1, 3] = float("nan")
    value[57, 0, 0] = float("inf")
    found = attend_natively(query, key, value, Segments.of(torch.tensor(lengths), CPU), Shape(1.0, False, None))
    finite = found.isfinite()
    assert finite[:20].all()
    assert not finite[20:25, 1].any()
    assert finite[20:25, 0].all()
    assert not finite[25:, 0, 0].any()
    assert finite[25:, 1].all()


@needs_native
def test_the_native_kernel_refuses_what_it_was_not_compiled_for():
    """A head size without a kernel is an error that says what to set, never another kernel's work."""
    segments, shape = Segments.of(torch.tensor([3]), CPU), Shape(1.0, False, None)
    x = torch.zeros(3, 2, 40)
    with pytest.raises(ModelError, match="no head size 40; set LADING_ATTENTION=sdpa-runs"):
        attend_natively(x, x, x, segments, shape)
    fits = torch.zeros(3, 2, 32)
    for query, key, value in [
        (fits.half(), fits.half(), fits.half()),
        (fits, fits, fits.bfloat16()),
        (fits, fits, fits[:2]),
        (fits, fits, fits[:, :, :16]),
        (fits[:2], fits[:2], fits[:2]),  # fewer tokens than the segments have
        (torch.zeros(3, 3, 32), fits, fits),
    ]:
        with pytest.raises(ModelError, match="cannot take"):
            attend_natively(query, key, value, segments, shape)


def test_runs_are_neighbours_of_equal_length():
    """Segments merge neighbours of equal length into runs, and only neighbours."""
    segments = Segments.of(torch.tensor([7, 7, 3, 7]), CPU)
    assert segments.runs == [(0, 2, 7), (14, 1, 3), (17, 1, 7)]
    assert segments.edges.tolist() == [0, 7, 14, 17, 24]
    assert segments.edges.dtype == torch.int32
    assert segments.longest == 7


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kernel", ["sdpa-runs", "matmul-runs"])
@pytest.mark.parametrize("extra", ["softcap", "bias"])
def test_what_is_done_to_scores_is_done_whatever_kernel_was_chosen(kernel, extra, causal, window):
    """A layer's score cap or bias is applied, under windows and causality too, also by a kernel that has none itself."""
    lengths = [9, 9, 5, 1]
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(sum(lengths), 4, 16, generator=generator) * 3
    key, value = (torch.randn(sum(lengths), 2, 16, generator=generator) for _ in range(2))
    table = torch.randn(4, 9, 9, generator=generator)
    options = {
        "softcap": {"softcap": 2.0},
        "bias": {"position_bias": lambda q, _: table[None, :, : q.shape[2], : q.shape[2]]},
    }
    expected, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        q, k, v = (one[rows].double().transpose(0, 1) for one in (query, key, value))
        scores = q @ k.repeat_interleave(2, 0).transpose(1, 2) / 4
        scores = torch.tanh(scores / 2) * 2 if extra == "softcap" else scores + table[:, :length, :length]
        distance = torch.arange(length)[:, None] - torch.arange(length)
        unseen = (distance.abs() >= (window or 99)) | (causal & (distance < 0))
        expected.append(
            (scores.masked_fill(unseen, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 0)).transpose(0, 1)
        )
        start += length
    given = [one.transpose(0, 1)[None] for one in (query, key, value)]
    with attention.attending(Segments.of(torch.tensor(lengths), CPU), attention.BACKENDS[kernel]):
        found, _ = attention.packed_attention(
            torch.nn.Identity(), *given, None, is_causal=causal, sliding_window=window, **options[extra]
        )
    torch.testing.assert_close(found[0], torch.cat(expected).float(), atol=2e-6, rtol=1e-5)


def test_what_no_kernel_has_is_run_by_sdpa(monkeypatch, caplog):
    """A model that adds to its scores runs by SDPA, whatever is forced; on CUDA, where that costs, with a warning."""
    monkeypatch.setenv(attention.OVERRIDE, "matmul-runs")
    assert attention.choose(CPU, torch.float32, 32, "softcap").name == "sdpa-runs"
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    assert attention.choose(CUDA, torch.float16, 32, "softcap").name == "sdpa-runs"
    assert "attention with softcap runs as one SDPA call per run" in caplog.text


@pytest.mark.parametrize("option", ["s_aux", "position_bias"])
def test_what_packing_cannot_give_is_refused(option):
    """A layer that asks for sinks or a bias over the whole batch gets an error by that name, not a result without it."""
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
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 7, 64])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 4, 32), (4, 2, 64), (4, 1, 128)])
def test_cuda_kernels_agree_with_the_definition(kernel, dtype, causal, window, heads, key_heads, width):
    """Each CUDA kernel that is installed gives softmax attention per text: causal, windowed, grouped heads, against float64."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if kernel == "flash-attn":
        pytest.importorskip("flash_attn")
    lengths = [9, 9, 5, 1, 40, 200]
    torch.manual_seed(0)
    query, key, value = (torch.randn(sum(lengths), count, width).to(dtype) for count in (heads, key_heads, key_heads))
    shape = Shape(width**-0.5, causal, window)
    segments = Segments.of(torch.tensor(lengths), CUDA)
    found = attention.BACKENDS[kernel].attend(query.cuda(), key.cuda(), value.cuda(), segments, shape)
    expected = attend_plainly(query, key, value, lengths, shape)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-2, atol=1e-2 if dtype == torch.float16 else 3e-2)
