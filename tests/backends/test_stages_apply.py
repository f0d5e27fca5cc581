"""The stages that touch every row, and the sample side, against their definitions in float64."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastwhiten import backends
from tests.backends.test_stages import (
    DTYPES,
    FACTORS,
    KIND,
    LAYOUTS,
    WHY,
    K,
    acc,
    blend_arguments,
    data,
    doubled,
    grouped,
    matrices,
    shifted,
    ungrouped,
    weights,
)
from tests.helpers import plain, spectra
from tests.helpers.reference_error import assert_close_to_fp64


def parameters(name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Mean ``[C]``, matrix and inner ``[G, D, D]``, gamma and beta ``[C]`` in T, all arbitrary."""
    _, channels, groups, _ = LAYOUTS[name]
    size, draw = channels // groups, spectra.generator(1)
    options = {"dtype": torch.float64, "generator": draw}
    values = (
        torch.randn(channels, **options),
        torch.randn(groups, size, size, **options),
        torch.randn(groups, size, size, **options),
        torch.rand(channels, **options) + 0.5,
        torch.randn(channels, **options),
    )
    return tuple(v.to(acc(dtype)) for v in values)


def apply_plainly(x, mean, matrix, gamma, beta):
    y = (grouped(x, len(matrix)) - mean.reshape(len(matrix), 1, -1)) @ matrix
    y = ungrouped(y, x)
    shape = (1, -1) if x.dim() == 2 else (1, -1, 1)
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@pytest.mark.smoke
@pytest.mark.parametrize("affine", ["none", "gamma", "beta", "both"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", LAYOUTS)
def test_apply(name: str, dtype: torch.dtype, affine: str, backend: str) -> None:
    x = data(name, dtype)
    mean, matrix, _, gamma, beta = parameters(name, dtype)
    gamma = gamma if affine in ("gamma", "both") else None
    beta = beta if affine in ("beta", "both") else None
    arguments = (x, mean, matrix, gamma, beta)
    y = backends.get(backend).apply(*arguments)
    truth = apply_plainly(*doubled(*arguments))
    yardstick = apply_plainly(x.to(acc(dtype)), *arguments[1:]).to(dtype)
    scale = matrix.shape[1] ** 0.5  # sums of D products of random sign
    assert y.is_contiguous()
    assert_close_to_fp64(y, truth, yardstick, K, WHY, scale)


def reduce_plainly(x, grad, mean, groups):
    centered = grouped(x, groups) - mean.reshape(groups, 1, -1)
    grads = grouped(grad, groups)
    return grads.sum(1).flatten(), torch.einsum("gmi,gmj->gij", centered, grads)


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", LAYOUTS)
def test_backward_reduce(name: str, dtype: torch.dtype, backend: str) -> None:
    x, grad = data(name, dtype), data(name, dtype, seed=7)
    groups, t = LAYOUTS[name][2], acc(dtype)
    mean = parameters(name, dtype)[0]
    ours = backends.get(backend).backward_reduce(x, grad, mean, groups)
    truth = reduce_plainly(x.double(), grad.double(), mean.double(), groups)
    yardstick = reduce_plainly(x.to(t), grad.to(t), mean, groups)
    for value, ref, same in zip(ours, truth, yardstick, strict=True):
        # Sums of M terms; the same term by term, so the order makes the difference: sqrt(M).
        assert_close_to_fp64(value, ref, same, K, WHY, LAYOUTS[name][0] ** 0.5)


def backward_apply_plainly(x, grad, mean, grad_sum, matrix, inner, gamma, p):
    groups = len(matrix)
    centered = grouped(x, groups) - mean.reshape(groups, 1, -1)
    p = torch.full_like(centered[0, :, 0], 1 / centered.shape[1]) if p is None else p
    grads = grouped(grad, groups) - p[:, None] * grad_sum.reshape(groups, 1, -1)
    grads = grads if gamma is None else grads * gamma.reshape(groups, 1, -1)
    return ungrouped(grads @ matrix.mT - p[:, None] * (centered @ inner), x)


@pytest.mark.smoke
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("affine", [False, True], ids=["", "gamma"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", LAYOUTS)
def test_backward_apply(
    name: str, dtype: torch.dtype, affine: bool, weighted: bool, backend: str
) -> None:
    x, grad = data(name, dtype), data(name, dtype, seed=7)
    mean, matrix, inner, gamma, grad_sum = parameters(name, dtype)
    inner = inner + inner.mT  # always symmetric where it comes from
    rows = LAYOUTS[name][0]
    # grad_sum and inner are sums over rows where they come from: as large as M.
    fixed = (mean, rows * grad_sum, matrix, rows * inner, gamma if affine else None)
    p = weights(rows, weighted, acc(dtype))
    ours = backends.get(backend).backward_apply(x, grad, *fixed, p)
    truth = backward_apply_plainly(*doubled(x, grad, *fixed, p))
    t = acc(dtype)
    yardstick = backward_apply_plainly(x.to(t), grad.to(t), *fixed, p).to(dtype)
    assert_close_to_fp64(ours, truth, yardstick, K, WHY, matrix.shape[1] ** 0.5)


@functools.lru_cache(maxsize=8)
def factors(stages: Any, shape: tuple[int, int], kind: str, blended: bool, shrunk: bool, dtype):
    """Eigenvalues, basis and matrix: once for the cases with and without gamma."""
    return stages.factor(*blend_arguments(shape, blended, shrunk, dtype), 1e-3, KIND[kind])


@pytest.mark.smoke
@pytest.mark.parametrize("affine", [False, True], ids=["", "gamma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shrunk", [False, True], ids=["", "shrunk"])
@pytest.mark.parametrize("blended", [False, True], ids=["", "blended"])
@pytest.mark.parametrize("kind", KIND)
@pytest.mark.parametrize("shape", FACTORS)
def test_backward_matrix(
    shape: tuple[int, int],
    kind: str,
    blended: bool,
    shrunk: bool,
    affine: bool,
    dtype: torch.dtype,
    backend: str,
) -> None:
    """``inner`` is -2 times the symmetric gradient of ``sum(cross gamma W(S))``, by autograd."""
    groups, size = shape
    s, running, rho, weight = blend_arguments(shape, blended, shrunk, dtype)
    stages, eps = backends.get(backend), 1e-3
    eigenvalues, basis, matrix = factors(stages, shape, kind, blended, shrunk, dtype)
    draw = spectra.generator(2)
    cross = torch.randn(groups, size, size, dtype=torch.float64, generator=draw).to(dtype)
    gamma = (torch.rand(groups * size, generator=draw) + 0.5).to(dtype) if affine else None
    inner, grad_gamma = stages.backward_matrix(
        cross, eigenvalues, basis, matrix, gamma, rho, weight, KIND[kind]
    )
    assert torch.equal(inner, inner.mT), "exactly symmetric"

    def plainly(t: torch.dtype, route: str) -> tuple[Tensor, Tensor]:
        leaf = s.to(t).requires_grad_()
        others = [a.to(t) if isinstance(a, Tensor) else a for a in (running, rho, weight)]
        w = matrices(kind, eps, (leaf + leaf.mT) / 2, *others, route=route)
        scale = torch.ones(groups, 1, size) if gamma is None else gamma.reshape(groups, 1, size)
        loss = (cross.to(t) * scale.to(t) * w).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return -2 * gradient, (w.detach() * cross.to(t)).sum(1).flatten()

    truth, yardstick = plainly(torch.float64, "iteration"), plainly(dtype, "eigh")
    # D products per entry on matrices with condition numbers of 10 to 100; PCA divides by gaps
    # between eigenvalues, which are about 1 / D of the spectrum.
    scale = (256.0 if kind == "pca" else 32.0) * size
    assert_close_to_fp64(inner, truth[0], yardstick[0], K, WHY, scale)
    assert_close_to_fp64(grad_gamma, truth[1], yardstick[1], K, WHY, 32.0 * size)


def test_backward_matrix_tie_policy_of_pca(backend: str) -> None:
    """In a tied block ``R`` is the symmetric part of ``F``; across blocks it is the formula."""
    stages, size = backends.get(backend), 5
    eigenvalues = torch.tensor([[1.0, 1.0 + 1e-6, 2.0, 2.0, 3.0]])  # 1e-6 < 64 * 5 * 1.2e-7
    basis = torch.eye(size).unsqueeze(0)
    matrix = basis * eigenvalues.rsqrt().unsqueeze(-2)
    cross = torch.randn(1, size, size)
    inner, _ = stages.backward_matrix(
        cross, eigenvalues, basis, matrix, None, None, 1.0, KIND["pca"]
    )
    v, f = matrix[0].double(), (matrix.mT @ cross)[0].double()
    expected = torch.empty(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            li, lj = eigenvalues[0, i].item(), eigenvalues[0, j].item()
            tied = abs(li - lj) <= 64 * size * torch.finfo(torch.float32).eps * max(li, lj)
            w = 0.5 if tied else li / (li - lj)
            expected[i, j] = w * f[i, j] + (1 - w) * f[j, i]
    assert expected.abs().max() < 100, "no tied gap was divided by"
    # Five products per entry of numbers of order 10: 1e-5 is 100 roundings.
    torch.testing.assert_close(inner[0].double(), v @ expected @ v.T, rtol=1e-5, atol=1e-5)


SAMPLE_SHAPES = {"two": (2, 5, 1), "odd": (7, 33, 1), "groups": (5, 24, 3), "wide": (20, 66, 1)}


@pytest.mark.smoke
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
@pytest.mark.parametrize("shrunk", [False, True], ids=["", "shrunk"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", SAMPLE_SHAPES)
def test_sample_side(
    name: str, dtype: torch.dtype, shrunk: bool, weighted: bool, backend: str
) -> None:
    """The three stages in a row equal ZCA on the feature side and its gradient."""
    rows, channels, groups = SAMPLE_SHAPES[name]
    stages, eps, t = backends.get(backend), 1e-2, acc(dtype)
    x = spectra.random(rows, channels).to(dtype)
    grad = spectra.random(rows, channels, seed=7).to(dtype)
    p = weights(rows, weighted, t, zeros=False)
    rho = torch.full((groups,), 0.2, dtype=t) if shrunk else None
    mean, scaled, gram = stages.sample_statistics(x, p, groups, False)
    assert torch.equal(gram, gram.mT)
    eigenvalues, vectors = stages.eigh(gram)
    y, projected = stages.sample_apply(scaled, eigenvalues, vectors, p, rho, eps, dtype)
    dx = stages.sample_backward(grad, projected, eigenvalues, vectors, p, rho, eps)
    assert y.dtype == dx.dtype == dtype and mean.dtype == gram.dtype == t

    options = {"groups": groups, "eps": eps, "shrinkage": 0.2 if shrunk else None}
    truth = plain.value_and_grad(
        plain.whiten, x.double(), grad.double(), sample_weight=p, route="iteration", **options
    )
    yardstick = plain.value_and_grad(plain.whiten, x, grad, sample_weight=p, **options)
    assert_close_to_fp64(y, truth[0], yardstick[0], K, WHY, channels**0.5)
    assert_close_to_fp64(dx, truth[1], yardstick[1], K, WHY, channels**0.5)
    uniform = torch.full((rows,), 1 / rows, dtype=torch.float64) if p is None else p.double()
    centered = x.double() - uniform @ x.double()
    assert_close_to_fp64(
        scaled,
        centered * uniform.sqrt().unsqueeze(1),
        ((x.to(t) - uniform.to(t) @ x.to(t)) * uniform.to(t).sqrt().unsqueeze(1)),
        K,
        WHY,
    )


@pytest.mark.parametrize("far", [1e4, 1e8])
def test_a_sample_without_weight_may_lie_anywhere(far: float, backend: str) -> None:
    x = spectra.random(7, 40).float()
    p = weights(7, True, torch.float64, zeros=False)
    assert p is not None
    x[0], p[0] = far, 0.0
    p = (p / p.sum()).float()
    mean, scaled, gram = backends.get(backend).sample_statistics(x, p, 1, False)

    def expected(dtype: torch.dtype) -> tuple[Tensor, ...]:
        rows, q = x[1:].to(dtype), p[1:].to(dtype)
        scaled = (rows - q @ rows) * q.sqrt().unsqueeze(1)
        return q @ rows, scaled, scaled @ scaled.T

    ours = mean, scaled[1:], gram[0, 1:, 1:]
    truth, yardstick = expected(torch.float64), expected(torch.float32)
    for a, b, c in zip(ours, truth, yardstick, strict=True):
        assert_close_to_fp64(a, b, c, K, WHY)
    assert not scaled[0].any() and not gram[0, 0].any()


def test_sample_statistics_in_double_precision(backend: str) -> None:
    x = spectra.large_mean(5, 9).float()
    results = backends.get(backend).sample_statistics(x, None, 1, True)
    assert all(r.dtype == torch.float64 for r in results)
    centered = x.double() - x.double().mean(0)
    # Sums of five numbers of 1e4: the cancellation of the mean costs four digits of sixteen.
    torch.testing.assert_close(results[2][0], centered @ centered.T / 5, rtol=1e-11, atol=1e-11)


def test_shifted_is_the_documented_formula() -> None:
    """The helper of these tests itself, on numbers worked out by hand."""
    s = torch.tensor([[[2.0, 1.0], [1.0, 4.0]]])
    blend, shift = shifted(s, 3 * torch.eye(2).unsqueeze(0), torch.tensor([0.5]), 0.5)
    assert blend.tolist() == [[[1.25, 0.25], [0.25, 1.75]]] and shift.tolist() == [1.5]
