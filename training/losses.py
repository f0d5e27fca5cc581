"""Training losses. To add one: a module class, and a line in `build_loss`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from training.config import TrainConfig


class CrossEntropy(nn.Module):
    """Softmax cross-entropy, averaged over the batch."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, K] and labels [B] -> loss []."""
        return functional.cross_entropy(logits, labels)


class LogitAdjusted(nn.Module):
    """Cross-entropy of logits + tau * log(prior): the margin for rare classes grows with rarity.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. (10). The adjustment is
    a matter of training alone: predictions use the logits as they are. At tau = 1 this is balanced
    softmax (Ren et al., NeurIPS 2020).

    Args:
        class_counts: Training images per class, [K], all >= 1; the prior is their share.
        tau: Strength; >= 0, and 0 is cross-entropy.

    Example:
        >>> import torch
        >>> loss = LogitAdjusted(torch.tensor([3, 1]), tau=1.0)
        >>> round(loss(torch.zeros(1, 2), torch.tensor([1])).item(), 4)  # -log(1/4)
        1.3863
    """

    adjustment: Tensor

    def __init__(self, class_counts: Tensor, tau: float = 1.0) -> None:
        """Compute the adjustment once."""
        super().__init__()
        prior = class_counts.double() / class_counts.sum()  # [K]
        self.register_buffer("adjustment", (tau * prior.log()).float())  # [K]

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, K] and labels [B] -> loss []."""
        return functional.cross_entropy(logits + self.adjustment, labels)


def build_loss(config: TrainConfig, class_counts: Tensor) -> nn.Module:
    """Return the configured training loss for a training split with these counts [K]."""
    if config.loss == "ce":
        return CrossEntropy()
    return LogitAdjusted(class_counts, config.loss_options.tau)


def evaluation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropy over rows, the same for every training loss: [B, K], [B] -> []."""
    return functional.cross_entropy(logits, labels, reduction="sum")


__all__ = ["CrossEntropy", "LogitAdjusted", "build_loss", "evaluation_loss"]
