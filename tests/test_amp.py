"""Mixed precision: statistics in float32 under autocast, and recovery from overflow."""

import copy

import pytest
import torch
from torch import nn

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.helpers import plain, spectra

LOW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("low", LOW, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("rows", [30, 4], ids=["feature side", "sample side"])
def test_autocast_changes_no_bit_of_float32_input(
    rows: int, low: torch.dtype, backend: str
) -> None:
    """Matrix products inside would be done in half precision if autocast were not switched off."""
    x, grad = spectra.random(rows, 6).float(), torch.randn(rows, 6)
    expected = plain.value_and_grad(fastwhiten.whiten, x, grad, backend=backend)
    gram = x.T @ x
    outside = fastwhiten.whitening_matrix(gram, backend=backend)
    with torch.autocast("cpu", dtype=low):
        inside = plain.value_and_grad(fastwhiten.whiten, x, grad, backend=backend)
        matrix = fastwhiten.whitening_matrix(gram, backend=backend)
    assert torch.equal(inside[0], expected[0]) and torch.equal(inside[1], expected[1])
    assert torch.equal(matrix, outside)


@pytest.mark.parametrize("low", LOW, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("rows", [60, 5], ids=["feature side", "sample side"])
def test_layer_between_autocast_layers(rows: int, low: torch.dtype, backend: str) -> None:
    model = nn.Sequential(
        nn.Linear(10, 8), ChannelWhitening(8, affine=True, backend=backend), nn.Linear(8, 3)
    )
    x = torch.randn(rows, 10)
    with torch.autocast("cpu", dtype=low):
        features = model[0](x)
        y = model[1](features)
        loss = model[2](y).float().square().mean()
    assert features.dtype == y.dtype == low
    layer = model[1]
    assert layer.running_cov.dtype == layer.weight.dtype == torch.float32
    # The running covariance comes from the low-precision features, in float32: no more rounding.
    expected = 0.9 * torch.eye(8) + 0.1 * features.detach().double().T.cov(correction=0)
    torch.testing.assert_close(layer.running_cov[0].double(), expected, rtol=0.0, atol=1e-6)
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32 and torch.isfinite(parameter.grad).all()
    with torch.autocast("cpu", dtype=low):
        evaluated = layer.eval()(features)
    assert evaluated.dtype == low
    assert torch.equal(evaluated, layer(features)), "evaluation does not depend on autocast either"


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    x: torch.Tensor,
    label: torch.Tensor,
) -> float:
    with torch.autocast("cpu", dtype=torch.float16):
        loss = nn.functional.cross_entropy(model(x).float(), label)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.item()


@pytest.mark.parametrize("rows", [60, 6], ids=["feature side", "sample side"])
@pytest.mark.parametrize("where", ["input", "gradient"])
def test_grad_scaler_recovers_from_overflow(where: str, rows: int, backend: str) -> None:
    """One overflow: the step is skipped, the scale halved, the statistics kept; then on it goes."""
    model = nn.Sequential(
        nn.Linear(10, 8), ChannelWhitening(8, affine=True, backend=backend), nn.Linear(8, 3)
    )
    x, label = torch.randn(rows, 10), torch.arange(rows) % 3
    x[:, :3] += 2 * nn.functional.one_hot(label, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    losses = [step(model, optimizer, scaler, x, label) for _ in range(5)]
    assert scaler.get_scale() == 256.0

    before = copy.deepcopy(model.state_dict())
    if where == "input":
        broken = x.clone()
        broken[0, 0] = 1e6  # beyond float16's 65504: the first layer's output is infinite
        step(model, optimizer, scaler, broken, label)
    else:
        handle = model[1].register_full_backward_pre_hook(
            lambda module, grads: (torch.full_like(grads[0], float("inf")),)
        )
        step(model, optimizer, scaler, x, label)
        handle.remove()
    assert scaler.get_scale() == 128.0
    after = model.state_dict()
    for key in before:
        if where == "gradient" and ("running" in key or "num_batches" in key):
            continue  # the forward pass was sound, so its statistics count
        assert torch.equal(after[key], before[key]), key

    losses += [step(model, optimizer, scaler, x, label) for _ in range(25)]
    assert scaler.get_scale() == 128.0
    assert losses[-1] < 0.7 * losses[0], losses
    model.eval()
    assert torch.isfinite(model(x)).all()
