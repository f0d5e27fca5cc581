"""Losses with margins: logit adjustment, balanced softmax, LDAM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.config.checks import check
from training.losses.base import ClassificationLoss, check_positive
from training.losses.cross_entropy import effective_weights
from training.samplers.base import BatchKind


class LogitAdjusted(ClassificationLoss):
    """Cross-entropy of logits + tau * log(prior): the margin for rare classes grows with rarity.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. (10). The adjustment is
    a matter of training alone: predictions use the logits as they are. At tau = 1 this is balanced
    softmax (Ren et al., NeurIPS 2020, which adds log n_k: the same up to a constant).

    Args:
        prior: How often each class comes, [K], all > 0, any scale (counts will do).
        tau: Strength; >= 0, and 0 is cross-entropy.
        balanced_prior: The same for batches of the kind "balanced"; null is ``prior``.

    Raises:
        ConfigError: If a prior has a value that is not above 0, or tau is out of its range.

    Example:
        >>> loss = LogitAdjusted(torch.tensor([3, 1]), tau=1.0)
        >>> round(loss(torch.zeros(1, 2), torch.tensor([1])).item(), 4)  # -log(1/4)
        1.3863
    """

    adjustment: Tensor
    balanced_adjustment: Tensor

    def __init__(
        self, prior: Tensor, tau: float = 1.0, balanced_prior: Tensor | None = None
    ) -> None:
        """Compute the adjustments once."""
        super().__init__()
        check("tau", tau, tau >= 0, ">= 0")
        balanced_prior = prior if balanced_prior is None else balanced_prior
        self.register_buffer("adjustment", _adjustment("prior", prior, tau))  # [K]
        balanced = _adjustment("balanced_prior", balanced_prior, tau)
        self.register_buffer("balanced_adjustment", balanced)  # [K]

    def per_row(self, logits: Tensor, labels: Tensor, batch_kind: BatchKind) -> Tensor:
        """Logits [B, K] and labels [B] -> losses [B]."""
        balanced = batch_kind == "balanced"
        adjustment = self.balanced_adjustment if balanced else self.adjustment
        return functional.cross_entropy(logits + adjustment, labels, reduction="none")


def _adjustment(name: str, prior: Tensor, tau: float) -> Tensor:
    check_positive(name, prior)
    return (tau * (prior.double() / prior.sum()).log()).float()


class LDAM(ClassificationLoss):
    """Label-distribution-aware margins: cross-entropy of s (cos - m_label).

    Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss", NeurIPS
    2019, eqs. (12) and (13): m_k = max_m (n_min / n_k)^(1/4) is taken off the cosine of the label's
    class. The logits come from `training.models.heads.CosineClassifier`, s times the cosine, so the
    margin in logits is s m_k. With deferred re-weighting (DRW) classes have the weights of
    `effective_weights` from an epoch on; the batch's mean is then divided by the sum of its
    weights, as in the authors' code.

    Args:
        class_counts: Training images per class, [K], all >= 1.
        max_m: Margin of the rarest class, in cosine; > 0.
        s: Scale of the classifier; > 0.
        beta: Of the weights; null is LDAM without re-weighting.
        drw_epoch: First epoch, from 1, with weights; the loop says which it is by `set_epoch`.

    Raises:
        ConfigError: If a class has no image, or an argument is out of its range.

    Example:
        >>> loss = LDAM(torch.tensor([16, 1]), max_m=0.5, s=2.0)  # margins 1/4 and 1/2
        >>> round(loss(torch.tensor([[0.0, 1.0]]), torch.tensor([1])).item(), 4)  # log 2
        0.6931
    """

    margins: Tensor
    weights: Tensor | None

    def __init__(
        self,
        class_counts: Tensor,
        max_m: float = 0.5,
        s: float = 30.0,
        beta: float | None = None,
        drw_epoch: int = 1,
    ) -> None:
        """Compute margins and weights once."""
        super().__init__()
        check("max_m", max_m, max_m > 0, "> 0")
        check("s", s, s > 0, "> 0")
        check("drw_epoch", drw_epoch, drw_epoch >= 1, ">= 1")
        check_positive("class_counts", class_counts)
        roots = class_counts.double() ** -0.25  # [K]
        self.register_buffer("margins", (s * max_m * roots / roots.max()).float())  # [K], in logits
        weights = None if beta is None else effective_weights(class_counts, beta)  # [K]
        self.register_buffer("weights", weights)
        self.drw_epoch = drw_epoch
        self.weighted = False
        self.set_epoch(1)

    def set_epoch(self, epoch: int) -> None:
        """Switch the weights on from drw_epoch on, and off before it."""
        self.weighted = self.weights is not None and epoch >= self.drw_epoch

    @property
    def phase(self) -> int:
        """1 with weights, else 0."""
        return int(self.weighted)

    def per_row(self, logits: Tensor, labels: Tensor, batch_kind: BatchKind) -> Tensor:
        """Logits [B, K] and labels [B] -> losses [B]."""
        # one_hot would look at the labels' values first.
        is_label = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)  # [B, K]
        shifted = torch.where(is_label, logits - self.margins, logits)
        return functional.cross_entropy(shifted, labels, reduction="none")

    def row_weights(self, labels: Tensor) -> Tensor | None:
        """Labels [B] -> weights [B], or None before drw_epoch."""
        return self.weights[labels] if self.weighted and self.weights is not None else None
