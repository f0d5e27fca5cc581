"""Diagnostics of the features that the classifier sees: correlation, spectrum, entropy, condition.

All covariances are biased (divisor N) and computed in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def covariance_matrix(features: Tensor) -> Tensor:
    """Biased covariance of the channels: [N, D] -> float64 [D, D].

    Example:
        >>> covariance_matrix(torch.tensor([[0.0, 0.0], [2.0, 4.0]])).tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """
    features = features.double()
    centred = features - features.mean(0)  # [N, D]
    return centred.T @ centred / features.shape[0]


def correlation_matrix(features: Tensor) -> Tensor:
    """Pearson correlation of the channels.

    A channel that does not vary has no correlation; its entries are NaN, not 0.

    Args:
        features: [N, D], N >= 2.

    Returns:
        float64 [D, D], in [-1, 1].
    """
    covariance = covariance_matrix(features)  # [D, D]
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


def singular_values(features: Tensor) -> Tensor:
    """Singular values of the centred features over sqrt(N), descending: float64 [min(N, D)].

    Their squares are the eigenvalues of the covariance; a singular value decomposition of the
    features finds the small ones twice as exactly as an eigendecomposition of the covariance.

    Example:
        >>> [round(s, 6) for s in singular_values(torch.tensor([[3.0, 0], [-3, 0]])).tolist()]
        [3.0, 0.0]
    """
    features = features.double()
    return torch.linalg.svdvals((features - features.mean(0)) / features.shape[0] ** 0.5)


def spectral_entropy(eigenvalues: Tensor) -> float:
    """Entropy of the normalised spectrum: -sum p log p with p = eigenvalues / sum, in nats.

    Between 0 (one direction) and log D (all directions alike); does not depend on scale. The
    spectral entropy of Roy and Vetterli, "The effective rank", EUSIPCO 2007, there of singular
    values, here of the covariance's eigenvalues, which are variances.

    Args:
        eigenvalues: >= 0 up to rounding, [D].

    Returns:
        Nats; NaN if all eigenvalues are 0.

    Example:
        >>> round(spectral_entropy(torch.tensor([1.0, 1.0, 0.0])) / math.log(2), 6)
        1.0
    """
    share = eigenvalues.double().clamp_min(0)
    share = share / share.sum()  # [D]
    return -torch.special.xlogy(share, share).sum().item()


def effective_rank(eigenvalues: Tensor) -> float:
    """Exponential of the spectral entropy: how many equally strong directions have that entropy.

    Example:
        >>> round(effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])), 6)
        3.0
    """
    return math.exp(spectral_entropy(eigenvalues))


def gaussian_entropy(eigenvalues: Tensor) -> float:
    """Differential entropy of a Gaussian: 0.5 log det(2 pi e S), in nats.

    It depends on scale: doubling the features adds D log 2.

    Args:
        eigenvalues: Of the covariance S, [D].

    Returns:
        Nats; -infinity if S is singular to rounding.

    Example:
        >>> round(gaussian_entropy(torch.ones(2)), 4)  # log(2 pi e)
        2.8379
    """
    if condition_number(eigenvalues) == math.inf:
        return -math.inf
    return 0.5 * (eigenvalues.double() * (2 * math.pi * math.e)).log().sum().item()


def condition_number(eigenvalues: Tensor) -> float:
    """Largest over smallest eigenvalue of a positive semidefinite matrix.

    Args:
        eigenvalues: [D], in any order.

    Returns:
        At least 1; infinity if the smallest is below D times the rounding of the largest.

    Example:
        >>> condition_number(torch.tensor([8.0, 2.0, 4.0]))
        4.0
    """
    values = eigenvalues.double()
    largest, smallest = values.max().item(), values.min().item()
    if smallest <= numerical_zero(values):
        return math.inf
    return largest / smallest


def numerical_zero(eigenvalues: Tensor) -> float:
    """Return what is zero up to rounding: size x float64's epsilon x the largest eigenvalue."""
    return eigenvalues.numel() * torch.finfo(torch.float64).eps * eigenvalues.max().item()


def second_moment_condition(features: Tensor) -> float:
    """Condition number of E[x x^T], not centred; 1 after whitening with this split's statistics.

    It bounds how unevenly a linear classifier's loss is curved over the directions of x.

    Args:
        features: [N, D].

    Returns:
        At least 1; infinity if the features span fewer than D dimensions.
    """
    values = torch.linalg.svdvals(features.double())
    if features.shape[0] < features.shape[1]:
        return math.inf
    return condition_number(values.square())
