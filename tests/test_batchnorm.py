"""``replace_batchnorm``: equal in evaluation, decorrelating in training, and undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.helpers import plain


class Block(nn.Module):
    """A residual block, its activations in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-3, momentum=None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


def trained() -> tuple[nn.Sequential, Tensor]:
    """A float64 model whose statistics and parameters are not those it began with; images."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), Block(6), Block(6), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False),
    ).double()  # fmt: skip
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    for _ in range(3):
        model(x + torch.randn_like(x))
    model[1].weight.requires_grad_(False)
    return model, x


PATHS = ["1", "2.bn1", "2.bn2", "3.bn1", "3.bn2", "7"]


@pytest.mark.parametrize(
    "options", [{}, {"kind": "cholesky", "group_size": 2}, {"running": "matrix"}], ids=str
)
def test_evaluation_is_that_of_batch_normalisation(options: dict[str, Any]) -> None:
    model, x = trained()
    before, old = model.eval()(x), dict(model.named_modules())
    changes = fastwhiten.replace_batchnorm(model, **options)
    assert list(changes.layers) == PATHS
    # Roots of diagonal matrices, through five layers in float64.
    torch.testing.assert_close(model(x), before, rtol=0.0, atol=1e-10)
    for path, layer in changes.layers.items():
        bn = old[path]
        assert model.get_submodule(path) is layer and not layer.training
        for name in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
            assert getattr(layer, name) == getattr(bn, name), name
        assert layer.num_batches_tracked == 3 and layer.running_mean.dtype == torch.float64
        if bn.affine:
            assert torch.equal(layer.weight, bn.weight) and layer.weight is not bn.weight
            assert layer.weight.requires_grad == bn.weight.requires_grad


def test_training_is_whitening_with_gradients_and_undo_restores() -> None:
    model, x = trained()
    state, mode = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    changes = fastwhiten.replace_batchnorm(model, "1")
    layer, y = changes.layer, model[0](x)
    expected = plain.whiten(y, eps=1e-5, gamma=layer.weight, beta=layer.bias)
    # Spectra from 1e-1 to 1e1 in float64.
    torch.testing.assert_close(model[:2](x), expected, rtol=0.0, atol=1e-10)
    more = fastwhiten.replace_batchnorm(model, ["2.*", "7"], group_size=3)
    assert more.layers["2.bn1"].groups == 2 and more.layers["7"].groups == 5
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match=r"expected one layer, got 3; look into \.layers"):
        _ = more.layer
    more.undo(), changes.undo()
    assert not any(isinstance(m, ChannelWhitening) for m in model.modules())
    model.load_state_dict(state)  # those of other layers have moved in training
    model.eval(), mode.eval()
    assert torch.equal(model(x), mode(x))


def test_modules_at_two_places_and_synchronised_ones() -> None:
    bn, sync = nn.BatchNorm1d(4, track_running_stats=False), nn.SyncBatchNorm(4)
    bn.bias = None  # torch 2.13 has it as an option
    model = nn.ModuleDict({"a": bn, "b": bn, "c": nn.Sequential(sync)})
    changes = fastwhiten.replace_batchnorm(model, lambda path, module: module.num_features == 4)
    assert model["a"] is model["b"] is changes.layers["b"] and model["a"].running_mean is None
    assert not model["a"].bias.any() and not model["a"].bias.requires_grad
    assert changes.layers["c.0"].process_group == "world"
    changes.undo()
    assert model["a"] is model["b"] is bn and model["c"][0] is sync


class WithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""


def test_what_cannot_be_replaced_is_named_and_nothing_is() -> None:
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Sequential(nn.BatchNorm2d(6)))
    for options, text in (
        ({"groups": 4}, r"replace_batchnorm, 1\.0 .*got 6 channels in 4 groups; choose a divisor"),
        ({"where": "layer1.*"}, r"select among 0, 1\.0, got 'layer1\.\*'"),
        ({"where": ["0", "2"]}, r"got \['0', '2'\], which \(or one pattern"),
        ({"group_size": 0}, "expected group_size to be a positive integer, got 0"),
        ({"eps": 0.0}, "expected eps to be a finite number > 0"),
    ):
        with pytest.raises(ValueError, match=text):
            fastwhiten.replace_batchnorm(model, **options)
    model[1].act = WithActivation(6)
    with pytest.raises(ValueError, match=r"expected 1\.act to be .* got WithActivation, which may"):
        fastwhiten.replace_batchnorm(model)
    assert not any(isinstance(m, ChannelWhitening) for m in model.modules())
    fastwhiten.replace_batchnorm(model, lambda path, module: type(module) is nn.BatchNorm2d)
    with pytest.raises(ValueError, match="got BatchNorm2d without; a single layer"):
        fastwhiten.replace_batchnorm(nn.BatchNorm2d(3))
