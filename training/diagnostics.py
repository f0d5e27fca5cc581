"""Diagnostics of the features that the classifier sees."""

from __future__ import annotations

import torch
from torch import Tensor


def correlation_matrix(features: Tensor) -> Tensor:
    """Pearson correlation of the channels.

    A channel that does not vary has no correlation; its entries are NaN, not 0.

    Args:
        features: [N, D], N >= 2.

    Returns:
        float64 [D, D], in [-1, 1].
    """
    centred = features.double() - features.double().mean(0)  # [N, D]
    covariance = centred.T @ centred / features.shape[0]  # [D, D]
    scale = covariance.diagonal().sqrt()  # [D]
    # A constant channel's computed deviation is rounding: relative to its mean, not zero exactly.
    constant = scale <= 1e-7 * features.double().abs().amax(0)  # [D]
    scale = torch.where(constant, torch.nan, scale)
    return (covariance / (scale[:, None] * scale)).clamp(-1.0, 1.0)


def mean_abs_off_diagonal(correlation: Tensor) -> float:
    """Mean |r| over pairs of different channels that both vary; NaN if there is no pair."""
    size = correlation.shape[0]
    off_diagonal = correlation[~torch.eye(size, dtype=torch.bool)].abs()  # [D * (D - 1)]
    return off_diagonal[~off_diagonal.isnan()].mean().item()
