"""What a model holds in memory, how it leaves and comes back, and what the device's errors are called."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from lading import adapters
from lading.adapters import DeviceLost, OutOfMemory, memory
from lading.adapters.encode import Encoder
from lading.adapters.holdings import ALIGNMENT, Holdings
from lading.config.checkpoint import locate, resolve
from lading.config.errors import ModelError
from tests import models, models_outputs
from tests.swapping import Kind

CPU = torch.device("cpu")


class Odd(nn.Module):
    """Everything that a model may hold: shared, empty, of no dimension, of several dtypes, not in one piece, in oneDNN's layout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 3), nn.Linear(5, 3)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.turned = nn.Parameter(torch.randn(4, 6).T)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("steps", torch.arange(7), persistent=False)
        self.register_buffer("nothing", torch.empty(0))
        self.rough = nn.Parameter(torch.randn(9).bfloat16())
        if torch.backends.mkldnn.is_available():
            packed = torch.ops.mkldnn._reorder_linear_weight(torch.randn(32, 16), 64)
            self.register_buffer("packed", packed, persistent=False)
        self.shared_too = nn.Module()
        self.shared_too.register_buffer("mask", self.mask)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    found = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    return {
        name: (one.to_dense() if one.layout != torch.strided else one).detach().clone() for name, one in found.items()
    }


def test_everything_comes_back_as_it_was() -> None:
    """Twice, since the second time it leaves by forgetting alone. Who shared a tensor still does."""
    module = Odd()
    before, weight = tensors(module), module.first.weight
    held = Holdings([module, module.first], CPU)
    sizes = {id(one): one.numel() * one.element_size() for one in [*module.parameters(), *module.buffers()]}
    assert held.nbytes == sum(sizes.values())
    for _ in range(2):
        held.leave(keep=True)
        assert not held.on_device
        assert held.copied
        assert all(one.numel() == 0 for one in [*module.parameters(), *module.buffers()])
        held.come_back()
        assert held.on_device
        after = tensors(module)
        assert before.keys() == after.keys()
        for name, one in before.items():
            assert torch.equal(one, after[name]), name
        assert module.turned.stride() == (1, 6)
        assert module.second.weight is module.first.weight is weight
        assert module.shared_too.mask is module.mask
        assert all(one.data_ptr() % ALIGNMENT == 0 for one in module.first.parameters())


def test_what_left_without_a_copy_holds_nothing() -> None:
    module = Odd()
    held = Holdings([module], CPU)
    held.leave(keep=False)
    assert not held.copied


KINDS = ("dense", "sparse", "multi-vector", "score", "extract", "deberta-v2", "t5", "static")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gives_the_same_bits_after_it_was_away(kind: str, tmp_path: Path) -> None:
    """All that a forward pass reads on the device comes along: weights, projections, packed layers, distances, tables."""
    build, task = {
        "dense": (models.tiny_encoder, "encode"),
        "sparse": (models_outputs.splade, "encode"),
        "multi-vector": (models_outputs.late_interaction, "encode"),
        "score": (models.tiny_cross_encoder, "score"),
        "extract": (models.tiny_token_classifier, "extract"),
        "deberta-v2": (lambda path: models.tiny_cross_encoder(path, "deberta-v2"), "score"),
        "t5": (lambda path: models.tiny_encoder(path, "t5"), "encode"),
        "static": (models_outputs.static, "encode"),
    }[kind]
    folder = build(tmp_path / kind)
    adapter = adapters.make(resolve(locate(str(folder)), task=task), folder, device="cpu", threads=1)
    assert adapter.nbytes == 0
    texts = pa.array(["a text of some words", "another, and a longer one of more words than that", "short"])
    prepared = adapter.prepare([texts] * adapter.inputs)

    def results() -> pa.RecordBatch:
        return adapter.run([(prepared, np.arange(3))]).batch

    with pytest.raises(Exception, match="is not on cpu"):
        results()
    adapter.load(measure=True)
    expected, held = results(), adapter.nbytes
    assert held > 0
    for _ in range(2):
        adapter.set_aside()
        with pytest.raises(Exception, match="is not on cpu"):
            results()
        adapter.bring_back()
        assert results().equals(expected)
        assert adapter.nbytes == held
    adapter.unload()
    assert adapter.nbytes == 0
    adapter.load()
    assert results().equals(expected)


def test_a_model_on_disk_alone_holds_no_tensor(tmp_path: Path) -> None:
    folder = models.tiny_encoder(tmp_path / "model")
    adapter = adapters.make(resolve(locate(str(folder)), task="encode"), folder, device="cpu", threads=1)
    gc.collect()

    def there() -> int:
        gc.collect()
        return sum(isinstance(one, nn.Parameter) for one in gc.get_objects())

    before = there()
    adapter.load(measure=True)
    assert there() > before
    adapter.unload()
    assert there() == before


def test_the_peak_of_memory_is_what_lives_at_the_worst_moment() -> None:
    mib = 1 << 20

    def call() -> torch.Tensor:
        first = torch.zeros(mib, dtype=torch.uint8)
        second = torch.zeros(2 * mib, dtype=torch.uint8)
        del first
        third = second + 1  # 4 MiB by now
        del second
        return third[: mib // 2].clone()

    assert memory.peak(call, CPU) == 4 * mib
    given = torch.zeros(mib, dtype=torch.uint8)
    assert memory.peak(lambda: given[:10].add_(1), CPU) == 0, "what was there before, and views of it, are not counted"


def test_what_batches_take_grows_with_their_tokens(tmp_path: Path) -> None:
    """A prediction from two small batches is close to what a batch of another size takes."""
    folder = models.tiny_encoder(tmp_path / "model")
    adapter = adapters.make(resolve(locate(str(folder)), task="encode"), folder, device="cpu", threads=1)
    adapter.load(measure=True)
    assert adapter.working is not None
    prepared = adapter.prepare([pa.array(["word " * 126] * 40)])
    taken = memory.peak(lambda: adapter.run([(prepared, np.arange(40))]), CPU)
    assert 0.7 * taken <= adapter.working.of(int(prepared.costs.sum()), 1) <= 1.4 * taken


def test_a_load_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models.tiny_encoder(tmp_path / "model")
    adapter = adapters.make(resolve(locate(str(folder)), task="encode"), folder, device="cpu", threads=1)
    run = Encoder._run

    def failing(self: Encoder, parts: object) -> object:
        raise OutOfMemory("none")

    monkeypatch.setattr(Encoder, "_run", failing)
    with pytest.raises(OutOfMemory):
        adapter.load(measure=True)
    assert adapter.nbytes == 0
    monkeypatch.setattr(Encoder, "_run", run)
    adapter.load(measure=True)
    assert adapter.nbytes > 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemory),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), OutOfMemory),  # pinned host memory
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceLost),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"), DeviceLost),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
        (ValueError("a text is no longer than its prompt"), ValueError),
        (OutOfMemory("told already"), OutOfMemory),
    ],
)
def test_errors_of_the_device_are_told_apart(error: Exception, expected: type[Exception]) -> None:
    """Also as the cause of another error, which then is not the model's."""
    with pytest.raises(expected) as told, memory.telling():
        raise error
    assert told.type is expected
    if expected in (OutOfMemory, DeviceLost):
        with pytest.raises(expected), memory.telling():
            raise ModelError("a model of type 'bert' cannot be run packed") from error


@pytest.mark.parametrize("number", range(5))
def test_a_model_that_left_for_the_disk_holds_nothing(number: int, kinds: list[Kind]) -> None:
    """Whoever still knows its parts: another recipe with the same weights, a graph of objects that nobody collected yet."""
    kind = kinds[number]
    recipe = resolve(locate(str(kind.folder)), task=kind.verb)
    owner, user = (adapters.make(recipe, kind.folder, device="cpu", threads=1) for _ in range(2))
    user.use(owner)
    owner.load()
    row = owner.prepare([pa.array(["a row"])] * owner.inputs)
    user.run([(row, np.arange(1))])
    modules = [owner.packed.model, *(module for head in [*owner.heads, *user.heads] for module in head.modules)]
    held = [one for module in modules for one in (*module.parameters(), *module.buffers())]
    assert sum(one.numel() for one in held) > 10_000
    owner.unload()
    assert sum(one.untyped_storage().nbytes() for module in modules for one in module.parameters()) == 0
    assert sum(one.untyped_storage().nbytes() for module in modules for one in module.buffers()) == 0
    owner.load()
    user.run([(row, np.arange(1))])
