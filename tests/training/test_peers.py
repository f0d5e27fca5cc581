"""The plain-PyTorch baselines are right, so that comparisons with them mean something."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.models.peers import (
    CholeskyWhitening,
    EagerWhitening,
    IterNorm,
    cholesky_whiten,
    eager_whiten,
    iternorm_whiten,
)

LAYERS = [EagerWhitening, CholeskyWhitening, IterNorm]
FUNCTIONS = [eager_whiten, cholesky_whiten, iternorm_whiten]


def _batch(*shape: int, seed: int = 0) -> Tensor:
    """Correlated float64 batch [N, C, *spatial] with a mean."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    mix = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    return torch.einsum("nc...,cd->nd...", x, mix) + 3.0


def _rows(x: Tensor) -> Tensor:
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _covariance(x: Tensor) -> Tensor:
    """Biased covariance [C, C] of [N, C, *spatial]."""
    rows = _rows(x)
    centred = rows - rows.mean(0)
    return centred.T @ centred / rows.shape[0]


@pytest.mark.parametrize("function", [eager_whiten, cholesky_whiten])
@pytest.mark.parametrize("shape", [(64, 6), (8, 6, 10), (4, 6, 5, 5)])
@pytest.mark.parametrize("groups", [1, 2])
def test_exact_peers_whiten_each_group(function, shape, groups):
    y = function(_batch(*shape), groups, 1e-12)
    assert y.shape == shape
    size = 6 // groups
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        covariance = _covariance(y[:, part])
        assert torch.allclose(covariance, torch.eye(size, dtype=torch.float64), atol=1e-8)
    assert _rows(y).mean(0).abs().max() < 1e-10


def test_eager_is_zca_and_cholesky_is_triangular():
    x = _batch(64, 5)
    covariance = _covariance(x) + 0.1 * torch.eye(5, dtype=torch.float64)
    centred = x - x.mean(0)
    zca = eager_whiten(x, eps=0.1)
    root = torch.linalg.lstsq(centred, zca).solution  # the matrix W with Y = Xc W
    assert torch.allclose(root, root.T, atol=1e-10)
    assert torch.allclose(root @ covariance @ root, torch.eye(5, dtype=torch.float64), atol=1e-9)
    root = torch.linalg.lstsq(centred, cholesky_whiten(x, eps=0.1)).solution
    assert torch.allclose(root.T @ covariance @ root, torch.eye(5, dtype=torch.float64), atol=1e-9)
    assert root.tril(-1).abs().max() < 1e-10


def test_iternorm_first_step_by_hand():
    # Two rows +-a in one channel: S = a^2 + eps, S_N = 1, so P_T = 1 and y = x / sqrt(S).
    x = torch.tensor([[2.0], [-2.0]])
    assert torch.allclose(iternorm_whiten(x, eps=0.5), x / 4.5**0.5)
    # Diagonal S = diag(1, 3), S_N = diag(1/4, 3/4): P_1 = diag((3 - 1/4) / 2, (3 - 3/4) / 2).
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3**0.5], [0.0, -(3**0.5)]]) * 2**0.5
    expected = x * torch.tensor([1.375, 1.125]) / 2.0
    assert torch.allclose(iternorm_whiten(x, eps=1e-8, iterations=1), expected, atol=1e-6)


def test_iternorm_tends_to_zca():
    x = _batch(256, 4)
    errors = [
        (iternorm_whiten(x, iterations=t) - eager_whiten(x)).abs().max().item() for t in (2, 4, 7)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients(function):
    x = _batch(7, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, 2, 1e-2), x)


def _averaged(layer: type[nn.Module], x: Tensor) -> Tensor:
    """What a layer of two groups averages of a batch [N, 6, *spatial], [2, 3, 3]."""
    covariance = _covariance(x)
    if layer is not IterNorm:
        return torch.stack([covariance[:3, :3], covariance[3:, 3:]])
    centred = _rows(x) - _rows(x).mean(0)
    whitened = iternorm_whiten(_rows(x), groups=2)
    parts = (slice(3), slice(3, 6))  # the matrices that take centred rows to whitened ones
    return torch.stack([torch.linalg.lstsq(centred[:, p], whitened[:, p]).solution for p in parts])


def test_iternorm_evaluates_with_the_average_of_the_whitening_matrices():
    layer = IterNorm(1, momentum=0.5, eps=1e-12).double()
    for scale in (1.0, 4.0):  # matrices 1 and 1/4; variances 1 and 16
        layer(scale * torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    y = layer.eval()(torch.ones(1, 1, dtype=torch.float64))
    assert y.item() == pytest.approx((1 + 1 / 4) / 2)  # not (8.5) ** -0.5


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shape", [(32, 6), (4, 6, 3, 3)])
def test_running_statistics_and_evaluation(layer, shape):
    whitening = layer(6, groups=2, momentum=0.25, eps=1e-3).double()
    x = _batch(*shape)
    whitening(x)
    assert torch.allclose(whitening.running_mean, 0.25 * _rows(x).mean(0))
    batch = _averaged(layer, x)
    expected = 0.75 * torch.eye(3, dtype=torch.float64) + 0.25 * batch
    running = getattr(whitening, layer._averaged)
    assert torch.allclose(running, expected)
    assert whitening.num_batches_tracked == 1
    # With the batch's own statistics as running ones, evaluation is training's map.
    whitening.running_mean.copy_(_rows(x).mean(0))
    running.copy_(batch)
    state = {name: value.clone() for name, value in whitening.state_dict().items()}
    trained = layer(6, groups=2, momentum=0.25, eps=1e-3).double()(x)
    assert torch.allclose(whitening.eval()(x), trained)
    assert all(torch.equal(state[name], value) for name, value in whitening.state_dict().items())


@pytest.mark.parametrize("layer", LAYERS)
def test_half_precision_and_autocast_compute_in_float32(layer):
    x = _batch(32, 4).float()
    rounded = x.bfloat16()
    half = layer(4)(rounded)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, layer(4)(rounded.float()).bfloat16())
    expected = layer(4)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(layer(4)(x), expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_wrong_use_is_explained(layer):
    name = layer.__name__
    with pytest.raises(ValueError, match=f"{name}: expected groups to divide num_features"):
        layer(6, groups=4)
    with pytest.raises(ValueError, match=f"{name}: expected eps > 0 and 0 < momentum <= 1"):
        layer(6, eps=0.0)
    whitening: nn.Module = layer(6)
    with pytest.raises(ValueError, match=r"at least two rows in training mode, got \(1, 6\)"):
        whitening(torch.zeros(1, 6))
    with pytest.raises(ValueError, match=r"expected x of shape \[N, 6, ...\], got \(3, 5\)"):
        whitening(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="at least one row"):
        whitening(torch.zeros(0, 6))
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
        whitening(torch.zeros(3, 6, dtype=torch.int64))
    assert whitening.eval()(torch.zeros(1, 6)).shape == (1, 6)


def test_iternorm_needs_an_iteration():
    with pytest.raises(ValueError, match="expected iterations >= 1, got 0"):
        IterNorm(4, iterations=0)
    with pytest.raises(ValueError, match="expected iterations >= 1, got 0"):
        iternorm_whiten(torch.zeros(3, 2), iterations=0)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_layers_keep_the_memory_format(layer, training):
    x = _batch(5, 6, 4, 3).contiguous()
    whitening = layer(6, groups=2, dtype=torch.float64)
    whitening(x)
    whitening.train(training)
    last = x.contiguous(memory_format=torch.channels_last)
    y = whitening(x)
    assert y.is_contiguous()
    whitening.running_mean.zero_(), getattr(whitening, layer._averaged).copy_(torch.eye(3))
    y, z = whitening(x), whitening(last)
    assert z.is_contiguous(memory_format=torch.channels_last) and not z.is_contiguous()
    if not training:
        assert torch.allclose(y, z)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shape", [(0, 6), (0, 6, 4), (0, 6, 4, 3), (2, 6, 0)])
def test_evaluation_of_nothing(layer, shape):
    assert layer(6, groups=2).eval()(torch.empty(shape)).shape == shape


@pytest.mark.parametrize("layer", LAYERS)
def test_device_and_dtype(layer):
    buffers = layer(6, device="meta", dtype=torch.float64).state_dict()
    assert all(t.is_meta for t in buffers.values())
    assert [t.dtype for t in buffers.values()] == [torch.float64, torch.float64, torch.int64]
