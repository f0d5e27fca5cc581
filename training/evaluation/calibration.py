"""Is the confidence of a classifier its accuracy? Bins for a reliability diagram."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
"""The number in use since Guo et al., "On calibration of modern neural networks", ICML 2017."""


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy in bins of equal width.

    Attributes:
        images: Images per bin, int64 [B].
        accuracy: Fraction that is right, float64 [B]; NaN in an empty bin.
        confidence: Mean of the largest softmax probability, float64 [B]; NaN in an empty bin.
        error: Expected calibration error: |accuracy - confidence|, averaged over images.
    """

    images: Tensor
    accuracy: Tensor
    confidence: Tensor
    error: float


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """Sort predictions into bins (0, 1/B], (1/B, 2/B], … of their confidence.

    Args:
        logits: [N, K].
        labels: int64 [N].
        bins: Number B of bins.

    Example:
        >>> two = reliability(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), bins=2)
        >>> two.images.tolist(), two.accuracy[0].item(), two.error
        ([4, 0], 0.75, 0.25)
    """
    confidence, predicted = logits.double().softmax(1).max(1)  # [N] each
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # [N]
    images = torch.bincount(place, minlength=bins)  # [B]
    right = torch.bincount(place, (predicted == labels).double(), bins)
    total = torch.bincount(place, confidence, bins)
    return Reliability(
        images=images,
        accuracy=right / images,
        confidence=total / images,
        error=((right - total).abs().sum() / len(labels)).item(),
    )
