"""Linear classifiers on top of the features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import TrainConfig


class CosineClassifier(nn.Module):
    """logits = scale * cosine(feature, weight of the class), without a bias.

    The normalised head of LDAM (Cao et al., NeurIPS 2019). There the scale belongs to the loss;
    here it belongs to the classifier, so that the softmax of its logits is the model's probability
    in evaluation too.

    Args:
        in_features: D.
        out_features: K.
        scale: > 0.

    Example:
        >>> head = CosineClassifier(3, 2, scale=30.0)
        >>> bool(head(torch.randn(5, 3)).abs().max() <= 30.001)
        True
    """

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        """Draw directions: uniform entries, normalised."""
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(out_features, in_features))  # [K, D]
        nn.init.uniform_(self.weight, -1, 1)
        with torch.no_grad():
            self.weight.copy_(functional.normalize(self.weight))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D] -> logits [B, K] in [-scale, scale]."""
        directions = functional.normalize(self.weight)  # [K, D]
        return self.scale * functional.linear(functional.normalize(features), directions)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.in_features}, {self.out_features}, scale={self.scale}"


def build_classifier(config: TrainConfig, in_features: int, num_classes: int) -> nn.Module:
    """Return the classifier that the loss needs: a cosine one for LDAM, else a linear layer."""
    if config.loss in ("ldam", "ldam-drw"):
        return CosineClassifier(in_features, num_classes, config.loss_options.s)
    return nn.Linear(in_features, num_classes)
