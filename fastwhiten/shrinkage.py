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
    trace: Tensor, square: Tensor, fourth: Tensor, rows: Tensor | float, size: int
) -> Tensor:
    """Ledoit-Wolf intensity (Ledoit and Wolf 2004, section 3.2).

    Args:
        trace: ``[G]`` tr(S).
        square: ``[G]`` tr(S S).
        fourth: ``[G]`` mean of ``|xc_n|^4``.
        rows: number of rows behind S.
        size: D.
    """
    distance = square - trace.square() / size
    return _ratio(torch.minimum((fourth - square) / rows, distance), distance)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient clamped to [0, 1]; 1 where S is a multiple of the identity already."""
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), 1.0).clamp(
        0.0, 1.0
    )


def _intensity(
    method: str, moment: Tensor, fourth: Tensor, row_weight: Tensor | None, rows: int, size: int
) -> Tensor:
    """Return ``rho`` ``[G]`` from the covariance or Gram matrix ``moment``.

    The two share trace and square.
    """
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1)
    square = moment.square().sum((-2, -1))
    count = effective_rows(row_weight, rows)
    if method == "oas":
        return oas(trace, square, count, size)
    return ledoit_wolf(trace, square, fourth, count, size)


def feature_intensity(
    method: str | float | None,
    covariance: Tensor,
    x: Tensor,
    mean: Tensor,
    row_weight: Tensor | None,
) -> Tensor | None:
    """Return ``rho`` ``[G]`` for covariances ``[G, D, D]`` of rows or planes ``x``.

    None for no shrinkage.
    """
    if method is None:
        return None
    groups, size = covariance.shape[:2]
    if not isinstance(method, str):
        return covariance.new_full((groups,), float(method))
    rows = x.numel() // x.shape[1]
    fourth = covariance.new_empty(0)
    if method == "ledoit-wolf":
        centered = reference.to_groups(x, groups, mean.dtype) - mean.reshape(groups, 1, size)
        norms = centered.square().sum(-1).square()  # [G, M]
        fourth = norms.mean(-1) if row_weight is None else norms @ row_weight.to(norms.dtype)
    return _intensity(method, covariance, fourth, row_weight, rows, size)


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
    rows = gram.shape[-1]
    diagonal = gram.diagonal(dim1=-2, dim2=-1)  # p_n |xc_n|^2
    weights = diagonal.new_full((rows,), 1.0 / rows) if row_weight is None else row_weight
    return _intensity(method, gram, (diagonal.square() / weights).sum(-1), row_weight, rows, size)
