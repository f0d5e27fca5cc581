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
    rank: Tensor  # [] int64: directions whose outputs vary


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
        return _triangular(covariance + shift * torch.eye(size).to(covariance), tolerance)
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


def _triangular(s: Tensor, tolerance: float) -> Factors:
    """Return the factors of Cholesky's kind: every column less its regression on those before.

    Where nothing of a column is left, its output is 0.
    """
    lower, info = torch.linalg.cholesky_ex(s)
    pivots = lower.diagonal().square()  # variances left
    spanned = torch.arange(len(s), device=s.device)
    if int(info) or not bool((pivots > tolerance * s.diagonal()).all()):
        spanned = _independent(s, tolerance)
        lower = torch.linalg.cholesky(s[spanned][:, spanned])
    identity = torch.eye(len(spanned)).to(s)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)  # [r, r]
    whitening, unwhitening = torch.zeros_like(s), torch.zeros_like(s)
    whitening[spanned.unsqueeze(1), spanned] = inverse.T
    unwhitening[spanned] = inverse @ s[spanned]  # L^T, also of the columns that are dependent
    rank = torch.tensor(len(spanned), device=s.device)
    return Factors(whitening, unwhitening, s.new_empty(0), rank)


def _independent(s: Tensor, tolerance: float) -> Tensor:
    """Return indices of the columns of which something is left after those before, ascending."""
    left, found = s.clone(), []
    for j in range(len(s)):
        if bool(left[j, j] > tolerance * s[j, j]):
            found.append(j)
            column = left[j + 1 :, j] / left[j, j].sqrt()
            left[j + 1 :, j + 1 :].addr_(column, column, alpha=-1.0)
    return torch.tensor(found, dtype=torch.int64, device=s.device)
