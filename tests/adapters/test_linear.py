"""CPU linear layers: the fused ones equal torch's, and who runs is decided aloud."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lading.adapters import linear
from lading.config.errors import ModelError

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        (("none", ""), nn.Identity()),
        (("gelu", "none"), nn.GELU()),
        (("gelu", "tanh"), nn.GELU("tanh")),
        (("relu", ""), nn.ReLU()),
        (("swish", ""), nn.SiLU()),
    ],
)
def test_packed_linear_equals_torch(bias: bool, activation: tuple[str, str], function: nn.Module):
    """A packed layer gives nn.Linear's result with the activation after it, for any number of rows."""
    layer = nn.Linear(48, 32, bias=bias)
    packed = linear.PackedLinear(layer, activation)
    with torch.inference_mode():
        for rows in (1, 7, 3000):
            x = torch.randn(1, rows, 48)
            torch.testing.assert_close(packed(x), function(layer(x)), rtol=1e-4, atol=1e-5)


class GatedBlock(nn.Module):
    def __init__(self, names: tuple[str, str, str, str], twist: float = 1.0) -> None:
        super().__init__()
        gate, act, up, last = names
        self.names, self.twist = names, twist
        setattr(self, gate, nn.Linear(48, 64, bias=False))
        setattr(self, up, nn.Linear(48, 64))
        setattr(self, last, nn.Linear(64, 48))
        setattr(self, act, nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, act, up, last = (getattr(self, name) for name in self.names)
        return last(act(gate(x)) * up(x) * self.twist)


@pytest.mark.parametrize("names", linear.GATED)
def test_gated_blocks_are_fused_and_others_kept(names: tuple[str, str, str, str], monkeypatch: pytest.MonkeyPatch):
    """A gated feed-forward block gives the same in fewer passes; one of the same layers that does more keeps its own way."""
    monkeypatch.setenv(linear.OVERRIDE, "onednn")
    model = nn.Sequential(GatedBlock(names), GatedBlock(names, twist=1.5)).eval()
    x = torch.randn(1, 50, 48)
    with torch.inference_mode():
        expected = model(x)
        assert linear.speed_up(model) == "onednn"
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert [type(block) for block in model] == [linear.Gated, GatedBlock]


def test_one_can_be_chosen(monkeypatch: pytest.MonkeyPatch):
    """LADING_LINEAR decides without a probe; an unknown name is refused."""
    monkeypatch.setenv(linear.OVERRIDE, "torch")
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    assert linear.speed_up(model) == "torch"
    assert type(model[0]) is nn.Linear
    monkeypatch.setenv(linear.OVERRIDE, "onednn")
    assert linear.speed_up(model) == "onednn"
    assert type(model[0]) is linear.PackedLinear
    monkeypatch.setenv(linear.OVERRIDE, "mkl")
    with pytest.raises(ModelError, match="torch, onednn"):
        linear.speed_up(nn.Sequential(nn.Linear(8, 8)))


def test_a_slower_kernel_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    """Where the probe finds oneDNN clearly slower, the model keeps torch's layers."""
    monkeypatch.setattr(linear, "probe", lambda model: 0.5)
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    assert linear.speed_up(model) == "torch"
    assert type(model[0]) is nn.Linear
