"""Symmetric matrices that break eigensolvers, and what is demanded of a solution."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.csrc.emulation import run
from tests.helpers.drvst import normalized
from tests.helpers.spectra import generator

# The errors of two good algorithms differ by a small factor from matrix to matrix: the residual of
# two-sided Jacobi was at most 2.1 times LAPACK's; its other errors were smaller.
K = 2.5
# Errors that are sums of D roundings per entry, where LAPACK happens to make none (diagonal input).
FLOOR = 1.0


def _rotation(size: int, seed: int) -> Tensor:
    noise = torch.randn(size, size, dtype=torch.float64, generator=generator(seed))
    return torch.linalg.qr(noise)[0]


def _of_spectrum(values: Tensor, seed: int) -> Tensor:
    q = _rotation(values.numel(), seed)
    return (q * values) @ q.T


def _hadamard(size: int) -> Tensor:
    """Two eigenvalues, exactly tied, and no entry that is small."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h[:size, :size] + 0.5 * torch.eye(size)


def matrices(size: int, seed: int = 0) -> dict[str, Tensor]:
    """Return float64 matrices ``[size, size]`` by name."""
    noise = torch.randn(3 * size, size, dtype=torch.float64, generator=generator(seed + 1))
    steps = torch.linspace(0, 1, size, dtype=torch.float64)
    tied = torch.ones(size, dtype=torch.float64)
    tied[size // 2 :] = 4.0
    low = noise[: max(size // 2, 1)]
    graded = torch.diag(10.0 ** (-12 * steps))
    return {
        "covariance": noise.T @ noise / len(noise),
        "indefinite": noise[:size] + noise[:size].T,
        "rank-deficient": low.T @ low / size,
        "rank one": torch.outer(noise[0], noise[0]),
        "tied": _of_spectrum(tied, seed + 2),
        "condition 1e2": _of_spectrum(10.0 ** (-2 * steps), seed + 3),
        "condition 1e4": _of_spectrum(10.0 ** (-4 * steps), seed + 4),
        "condition 1e8": _of_spectrum(10.0 ** (-8 * steps), seed + 5),
        "condition 1e12": _of_spectrum(10.0 ** (-12 * steps), seed + 6),
        "opposite pairs": _of_spectrum(torch.where(steps < 0.5, -1.0, 1.0).double(), seed + 7),
        "graded": graded + 1e-14 * (noise[:size] + noise[:size].T),
        "hadamard": _hadamard(size),
        "identity": torch.eye(size, dtype=torch.float64),
        "zero": torch.zeros(size, size, dtype=torch.float64),
        "diagonal": torch.diag(noise[0]),
        "ones": torch.ones(size, size, dtype=torch.float64),
        "negative": -_of_spectrum(1 + steps, seed + 8),
    }


def opposite_components() -> dict[str, Tensor]:
    """Return ``[1, D, D]`` by who solves it, whose first eigenvector has two largest components.

    They are equal in size, bit for bit, and opposite in sign.
    """
    block = torch.diag(torch.linspace(4, 9, 20))
    block[3:5, 3:5] = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    warp = torch.tensor([[-4.0, -2.0, 2.0], [-2.0, 2.0, 2.0], [2.0, 2.0, -4.0]])
    return {"warp": warp.unsqueeze(0), "block": block.unsqueeze(0)}


def stack(size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return the matrices, rounded and exactly symmetric, ``[B, size, size]``."""
    a = torch.stack([m.to(dtype) for m in matrices(size, seed).values()])
    return (a + a.mT) / 2


def solve(a: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """Return eigenvalues ``[B, D]``, eigenvectors ``[B, D, D]`` and sweeps ``[B]`` of ``a``.

    Warps solve them up to order 16, as they do where matrices are many, unless ``few_matrices`` are
    asked for.
    """
    batch, size = a.shape[:2]
    options.setdefault("few_matrices", 0)
    out = run("eigh", a=a, B=batch, D=size, **options)
    return out["values"].reshape(batch, size), out["vectors"].reshape(a.shape), out["sweeps"]


def errors(a: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """Return eigenvalue, residual and orthogonality errors ``[B, 3]``, in float64.

    The first two are relative to the largest eigenvalue.
    """
    (a, values), vectors = normalized(a, values), vectors.double()
    truth = torch.linalg.eigvalsh(a)
    size = truth.abs().amax(-1).clamp(min=torch.finfo(torch.float64).tiny)
    identity = torch.eye(a.shape[-1], dtype=torch.float64)
    return torch.stack(
        [
            (values - truth).abs().amax(-1) / size,
            (a @ vectors - vectors * values.unsqueeze(-2)).norm(dim=(-2, -1)) / size,
            (vectors.mT @ vectors - identity).norm(dim=(-2, -1)),
        ],
        -1,
    )


def assert_solved(
    a: Tensor, values: Tensor, vectors: Tensor, k: float = K, floor: float = FLOOR
) -> None:
    """Assert LAPACK's accuracy in the dtype of ``a``, ascending order and the rule of signs."""
    ours, lapack = errors(a, values, vectors), errors(a, *torch.linalg.eigh(a))
    bad = ~(ours <= k * lapack + floor * a.shape[-1] * torch.finfo(a.dtype).eps)
    assert not bad.any(), (
        f"matrices, kinds of error {bad.nonzero().tolist()}: {ours[bad].tolist()} where LAPACK's "
        f"are {lapack[bad].tolist()}"
    )
    assert (values.diff(dim=-1) >= 0).all(), "eigenvalues are not ascending"
    pivot = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    assert (pivot > 0).all(), "the largest component of an eigenvector is not positive"
