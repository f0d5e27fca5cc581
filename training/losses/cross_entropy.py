"""Cross-entropy and its re-weighted forms: by class (class-balanced), by difficulty (focal)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.config.checks import check
from training.losses.base import ClassificationLoss, check_positive
from training.samplers.base import BatchKind


class CrossEntropy(ClassificationLoss):
    """Softmax cross-entropy, -log p of the label's probability p.

    Example:
        >>> loss = CrossEntropy()
        >>> round(loss(torch.zeros(1, 2), torch.tensor([1])).item(), 4)  # log 2
        0.6931
    """

    def per_row(self, logits: Tensor, labels: Tensor, batch_kind: BatchKind) -> Tensor:
        """Logits [B, K] and labels [B] -> losses [B]."""
        return functional.cross_entropy(logits, labels, reduction="none")


class Focal(ClassificationLoss):
    """-(1 - p)^gamma log p of the label's softmax probability p.

    Lin et al., "Focal loss for dense object detection", ICCV 2017, eq. (4), with softmax in place
    of the sigmoid, as in the usual long-tail tables.

    Args:
        gamma: >= 0; 0 is cross-entropy. 2 is that of the paper.

    Raises:
        ConfigError: If gamma is out of its range.

    Example:
        >>> loss = Focal(gamma=2.0)
        >>> round(loss(torch.zeros(1, 2), torch.tensor([1])).item(), 4)  # 1/4 log 2
        0.1733
    """

    def __init__(self, gamma: float = 1.0) -> None:
        """Remember the exponent."""
        super().__init__()
        check("gamma", gamma, gamma >= 0, ">= 0")
        self.gamma = gamma

    def per_row(self, logits: Tensor, labels: Tensor, batch_kind: BatchKind) -> Tensor:
        """Logits [B, K] and labels [B] -> losses [B]."""
        entropy = functional.cross_entropy(logits, labels, reduction="none")  # [B], -log p
        if self.gamma == 0:
            return entropy
        # 1 - p without cancellation. The floor keeps the power's slope finite at p = 1, where the
        # loss and its gradient are 0.
        miss = (-torch.expm1(-entropy)).clamp_min(torch.finfo(entropy.dtype).tiny)
        return miss**self.gamma * entropy


class ClassBalanced(CrossEntropy):
    """Cross-entropy with weights of classes by their effective number of images.

    Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019, eq. (6). The
    batch's mean is divided by the sum of its weights, as in the code of Cao et al.

    Args:
        class_counts: Training images per class, [K], all >= 1.
        beta: See `effective_weights`.

    Raises:
        ConfigError: If a class has no image, or beta is out of its range.

    Example:
        >>> loss = ClassBalanced(torch.tensor([2, 1]), beta=0.5)  # weights 0.8 and 1.2
        >>> logits = torch.tensor([[0.0, 0.0], [100.0, 0.0]])  # losses log 2 and 0
        >>> round(loss(logits, torch.tensor([1, 0])).item(), 4)  # 1.2 log 2 / (1.2 + 0.8)
        0.4159
    """

    weights: Tensor

    def __init__(self, class_counts: Tensor, beta: float = 0.9999) -> None:
        """Compute the weights once."""
        super().__init__()
        self.register_buffer("weights", effective_weights(class_counts, beta))  # [K]

    def row_weights(self, labels: Tensor) -> Tensor:
        """Labels [B] -> weights [B]."""
        return self.weights[labels]


def effective_weights(class_counts: Tensor, beta: float) -> Tensor:
    """Return (1 - beta) / (1 - beta^n_k), scaled to mean 1, float32 [K].

    Args:
        class_counts: Images per class, [K], all >= 1.
        beta: In [0, 1): 0 is weight 1 for all, towards 1 it is the inverse count.

    Raises:
        ConfigError: If a class has no image, or beta is out of its range.

    Example:
        >>> effective_weights(torch.tensor([2, 1]), 0.5).tolist()  # effective numbers 3/2 and 1
        [0.800000011920929, 1.2000000476837158]
    """
    check("beta", beta, 0 <= beta < 1, "in [0, 1)")
    check_positive("class_counts", class_counts)
    effective = (1 - beta ** class_counts.double()) / (1 - beta)  # [K]
    return (effective.mean() / effective / (effective.mean() / effective).mean()).float()
