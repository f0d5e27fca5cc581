"""``fold_into_linear`` is exact."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.helpers import plain, spectra

LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "rows": ({"affine": True, "groups": 2}, (40, 6)),
    "tokens": ({"channel_dim": 2, "kind": "cholesky"}, (8, 5, 6)),
    "map": ({"kind": "pca", "affine": True}, (10, 6, 2, 2)),
    "matrix": ({"running": "matrix"}, (40, 6)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_exact_in_float64(name: str, bias: bool) -> None:
    options, shape = LAYERS[name]
    layer = ChannelWhitening(6, dtype=torch.float64, **options)
    rows = spectra.random(40, 6)
    if name == "map":
        x, linear = plain.from_rows(rows, torch.empty(shape)), nn.Conv2d(6, 3, 1, bias=bias)
    else:
        x, linear = rows.reshape(shape), nn.Linear(6, 3, bias=bias)
    layer(x)
    if layer.affine:
        nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    linear = linear.double().eval()
    state = copy.deepcopy((layer.state_dict(), linear.state_dict()))
    folded = fastwhiten.fold_into_linear(layer, linear)
    assert layer.training and not folded.training and type(folded) is type(linear)
    for now, before in zip((layer.state_dict(), linear.state_dict()), state, strict=True):
        assert all(torch.equal(now[key], before[key]) for key in before)
    # Entries of A up to 1e-3^-1/2 = 32.
    torch.testing.assert_close(folded(x), linear(layer.eval()(x)), rtol=0.0, atol=1e-11)


def test_float32_rounds_once() -> None:
    """Against the float64 truth: no worse than half a unit of the largest weight."""
    layer, linear = ChannelWhitening(6), nn.Linear(6, 3)
    layer(spectra.random(40, 6).float())
    folded = fastwhiten.fold_into_linear(layer, linear)
    matrix = plain.whitening_matrix(layer.running_cov[0].double(), "zca", 1e-3, "eigh")
    weight = linear.weight.double() @ matrix
    bias = linear.bias.double() - weight @ layer.running_mean.double()
    for ours, truth in ((folded.weight, weight), (folded.bias, bias)):
        assert ours.dtype == torch.float32
        assert (ours - truth).abs().max() <= truth.abs().max() * 2**-24 * 1.001


def test_refused() -> None:
    class Normalised(nn.Linear):
        pass

    layer, linear = ChannelWhitening(4), nn.Linear(4, 2)
    for other in (Normalised(4, 2), nn.Conv1d(4, 2, 1)):
        with pytest.raises(TypeError, match=f"got {type(other).__name__}; a subclass may"):
            fastwhiten.fold_into_linear(layer, other)
    with pytest.raises(ValueError, match="affine in evaluation mode, got ReLU, which is"):
        fastwhiten.fold_into_linear(nn.ReLU(), linear)
    with pytest.raises(ValueError, match="affine in evaluation mode, got ChannelWhitening"):
        fastwhiten.fold_into_linear(ChannelWhitening(4, track_running_stats=False), linear)
    for conv in (nn.Conv2d(4, 2, 3), nn.Conv2d(4, 2, 1, padding=1), nn.Conv2d(4, 2, 1, groups=2)):
        with pytest.raises(ValueError, match="expected a 1 x 1 convolution without padding and"):
            fastwhiten.fold_into_linear(layer, conv)
    linear.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(ValueError, match="expected linear without forward hooks"):
        fastwhiten.fold_into_linear(layer, linear)
