"""Real powers of symmetric matrices and their derivatives, where eigenvalues are close or equal."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastwhiten
from fastwhiten.divided_differences import first, second
from tests.helpers.spectra import generator

POWERS = (0.5, -0.5, -1.0, -0.25, 1 / 3, 2.0, 1.0, 0.0)
# Gaps between eigenvalues: none, those of rounding, just inside and outside of the series, large.
SPECTRA = {
    "equal": [2.0, 2.0, 2.0, 2.0],
    "close": [1.0, 1.0 + 1e-14, 1.0 + 1e-9, 1.0 + 1e-4],
    "near the border": [1.0, 1.2, 1.26, 1.6],
    "apart": [1e-2, 0.3, 0.3, 10.0],
}


def matrix(values: list[float], seed: int = 0) -> Tensor:
    size = len(values)
    draw = {"dtype": torch.float64, "generator": generator(seed)}
    q = torch.linalg.qr(torch.randn(size, size, **draw))[0]
    a = (q * torch.tensor(values, dtype=torch.float64)) @ q.T
    return (a + a.T) / 2


def symmetric(size: int, seed: int) -> Tensor:
    b = torch.randn(size, size, dtype=torch.float64, generator=generator(seed))
    return b + b.T


def derivatives(function, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The first derivative in direction b; the second in b and c. Both are self-adjoint."""
    a = a.clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(a), a, b, create_graph=True)
    (grad_of_grad,) = torch.autograd.grad(grad, a, c)
    return grad.detach(), grad_of_grad


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("p", POWERS)
def test_powers_and_derivatives(p: float, name: str, backend: str) -> None:
    a = matrix(SPECTRA[name]).requires_grad_()

    def function(t: Tensor) -> Tensor:
        return fastwhiten.matrix_power((t + t.mT) / 2, p, backend=backend)

    values, vectors = torch.linalg.eigh(a.detach())
    expected = vectors @ torch.diag(values**p) @ vectors.T
    torch.testing.assert_close(function(a).detach(), expected, rtol=0, atol=1e-13 * expected.norm())
    step = 1e-5 * SPECTRA[name][0]  # of the differences: small against the smallest eigenvalue
    assert gradcheck(function, a, eps=step, fast_mode=True, rtol=1e-5)
    assert gradgradcheck(function, a, eps=step, fast_mode=True, rtol=1e-5)


@pytest.mark.parametrize("name", SPECTRA)
def test_derivatives_equal_those_of_gap_free_formulas(name: str) -> None:
    """Of products and of the inverse, through autograd; and of roots of roots."""
    a, b, c = matrix(SPECTRA[name]), symmetric(4, 1), symmetric(4, 2)
    power = fastwhiten.matrix_power
    pairs = [
        (lambda t: power(t, 3), lambda t: t @ t @ t),
        (lambda t: power(t, -1), torch.linalg.inv),
        (lambda t: power(t, 0.25), lambda t: power(power(t, 0.5), 0.5)),
        (lambda t: power(t, -0.5), lambda t: torch.linalg.inv(power(t, 0.5))),
    ]
    condition = max(SPECTRA[name]) / min(SPECTRA[name])
    for ours, reference in pairs:
        for found, plain in zip(
            derivatives(ours, a, b, c), derivatives(reference, a, b, c), strict=True
        ):
            expected = (plain + plain.T) / 2
            assert (found - expected).norm() <= 1e-13 * condition * expected.norm()


def test_divided_differences_are_accurate_at_every_distance() -> None:
    """Against polynomials and fractions that have no differences in them."""
    base = torch.tensor([1e-7, 1.0, 3e5], dtype=torch.float64).reshape(3, 1, 1)
    gaps = [0.0, 1e-16, 1e-12, 1e-8, 1e-4, 0.1, 0.24999, 0.25001, 0.6, 3.0, 1e3, 1e8]
    relative = 1 + torch.tensor(gaps, dtype=torch.float64)
    x, y, z = base, base * relative.reshape(-1, 1), base * relative
    for arguments in ((x, y, z), (y, x, z), (z, y, x)):
        u, v, w = arguments
        root = (u.sqrt(), v.sqrt(), w.sqrt())
        of_root = -1 / ((root[0] + root[1]) * (root[1] + root[2]) * (root[0] + root[2]))
        for p, pair, triple in (
            (-1.0, -1 / (u * v), 1 / (u * v * w)),
            (0.5, 1 / (root[0] + root[1]), of_root),
            (3.0, u * u + u * v + v * v, u + v + w),
        ):
            torch.testing.assert_close(first(u, v, p), pair, rtol=1e-14, atol=0)
            torch.testing.assert_close(second(u, v, w, p), triple, rtol=5e-14, atol=0)


def test_third_derivatives_of_roots_and_of_nothing_else() -> None:
    a = matrix([1.0, 1.0, 2.0]).requires_grad_()
    for p in (0.5, -0.5):
        total = fastwhiten.matrix_power(a, p).square().sum()
        plain = a.trace() if p > 0 else torch.linalg.inv(a).trace()
        for _ in range(3):
            (found,) = torch.autograd.grad(total, a, create_graph=True)
            (expected,) = torch.autograd.grad(plain, a, create_graph=True, materialize_grads=True)
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
            total, plain = found.square().sum(), expected.square().sum() + 0 * a.sum()
    total = fastwhiten.matrix_power(a, 0.25).square().sum()
    for _ in range(2):
        total = torch.autograd.grad(total, a, create_graph=True)[0].square().sum()
    with pytest.raises(NotImplementedError, match="at most two derivatives"):
        total.backward()


def test_vmap_batches_start_and_dtype(backend: str) -> None:
    a = torch.stack([matrix(v, i) for i, v in enumerate(SPECTRA.values())]).float()
    start = fastwhiten.symmetric_eigh(a, backend=backend)[1]

    def gradient(t: Tensor, s: Tensor | None = None) -> Tensor:
        def loss(u: Tensor) -> Tensor:
            return fastwhiten.matrix_power(u, -0.25, start=s, backend=backend)[0, 1]

        return torch.func.grad(loss)(t)

    expected = torch.stack([gradient(t) for t in a])
    assert expected.dtype == torch.float32
    for dim in (0, 2):
        moved = [t.movedim(0, dim) for t in (a, start)]
        found = torch.func.vmap(gradient, in_dims=dim)(*moved)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.func.vmap(gradient)(a.repeat(1, 1, 1)), expected, rtol=1e-4, atol=1e-5
    )
    batch = a.reshape(2, 2, 4, 4)
    power = fastwhiten.matrix_power(batch, 2.0, backend=backend)
    torch.testing.assert_close(power, batch @ batch, rtol=1e-5, atol=1e-4)


def test_semidefinite_and_not_finite(backend: str) -> None:
    v = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    a = v @ v.T  # eigenvalues 0 and 25
    root = fastwhiten.matrix_power(a, 0.5, backend=backend)
    torch.testing.assert_close(root, a / 5, rtol=0, atol=1e-7)  # the root of rounding errors
    inverse = fastwhiten.matrix_power(a, -1, eps=1e-3, backend=backend)
    expected = torch.linalg.inv(a + 1e-3 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(inverse, expected, rtol=0, atol=1e-8)  # of 1e3
    a = torch.stack([torch.eye(2), torch.full((2, 2), math.nan)])
    found = fastwhiten.matrix_power(a, -0.5, backend=backend)
    assert torch.equal(found[0], torch.eye(2)) and found[1].isnan().all()


def test_errors() -> None:
    a = torch.eye(2)
    for p, exception, message in (
        ("2", TypeError, "expected p to be a number, got str"),
        (math.inf, ValueError, "expected p to be finite, got inf"),
    ):
        with pytest.raises(exception, match=message):
            fastwhiten.matrix_power(a, p)
    with pytest.raises(ValueError, match="expected eps to be a finite number >= 0, got -1"):
        fastwhiten.matrix_power(a, 2, eps=-1)


def test_compile_gives_the_same() -> None:
    a = matrix(SPECTRA["apart"]).requires_grad_()

    def loss(t: Tensor) -> Tensor:
        return fastwhiten.matrix_power(t, -0.25).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for function in (loss, compiled):
        (grad,) = torch.autograd.grad(function(a), a)
        expected = -0.5 * fastwhiten.matrix_power(a.detach(), -1.5)  # of the trace of a^(-1/2)
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12 * expected.norm())
