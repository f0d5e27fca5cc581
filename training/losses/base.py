"""What a training loss is: a loss per image, and how the batch's mean is taken."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.errors import ConfigError
from training.samplers.base import BatchKind


class ClassificationLoss(nn.Module):
    """Mean over the rows of a batch of a loss per row, in float32 or better.

    Subclasses say what the loss of a row is, and perhaps its weight. The mean is
    sum_i w_i l_i / sum_i w_i, all w_i = 1 unless the subclass weights classes.

    In distributed training every rank gets the mean over its own rows, and
    DistributedDataParallel averages the ranks' gradients. That is the gradient of the global mean
    if all ranks have the same `denominator`. Where they have not, multiply the loss by
    ``denominator * world_size / all_reduced_sum(denominator)`` first: that is exact, for unequal
    shards and for class weights alike.

    Example:
        >>> class Hinge(ClassificationLoss):
        ...     def per_row(self, logits, labels, batch_kind):
        ...         return functional.multi_margin_loss(logits, labels, reduction="none")
        >>> Hinge()(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0])).item()
        0.5
    """

    def forward(self, logits: Tensor, labels: Tensor, batch_kind: BatchKind = "ordinary") -> Tensor:
        """Return the mean loss, [], float32 (float64 for float64 logits).

        Args:
            logits: [B, K], any floating-point dtype; half precision is computed in float32.
            labels: Classes, int64 [B].
            batch_kind: Kind of the batch; matters to losses whose prior depends on it.
        """
        losses = self.per_row(wide(logits), labels, batch_kind)  # [B]
        weights = self.row_weights(labels)
        if weights is None:
            return losses.mean()
        weights = weights.to(losses.dtype)
        return (weights * losses).sum() / weights.sum()

    def per_row(self, logits: Tensor, labels: Tensor, batch_kind: BatchKind) -> Tensor:
        """Logits [B, K] in float32 or float64, labels [B] -> loss of each row, [B]."""
        raise NotImplementedError

    def row_weights(self, labels: Tensor) -> Tensor | None:
        """Labels [B] -> weight of each row, [B]; None for equal ones."""
        return None

    def denominator(self, labels: Tensor) -> Tensor:
        """Return what the mean is divided by, []: the number of rows or the sum of weights."""
        weights = self.row_weights(labels)
        if weights is not None:
            return weights.sum()
        return torch.full((), len(labels), dtype=torch.float32, device=labels.device)

    def set_epoch(self, epoch: int) -> None:
        """Note which epoch (from 1) begins; matters to deferred re-weighting alone."""

    @property
    def phase(self) -> int:
        """Number of the formula in use: another one where `set_epoch` has changed it."""
        return 0


def wide(logits: Tensor) -> Tensor:
    """Return half-precision logits in float32, others as they are."""
    return logits.float() if logits.element_size() < 4 else logits


def check_positive(name: str, values: Tensor) -> None:
    """Check what a loss divides by or takes the logarithm of.

    Args:
        name: What the values are called.
        values: One per class, [K].

    Raises:
        ConfigError: Naming the classes without a value above 0.
    """
    missing = (~(values > 0)).nonzero().flatten().tolist()
    if missing:
        raise ConfigError(
            f"{name}: expected a number above 0 for every class, which this loss divides by or "
            f"takes the logarithm of, got none of the classes {missing[:10]}; remove these "
            "classes, or use cross-entropy (--loss ce)."
        )


def evaluation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropy over rows, the same for every training loss: [B, K], [B] -> [].

    Example:
        >>> round(evaluation_loss(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item(), 4)  # 3 log 4
        4.1589
    """
    return functional.cross_entropy(wide(logits), labels, reduction="sum")
