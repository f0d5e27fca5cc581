"""Every kernel once, on small inputs: what `make gpu` runs under compute-sanitizer too.

That makes kernels a hundred times slower, so the cases are few: every path of the eigensolvers, of
the layouts, of the sample side and of the options.
"""

from __future__ import annotations

import pytest
import torch

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.gpu.device import DEVICE

# (shape, groups): a warp's eigensolver, a block's, one on the Cholesky factor; narrow groups, maps,
# tiles of channels, the sample side
SHAPES = [((70, 12), 3), ((150, 48), 1), ((140, 100), 1), ((3, 24, 5, 7), 2), ((20, 70), 2)]
ZCA = [("zca", dtype) for dtype in ("float32", "float64", "float16", "bfloat16")]
KINDS = [*ZCA, ("pca", "float32"), ("cholesky", "float32"), ("cholesky", "float64")]


def finite(*tensors: torch.Tensor | None) -> bool:
    return all(t is not None and bool(t.isfinite().all()) for t in tensors)


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_whole_passes(shape, groups, kind, dtype, kernels) -> None:
    x = torch.randn(shape).to(DEVICE, getattr(torch, dtype)).requires_grad_()
    weight = (torch.rand(shape[0]) + 0.5).to(DEVICE) if dtype == "float32" else None
    y = fastwhiten.whiten(x, kind=kind, groups=groups, sample_weight=weight, backend=kernels)
    y.backward(torch.randn_like(y))
    assert finite(y, x.grad)


@pytest.mark.parametrize("shrinkage", [0.2, "oas", "ledoit-wolf"])
def test_a_second_step_begins_from_the_eigenvectors_of_the_first(shrinkage, kernels) -> None:
    options = {"batch_weight": 0.5, "shrinkage": shrinkage, "affine": True, "backend": kernels}
    layer = ChannelWhitening(24, groups=2, **options).to(DEVICE)
    for _ in range(2):
        x = torch.randn(80, 24).to(DEVICE).requires_grad_()
        y = layer(x)
        y.pow(3).sum().backward()
        assert finite(y, x.grad, *layer.buffers())


@pytest.mark.parametrize("size", [2, 16, 33, 64, 65, 100])
def test_eigensolvers_cold_and_from_a_start(size, kernels) -> None:
    rows = torch.randn(2, 2 * size, size).to(DEVICE)
    a = rows.mT @ rows / (2 * size)
    start = fastwhiten.symmetric_eigh(a, backend=kernels)[1]
    assert finite(start, *fastwhiten.symmetric_eigh(a, start=start, backend=kernels))
