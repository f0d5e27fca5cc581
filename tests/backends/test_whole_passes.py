"""``whiten_forward`` and ``whiten_backward`` give what the stages give one after another."""

import pytest
import torch

from fastwhiten import backends
from fastwhiten.backends import reference
from tests.helpers import spectra

# The same kernels in the same order; groups taken one by one may be cut into other chunks, which
# moves sums by a few roundings, and the factorisation multiplies that by the condition number.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def _problem(layout, groups, weighted):
    rows, channels = 48, 12
    x = spectra.random(rows, channels)
    grad = spectra.random(rows, channels).flip(0).contiguous()
    if layout == "planes":
        x, grad = (t.reshape(6, 8, channels).transpose(1, 2).contiguous() for t in (x, grad))
    p = torch.linspace(0.0, 1.0, rows, dtype=x.dtype) if weighted else None
    p = None if p is None else p / p.sum()
    running = torch.eye(channels // groups, dtype=x.dtype).expand(groups, -1, -1).contiguous()
    return x, grad, p, running


@pytest.mark.parametrize("kind", [reference.ZCA, reference.PCA, reference.CHOLESKY])
@pytest.mark.parametrize("layout", ["rows", "planes"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("options", [False, True])
@pytest.mark.parametrize("shrink", [(0, 0.0), (1, 0.2), (2, 0.0), (3, 0.0)])
def test_whole_passes_equal_their_stages(kind, layout, groups, options, shrink, backend):
    stages = backends.get(backend)
    x, grad, p, running = _problem(layout, groups, options)
    gamma = torch.rand(x.shape[1], dtype=x.dtype) if options else None
    running, beta, weight = (running, gamma, 0.3) if options else (None, None, 1.0)
    mean, covariance = stages.statistics(x, p, groups, False)
    blending = (running, p, weight)
    rho = stages.intensity(x, mean, covariance, *blending, *shrink) if shrink[0] else None
    factors = stages.factor(covariance, running, rho, weight, 1e-3, kind)
    expected = (stages.apply(x, mean, factors[2], gamma, beta), mean, covariance, *factors)
    expected += (x.new_empty(0) if rho is None else rho,)
    passed = (x, gamma, beta, p, running, groups, weight, 1e-3, kind, False, *shrink)
    forward = stages.whiten_forward(*passed)
    torch.testing.assert_close(forward, expected, **TOLERANCE)

    grad_sum, cross = stages.backward_reduce(x, grad, mean, groups)
    inner, grad_gamma = stages.backward_matrix(cross, *factors, gamma, rho, weight, kind)
    dx = stages.backward_apply(x, grad, mean, grad_sum, factors[2], inner, gamma, p)
    backward = stages.whiten_backward(grad, x, mean, *factors, gamma, rho, p, weight, kind)
    torch.testing.assert_close(backward, (dx, grad_gamma, grad_sum), **TOLERANCE)


@pytest.mark.parametrize("groups", [1, 4])
def test_only_the_group_with_a_nan_is_nan(groups, backend):
    x = torch.randn(32, 8)
    x[3, 0] = float("nan")
    y = backends.get(backend).whiten_forward(
        x, None, None, None, None, groups, 1.0, 1e-3, 0, False, 0, 0.0
    )[0]
    assert y[:, : 8 // groups].isnan().all()
    assert y[:, 8 // groups :].isfinite().all()
