"""Classifiers on top of the features."""

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


class BatchNormLogits(nn.Linear):
    """logits = batch normalisation of a linear layer's, with scale and shift.

    Kocaman, Shir and Baeck, "Improving model accuracy for imbalanced image classification tasks by
    adding a final batch normalization layer", ICPR 2020. The shift takes the place of a bias.

    Args:
        in_features: D.
        out_features: K.

    Example:
        >>> logits = BatchNormLogits(3, 2)(torch.randn(64, 3) + 5)
        >>> bool(torch.allclose(logits.mean(0), torch.zeros(2), atol=1e-5))
        True
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        """Create the layers."""
        super().__init__(in_features, out_features, bias=False)
        self.normalisation = nn.BatchNorm1d(out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D] -> logits [B, K]; in training B >= 2."""
        logits: Tensor = self.normalisation(super().forward(features))
        return logits


class NearestMean(nn.Linear):
    """logits = W (z - c) / |z - c| + b: the "cl2n" classifier that stage 2 makes of class means.

    Args:
        in_features: D.
        out_features: K.

    Example:
        >>> head = NearestMean(2, 1)
        >>> _ = head.centre.fill_(1.0)
        >>> bool(torch.equal(head(torch.tensor([[4.0, 5.0]])), head(torch.tensor([[7.0, 9.0]]))))
        True
    """

    centre: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        """Start at the origin."""
        super().__init__(in_features, out_features)
        self.register_buffer("centre", torch.zeros(in_features))  # [D]

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D] -> logits [B, K]."""
        return super().forward(functional.normalize(features - self.centre))


def build_classifier(config: TrainConfig, in_features: int, num_classes: int) -> nn.Module:
    """Return the configured classifier; null is what the loss needs: a cosine one for LDAM."""
    ldam = config.loss in ("ldam", "ldam-drw")
    name = config.model.classifier or ("cosine" if ldam else "linear")
    if name == "cosine":
        scale = config.loss_options.s if ldam else config.model.scale
        return CosineClassifier(in_features, num_classes, scale)
    classifier = _LINEAR[name](in_features, num_classes)
    if config.model.classifier_init == "kaiming":
        nn.init.kaiming_normal_(classifier.weight)
    return classifier


_LINEAR: dict[str, type[nn.Linear]] = {
    "linear": nn.Linear,
    "batchnorm": BatchNormLogits,
    "nearest-mean": NearestMean,
}
