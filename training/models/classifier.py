"""Backbone, whitening layer and linear classifier, in that order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.precision import at_least_float32


class WhitenedClassifier(nn.Module):
    """logits = linear(whitening(backbone(images))).

    Args:
        backbone: Maps images to pooled features [B, D].
        whitening: Maps [B, D] to [B, D]; `torch.nn.Identity` for none.
        feature_dim: D.
        num_classes: K.
    """

    def __init__(
        self, backbone: nn.Module, whitening: nn.Module, feature_dim: int, num_classes: int
    ) -> None:
        """Put the parts together; the linear layer is new."""
        super().__init__()
        self.backbone = backbone
        self.whitening = whitening
        self.classifier = nn.Linear(feature_dim, num_classes)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> features before and after whitening, [B, D] each."""
        before = at_least_float32(self.backbone(images))
        with torch.autocast(before.device.type, enabled=False):  # eigensystems need float32
            return before, self.whitening(before)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K]."""
        return self.classifier(self.features(images)[1])
