"""Symmetric matrices that other eigensolvers are tested with, and what is asked of a solution.

Types 1 to 18 are those of LAPACK's DDRVST; the others, and the gates, those of GPU MODE's contest
``eigh``. All matrices are made in float64 and rounded; a whole stack of them is a mixed batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.helpers.spectra import generator

# Norms relative to D epsilon |A|_1, or D epsilon: a correct solver is at a few hundredths of them.
GATES = {"residual": 200.0, "eigenvalues": 200.0, "reconstruction": 400.0, "orthogonality": 100.0}


def matrices(size: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Return matrices ``[size, size]`` by name, exactly symmetric and of one dtype."""
    limits, draw = torch.finfo(dtype), generator(seed)
    options = {"dtype": torch.float64, "generator": draw}
    large, small = limits.max**0.5, limits.tiny**0.5

    def uniform() -> Tensor:
        half = torch.rand(size, size, **options) - 0.5
        return half + half.T

    def rotated(values: Tensor) -> Tensor:
        q = torch.linalg.qr(torch.randn(size, size, **options))[0]
        return (q * values) @ q.T

    def band(a: Tensor, width: int) -> Tensor:
        return a.triu(-width).tril(width)

    def half_width() -> int:
        return int(torch.randint(size, (), generator=draw))

    rising = torch.linspace(0, 1, size, dtype=torch.float64)
    signs = torch.randint(2, (size,), generator=draw) * 2.0 - 1
    even = signs * (1 - rising * (1 - limits.eps))
    geometric = signs * limits.eps**rising
    one_large = signs * torch.full_like(rising, limits.eps).index_fill(0, torch.tensor([0]), 1.0)
    noise = torch.randn(size, size, **options)
    few = size - size // 4  # the rank of those that are deficient
    decay, weak = 10.0 ** (-2 * rising[:few]), 1e-6 * 10.0 ** (-2 * rising[: size - few])
    levels = torch.linspace(-1, 1, max(1, min(16, size // 8)), dtype=torch.float64)
    ramp = 2 * rising - 1
    clusters = torch.where(ramp < 0, -1.0, 1.0) + 1e-5 * ramp
    scales = 10.0 ** (-4 * rising)
    found = {
        "1 zero": torch.zeros(size, size, dtype=torch.float64),
        "2 identity": torch.eye(size, dtype=torch.float64),
        "3 diagonal, even": torch.diag(even),
        "4 diagonal, geometric": torch.diag(geometric),
        "5 diagonal, one large": torch.diag(one_large),
        "6 diagonal, near overflow": large * torch.diag(geometric),
        "7 diagonal, near underflow": small * torch.diag(geometric),
        "8 even": rotated(even),
        "9 geometric": rotated(geometric),
        "10 one large": rotated(one_large),
        "11 even, near overflow": large * rotated(even),
        "12 even, near underflow": small * rotated(even),
        "13 random": uniform(),
        "14 random, near overflow": large * uniform(),
        "15 random, near underflow": small * uniform(),
        "16 band": band(rotated(even), half_width()),
        "17 band, near overflow": large * band(rotated(even), half_width()),
        "18 band, near underflow": small * band(rotated(even), half_width()),
        "dense": noise + noise.T,
        "signed powers": rotated(signs * scales),
        "scaled covariance": (noise * scales.sqrt()) @ (noise * scales.sqrt()).T / size,
        "rank-deficient": rotated(torch.cat([0 * weak, decay])),
        "nearly rank-deficient": rotated(torch.cat([weak, decay])),
        "repeated": rotated(levels.repeat_interleave(-(-size // len(levels)))[:size]),
        "clustered": rotated(clusters),
        "ramp and band": torch.diag(ramp) + band(noise + noise.T, max(2, size // 32)),
        "rows scaled": scales.unsqueeze(1) * uniform() * scales,
    }
    return {name: ((a + a.T) / 2).to(dtype) for name, a in found.items()}


def stack(size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return all of them, ``[27, size, size]``."""
    return torch.stack(list(matrices(size, dtype, seed).values()))


def normalized(a: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Divide matrices and eigenvalues by a power of two, in float64: no square over- or underflows.

    Args:
        a: ``[B, D, D]``; the largest entry of each becomes 1/2 to 1, as far as 2^1000 goes.
        values: ``[B, D]`` eigenvalues.
    """
    exponents = torch.frexp(a.double().abs().amax((-2, -1)))[1].clamp(-1000, 1000)
    factor = torch.exp2(-exponents.double())
    return a.double() * factor[:, None, None], values.double() * factor[:, None]


def excess(a: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """Return ``[B, 4]`` errors in the units of ``GATES``, in its order."""
    size, eps = a.shape[-1], torch.finfo(a.dtype).eps
    (a, values), vectors = normalized(a, values), vectors.double()

    def norm(of: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(of, 1)

    scaled, identity = vectors * values.unsqueeze(-2), torch.eye(size, dtype=torch.float64)
    found = [
        norm(a @ vectors - scaled),
        (values - torch.linalg.eigvalsh(a)).abs().amax(-1),
        norm(scaled @ vectors.mT - a),
        norm(vectors.mT @ vectors - identity),
    ]
    unit = norm(a).clamp(min=torch.finfo(torch.float64).tiny)  # zero has no error at all
    return torch.stack([*(error / unit for error in found[:3]), found[3]], -1) / (size * eps)


def assert_within_gates(a: Tensor, values: Tensor, vectors: Tensor) -> None:
    """Assert what the contest asks of eigenvalues ``[B, D]`` and eigenvectors ``[B, D, D]``."""
    assert (values.diff(dim=-1) >= 0).all(), "eigenvalues are not ascending"
    found = excess(a, values, vectors)
    bad = ~(found <= torch.tensor(list(GATES.values())))
    assert not bad.any(), f"{list(GATES)}: matrices {bad.nonzero().tolist()}, {found[bad].tolist()}"
