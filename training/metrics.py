"""Accuracies of a long-tailed classifier, all derived from one confusion matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MANY_ABOVE = 100
FEW_BELOW = 20


@dataclass(frozen=True)
class ShotGroups:
    """Classes by their number of training images (Liu et al., CVPR 2019): >100, 20..100, <20."""

    many: tuple[int, ...]
    medium: tuple[int, ...]
    few: tuple[int, ...]

    @classmethod
    def from_counts(cls, counts: list[int]) -> ShotGroups:
        """Sort classes into groups by their training images.

        Example:
            >>> ShotGroups.from_counts([101, 100, 20, 19])
            ShotGroups(many=(0,), medium=(1, 2), few=(3,))
        """
        classes = range(len(counts))
        return cls(
            many=tuple(k for k in classes if counts[k] > MANY_ABOVE),
            medium=tuple(k for k in classes if FEW_BELOW <= counts[k] <= MANY_ABOVE),
            few=tuple(k for k in classes if counts[k] < FEW_BELOW),
        )

    def of(self, class_index: int) -> str:
        """Return the group's name of a class."""
        if class_index in self.many:
            return "many"
        return "medium" if class_index in self.medium else "few"

    def as_dict(self) -> dict[str, list[int]]:
        """Return the classes of each group."""
        return {"many": list(self.many), "medium": list(self.medium), "few": list(self.few)}


@dataclass(frozen=True)
class Evaluation:
    """Result on one split; accuracies are fractions in [0, 1], NaN where there is no image.

    Attributes:
        loss: Mean cross-entropy of the unadjusted logits, in nats.
        accuracy: Correct images over all images.
        balanced_accuracy: Mean of the per-class accuracies.
        groups: Mean of the per-class accuracies of the many, medium and few classes.
        per_class: Accuracy (recall) per class.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    groups: dict[str, float]
    per_class: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            **{name: self.groups[name] for name in ("many", "medium", "few")},
            "per_class": self.per_class,
        }


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Count pairs: labels [N], predictions [N] -> int64 [K, K], row = label, column = prediction.

    Example:
        >>> confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    pairs = labels * num_classes + predictions  # [N]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def evaluate_confusion(confusion: Tensor, groups: ShotGroups, loss: float) -> Evaluation:
    """Derive all accuracies from a confusion matrix int64 [K, K] (row = label)."""
    confusion = confusion.cpu().double()
    correct = confusion.diagonal()  # [K]
    per_class = (correct / confusion.sum(1)).tolist()  # 0 / 0 is NaN: no image of that class
    members = {"many": groups.many, "medium": groups.medium, "few": groups.few}
    return Evaluation(
        loss=loss,
        accuracy=(correct.sum() / confusion.sum()).item(),
        balanced_accuracy=_mean(per_class),
        groups={name: _mean([per_class[k] for k in classes]) for name, classes in members.items()},
        per_class=per_class,
    )


def _mean(values: list[float]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    present = [value for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if present else math.nan
