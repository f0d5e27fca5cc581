"""Formulas of estimated shrinkage intensities, from traces: what every backend computes."""

from __future__ import annotations

import torch
from torch import Tensor


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
