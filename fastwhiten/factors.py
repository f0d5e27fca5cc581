"""Whitening matrices and their inverses, also of covariances that are singular.

With ``S = U diag(l) U^T`` after shrinkage and eps, rows are whitened by ``y = (x - mean) W`` and
come back as ``x = y V + mean``:

=========  ===================================  ====================================
kind       W ``[C, K]``                         V ``[K, C]``
=========  ===================================  ====================================
zca        ``U diag(l^-1/2) U^T``               ``U diag(l^1/2) U^T``
pca        ``U diag(l^-1/2)``                   ``diag(l^1/2) U^T``
cholesky   ``L^-T``, ``S = L L^T``              ``L^T``
zca-cor    ``diag(1/sigma) W_zca(R)``           ``V_zca(R) diag(sigma)``
pca-cor    ``diag(1/sigma) W_pca(R)``           ``V_pca(R) diag(sigma)``
=========  ===================================  ====================================

``sigma`` are the deviations and ``R`` the correlations (A. Kessy, A. Lewin, K. Strimmer, "Optimal
whitening and decorrelation", 2018). In directions in which the data do not vary, W and V are 0: W
is the root of the pseudo-inverse of S, outputs are 0 there, and V puts the mean back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import functional
from .backends import reference
from .validation import Backend

# A column varies if its deviation is above this many roundings of its mean.
CONSTANT = 16.0


class Factors(NamedTuple):
    """What a covariance is factored into, float64."""

    whitening: Tensor  # [C, K]
    unwhitening: Tensor  # [K, C]
    eigenvalues: Tensor  # [C], descending, after shrinkage and eps; [0] for Cholesky
    rank: Tensor  # [] int64: directions that are kept


def varying(variance: Tensor, mean: Tensor) -> Tensor:
    """Return a mask ``[C]`` of the columns whose variance is more than the mean's rounding."""
    return variance.sqrt() > CONSTANT * torch.finfo(mean.dtype).eps * mean.abs()


def factor(
    covariance: Tensor,
    kind: str,
    eps: float,
    rho: Tensor | None,
    keep: int | None,
    backend: Backend,
) -> Factors:
    """Factor ``covariance`` ``[C, C]`` float64, whose constant columns are 0.

    Args:
        covariance: of the data.
        kind: as in :class:`fastwhiten.Whitener`.
        eps: >= 0, added to the eigenvalues.
        rho: intensity of the shrinkage; of the correlations for their kinds.
        keep: leading eigenvectors to keep; None for all.
        backend: as in :func:`fastwhiten.whiten`.
    """
    sigma = None
    if kind.endswith("-cor"):
        covariance, sigma = correlations(covariance)
    size = covariance.shape[-1]
    shift = torch.full_like(covariance[0, 0], eps)
    if rho is not None:
        shift = shift + rho * covariance.trace() / size
        covariance = (1.0 - rho) * covariance
    # Errors of the eigenvalues: what is below them is 0 (as numpy.linalg.matrix_rank has it).
    tolerance = size * torch.finfo(covariance.dtype).eps
    if kind == "cholesky":
        return _triangular(covariance + shift * torch.eye(size).to(covariance), tolerance, backend)
    values, basis = functional.symmetric_eigh(covariance, backend=backend)
    values, basis = values.flip(0).clamp(min=0.0) + shift, basis.flip(1)
    kept = values > tolerance * values[0]
    if keep is not None:
        kept[keep:] = False
    root = torch.where(kept, values.sqrt(), 0.0)
    inverse = torch.where(kept, values.rsqrt(), 0.0)
    whitening, unwhitening = basis * inverse, root.unsqueeze(1) * basis.T
    if kind.startswith("zca"):
        whitening, unwhitening = (
            reference.symmetrize(whitening @ basis.T),
            reference.symmetrize(basis @ unwhitening),
        )
    else:
        whitening, unwhitening = whitening[:, :keep], unwhitening[:keep]
    if sigma is not None:
        whitening = torch.where(sigma > 0, 1.0 / sigma, 0.0).unsqueeze(1) * whitening
        unwhitening = unwhitening * sigma
    return Factors(whitening.contiguous(), unwhitening.contiguous(), values, kept.sum())


def correlations(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return correlations ``[C, C]`` and deviations ``[C]``; a constant column correlates not."""
    sigma = covariance.diagonal().sqrt()
    inverse = torch.where(sigma > 0, 1.0 / sigma, 0.0)
    found = covariance * inverse.unsqueeze(1) * inverse
    found.diagonal().copy_((sigma > 0).to(found.dtype))
    return reference.symmetrize(found), sigma


def _triangular(s: Tensor, tolerance: float, backend: Backend) -> Factors:
    """Return the factors of Cholesky's kind: every column less its regression on those before.

    Where nothing of a column is left, its output is 0. Differences of variances do not tell that
    where those before are nearly dependent (N. Higham, "Accuracy and Stability of Numerical
    Algorithms", 2002, section 10.3), so a root ``B`` of the correlations does, ``B^T B = R``.
    """
    r, sigma = correlations(s)
    values, basis = functional.symmetric_eigh(r, backend=backend)
    kept = values > tolerance * values[-1]
    if bool(kept.all()):
        upper = torch.linalg.cholesky(r).T  # L^T
        spanned = torch.arange(len(s), device=s.device)
    else:
        upper, spanned = _orthogonalize((basis[:, kept] * values[kept].sqrt()).T, tolerance)
    identity = torch.eye(len(spanned)).to(s)
    inverse = torch.linalg.solve_triangular(upper[:, spanned], identity, upper=True)  # [r, r]
    whitening, unwhitening = torch.zeros_like(s), torch.zeros_like(s)
    whitening[spanned.unsqueeze(1), spanned] = inverse / sigma[spanned].unsqueeze(1)
    unwhitening[spanned] = upper * sigma  # also of the columns that are dependent
    rank = torch.tensor(len(spanned), device=s.device)
    return Factors(whitening, unwhitening, s.new_empty(0), rank)


def _orthogonalize(b: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return ``Q^T B`` ``[r, C]`` and the columns ``[r]`` that are independent of those before.

    By Gram and Schmidt's method, twice: Q is orthogonal to rounding.
    """
    q, found = b.new_zeros(len(b), len(b)), list[int]()  # Q^T
    for j in range(b.shape[1]):
        left = b[:, j]  # of length 1, or 0 where constant
        done = q[: len(found)]
        for _ in range(2):
            left = left - done.T @ (done @ left)
        if len(found) < len(b) and bool(left @ left > tolerance):
            q[len(found)] = left / left.norm()
            found.append(j)
    spanned = torch.tensor(found, dtype=torch.int64, device=b.device)
    upper = q[: len(found)] @ b
    for row, j in enumerate(found):
        upper[row, :j] = 0.0  # but for rounding
    return upper, spanned
