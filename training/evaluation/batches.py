"""What single batches do: how their covariance fluctuates, which classes they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from training.evaluation.features import covariance_matrix


def covariance_fluctuation(covariances: Sequence[Tensor]) -> float:
    """Standard deviation of the batch covariance over batches, relative to its mean.

    sqrt(mean_t ||S_t - M||_F^2) / ||M||_F with M = mean_t S_t. It does not depend on the scale of
    the features, which the trace of S_t alone does.

    Args:
        covariances: S_t of at least one batch, [D, D] each.

    Example:
        >>> covariance_fluctuation([torch.eye(3), 3 * torch.eye(3)])
        0.5
    """
    stacked = torch.stack(list(covariances)).double()  # [T, D, D]
    mean = stacked.mean(0)
    spread = (stacked - mean).square().sum((1, 2)).mean().sqrt()
    return (spread / torch.linalg.matrix_norm(mean)).item()


def relative_distance(covariances: Sequence[Tensor], reference: Tensor) -> float:
    """Mean over batches of ||S_t - S_ref||_F / ||S_ref||_F.

    Args:
        covariances: S_t, [D, D] each; with a reference in groups, their diagonal blocks count.
        reference: [D, D], or [G, D / G, D / G] as a whitening layer keeps it.

    Example:
        >>> relative_distance([2 * torch.eye(2), torch.eye(2)], torch.eye(2))
        0.5
    """
    reference = reference.double().cpu()
    blocks = reference if reference.dim() == 3 else reference[None]  # [G, d, d]
    groups, size = blocks.shape[:2]
    norm = torch.linalg.vector_norm(blocks)
    distances = []
    for covariance in covariances:
        parts = covariance.double().reshape(groups, size, groups, size)
        diagonal = torch.stack([parts[g, :, g] for g in range(groups)])  # [G, d, d]
        distances.append((torch.linalg.vector_norm(diagonal - blocks) / norm).item())
    return math.fsum(distances) / len(distances)


def batch_covariances(features: Tensor, batches: Sequence[Tensor]) -> list[Tensor]:
    """Covariance of each batch: features [N, D], positions [B] each -> float64 [D, D] each."""
    return [covariance_matrix(features[positions]) for positions in batches]


def mean_distinct_classes(labels: Tensor, batches: Sequence[Tensor]) -> float:
    """Mean number of different classes in a batch: labels [N], positions [B] each.

    Example:
        >>> labels = torch.tensor([0, 0, 1])
        >>> mean_distinct_classes(labels, [torch.tensor([0, 1]), torch.tensor([1, 2])])
        1.5
    """
    counts = [labels[positions].unique().numel() for positions in batches]
    return math.fsum(counts) / len(counts)
