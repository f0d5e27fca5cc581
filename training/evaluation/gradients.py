"""Gradients of the classifier's weight, class by class."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.evaluation.features import mean_abs_off_diagonal


def class_gradients(
    classifier: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    features: Tensor,
    labels: Tensor,
) -> Tensor:
    """Gradient of a batch's loss in the classifier's weight.

    Args:
        classifier: Has a ``weight`` [K, D]; maps features to logits [B, K].
        loss: Maps logits [B, K] and labels [B] to a number.
        features: [B, D].
        labels: int64 [B].

    Returns:
        [K, D]; row k is the gradient of class k's weight vector.
    """
    weight = classifier.weight
    assert isinstance(weight, Tensor)
    with torch.enable_grad():
        value = loss(classifier(features), labels)
        return torch.autograd.grad(value, weight)[0].detach()


def mean_abs_cosine(rows: Tensor) -> float:
    """Mean |cos| of the angle between different rows; rows that are zero have no direction.

    Args:
        rows: [K, D].

    Returns:
        In [0, 1]; NaN if fewer than two rows are not zero.

    Example:
        >>> mean_abs_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 0.0]]))
        0.3333333333333333
    """
    rows = rows.double()
    norms = torch.linalg.vector_norm(rows, dim=1)
    if int((norms > 0).sum()) < 2:
        return math.nan
    directions = rows / torch.where(norms > 0, norms, torch.nan)[:, None]  # [K, D]
    return mean_abs_off_diagonal((directions @ directions.T).clamp(-1.0, 1.0))


def weight_norms(weight: Tensor) -> Tensor:
    """Euclidean norm of each class's weight vector: [K, D] -> float64 [K]."""
    return torch.linalg.vector_norm(weight.detach().double(), dim=1).cpu()
