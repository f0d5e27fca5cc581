"""Shrinkage intensities: how much of the covariance is replaced by a multiple of the identity.

``S' = (1 - rho) S + rho tr(S)/D I`` keeps the eigenvectors and moves only the eigenvalues. The
intensity ``rho`` is estimated per group from the batch, or fixed by the caller; gradients treat it
as a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import reference

METHODS = ("oas", "ledoit-wolf")


def effective_rows(row_weight: Tensor | None, rows: int) -> Tensor | float:
    """Return ``1 / sum p^2`` (Kish).

    The number of equally weighted rows with the same variance of a mean.
    """
    return float(rows) if row_weight is None else row_weight.square().sum().reciprocal()


def oas(trace: Tensor, square: Tensor, rows: Tensor | float, size: int) -> Tensor:
    """Oracle Approximating Shrinkage intensity (Chen, Wiesel, Eldar, Hero 2010, eq. 23).

    Args:
        trace: ``[G]`` tr(S).
        square: ``[G]`` tr(S S).
        rows: number of rows behind S.
        size: D.
    """
    numerator = (1.0 - 2.0 / size) * square + trace.square()
    denominator = (rows + 1.0 - 2.0 / size) * (square - trace.square() / size)
    return _ratio(numerator, denominator)


def ledoit_wolf(
    trace: Tensor, square: Tensor, fluctuation: Tensor, rows: Tensor | float, size: int
) -> Tensor:
    """Ledoit-Wolf intensity (Ledoit and Wolf 2004, section 3.2).

    Args:
        trace: ``[G]`` tr(S).
        square: ``[G]`` tr(S S).
        fluctuation: ``[G]`` mean of ``|xc_n xc_n^T - S_batch|^2``, which is the mean of
            ``|xc_n|^4`` less tr(S_batch S_batch).
        rows: number of rows behind S.
        size: D.
    """
    distance = square - trace.square() / size
    return _ratio(torch.minimum(fluctuation / rows, distance), distance)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient clamped to [0, 1]; 1 where S is a multiple of the identity already."""
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), 1.0).clamp(
        0.0, 1.0
    )


def feature_intensity(
    method: str | float | None,
    covariance: Tensor,
    running_covariance: Tensor | None,
    batch_weight: float,
    x: Tensor,
    mean: Tensor,
    row_weight: Tensor | None,
) -> Tensor | None:
    """Return ``rho`` ``[G]`` for the blended covariances ``[G, D, D]`` of rows or planes ``x``.

    None for no shrinkage. The running covariance counts as known: only the batch's share
    fluctuates, with ``batch_weight^2`` times the variance, as if there were that many more rows.
    """
    if method is None:
        return None
    groups, size = covariance.shape[:2]
    if not isinstance(method, str):
        return covariance.new_full((groups,), float(method))
    rows = x.numel() // x.shape[1]
    share = 1.0 if running_covariance is None else batch_weight
    count = effective_rows(row_weight, rows) / share**2
    blended = reference.blend(covariance, running_covariance, batch_weight)
    trace, square = _trace(blended), blended.square().sum((-2, -1))
    if method == "oas":
        return oas(trace, square, count, size)
    centered = reference.to_groups(x, groups, mean.dtype) - mean.reshape(groups, 1, size)
    norms = centered.square().sum(-1).square()  # [G, M]
    fourth = norms.mean(-1) if row_weight is None else norms @ row_weight.to(norms.dtype)
    fluctuation = fourth - covariance.square().sum((-2, -1))
    return ledoit_wolf(trace, square, fluctuation, count, size)


def _trace(a: Tensor) -> Tensor:
    """Return the traces ``[G]`` of ``[G, D, D]``."""
    return a.diagonal(dim1=-2, dim2=-1).sum(-1)


def sample_intensity(
    method: str | float | None, gram: Tensor, row_weight: Tensor | None, size: int
) -> Tensor | None:
    """Return ``rho`` ``[G]`` from the Gram matrices ``[G, M, M]`` of the sample side.

    None for no shrinkage.
    """
    if method is None:
        return None
    if not isinstance(method, str):
        return gram.new_full((gram.shape[0],), float(method))
    # The Gram matrix shares trace and square with the covariance.
    trace, square = _trace(gram), gram.square().sum((-2, -1))
    count = effective_rows(row_weight, gram.shape[-1])
    if method == "oas":
        return oas(trace, square, count, size)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)  # p_n |xc_n|^2
    fourth = (diagonal.square() * (gram.shape[-1] if row_weight is None else 1.0 / row_weight)).sum(
        -1
    )
    return ledoit_wolf(trace, square, fourth - square, count, size)
