"""Stages whose matrix products are large enough for the CPU kernels' own blocked product.

Truth: the same stage of the specification in float64; yardstick: in the dtype under test, where its
products are the BLAS library's.
"""

import pytest
import torch
from torch import Tensor

from fastwhiten import backends
from fastwhiten.backends import reference
from tests.helpers import spectra
from tests.helpers.reference_error import assert_close_to_fp64

K, WHY = 4.0, "slices of 128 are summed one after another, BLAS chooses its own"
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])

# (M, C): products of 2 M C^2 >= 1e8 operations; not multiples of any block, and one that is.
SHAPES = [(449, 389), (640, 384), (1031, 515)]
# No more rows than channels: 2 M^2 C >= 1e8.
WIDE_SHAPES = [(389, 449), (384, 1040)]


def matrix(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=spectra.generator(seed))


def compare(stage: str, arguments: list[Tensor | float | None], dtype: torch.dtype):
    """Run a stage on rounded arguments and compare every result."""
    rounded = [a.to(dtype) if isinstance(a, Tensor) else a for a in arguments]
    wide = [a.double() if isinstance(a, Tensor) else a for a in rounded]
    ours = getattr(backends.get("native"), stage)(*rounded)
    plain = getattr(reference, stage)(*rounded)
    truth = getattr(reference, stage)(*wide)
    if isinstance(truth, Tensor):
        ours, plain, truth = (ours,), (plain,), (truth,)
    for one, other, exact in zip(ours, plain, truth, strict=True):
        assert_close_to_fp64(one, exact, other, K, WHY)


@DTYPES
@pytest.mark.parametrize(("rows", "channels"), SHAPES)
def test_feature_side(rows: int, channels: int, dtype: torch.dtype) -> None:
    x, grad = spectra.random(rows, channels), matrix(rows, channels, 1)
    mean, w, inner = x.mean(0), matrix(channels, channels, 2), matrix(channels, channels, 3)
    inner = (inner + inner.T).unsqueeze(0)
    compare("statistics", [x, None, 1, False], dtype)
    compare("apply", [x, mean, w.unsqueeze(0), None, None], dtype)
    compare("backward_reduce", [x, grad, mean, 1], dtype)
    arguments = [x, grad, mean, grad.sum(0), w.unsqueeze(0), inner, None, None]
    compare("backward_apply", arguments, dtype)


@DTYPES
def test_planes(dtype: torch.dtype) -> None:
    """Channels as rows of memory: the transposed operands."""
    x = spectra.random(6 * 100, 389).reshape(6, 100, 389).transpose(1, 2).contiguous()
    grad = matrix(6 * 389, 100, 1).reshape(6, 389, 100)
    w = matrix(389, 389, 2).unsqueeze(0)
    compare("statistics", [x, None, 1, False], dtype)
    compare("apply", [x, x.mean((0, 2)), w, None, None], dtype)
    compare("backward_reduce", [x, grad, x.mean((0, 2)), 1], dtype)


@DTYPES
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize(("rows", "channels"), WIDE_SHAPES)
def test_sample_side(rows: int, channels: int, weighted: bool, dtype: torch.dtype) -> None:
    x, grad = spectra.random(rows, channels), matrix(rows, channels, 1)
    p = torch.linspace(0.5, 1.5, rows, dtype=torch.float64) / rows if weighted else None
    compare("sample_statistics", [x, p, 1, False], dtype)
    vectors = torch.linalg.qr(matrix(rows, rows, 4))[0].unsqueeze(0).contiguous()
    values = torch.linspace(0.01, 2, rows, dtype=torch.float64).unsqueeze(0)
    scaled = x / rows**0.5
    rounded = [None if t is None else t.to(dtype) for t in (scaled, values, vectors, p)]
    wide = [None if t is None else t.double() for t in rounded]
    rho, eps = None, 1e-3
    ours = backends.get("native").sample_apply(*rounded, rho, eps, dtype)
    plain = reference.sample_apply(*rounded, rho, eps, dtype)
    truth = reference.sample_apply(*wide, rho, eps, torch.float64)
    for one, other, exact in zip(ours, plain, truth, strict=True):
        assert_close_to_fp64(one, exact, other, K, WHY)
    compare("sample_backward", [grad, truth[1], values, vectors, p, rho, eps], dtype)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    x, grad = spectra.random(449, 389).float(), matrix(449, 389, 1).float()
    w = matrix(389, 389, 2).float().unsqueeze(0)
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            stages = backends.get("native")
            mean, covariance = stages.statistics(x, None, 1, False)
            cross = stages.backward_reduce(x, grad, mean, 1)[1]
            results.append((covariance, cross, stages.apply(x, mean, w, None, None)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
