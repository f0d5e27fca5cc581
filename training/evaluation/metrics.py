"""Accuracies and calibration of a long-tailed classifier, all derived from counts and sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.engine.distributed import Processes

MANY_ABOVE = 100
FEW_BELOW = 20
CALIBRATION_BINS = 15
"""The number in use since Guo et al., "On calibration of modern neural networks", ICML 2017."""

COLUMNS = {
    "many": "many",
    "medium": "medium",
    "few": "few",
    "balanced_accuracy": "balanced",
    "accuracy": "all",
}
"""The accuracies of a result that tables show, and their headings."""


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
        loss: Mean cross-entropy of the unadjusted logits (the negative log-likelihood), in nats.
        accuracy: Correct images over all images.
        balanced_accuracy: Mean of the per-class accuracies.
        groups: Mean of the per-class accuracies of the many, medium and few classes.
        worst_class: The class with the lowest accuracy, the first one of several.
        worst_class_accuracy: Its accuracy.
        macro_precision: Mean precision over the classes that have images; a class that is never
            predicted has precision 0.
        macro_f1: Mean F1 over the classes that have images.
        ece: Expected calibration error of the predicted class, 15 bins of equal width (Guo et al.,
            ICML 2017), in [0, 1]; NaN if it was not asked for.
        per_class: Accuracy (recall) per class.
        confusion: int64 [K, K], row = label, column = prediction; None for very many classes.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    groups: dict[str, float]
    worst_class: int
    worst_class_accuracy: float
    macro_precision: float
    macro_f1: float
    ece: float
    per_class: list[float]
    confusion: Tensor | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON, without the confusion matrix."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            **{name: self.groups[name] for name in ("many", "medium", "few")},
            "worst_class": self.worst_class,
            "worst_class_accuracy": self.worst_class_accuracy,
            "macro_precision": self.macro_precision,
            "macro_f1": self.macro_f1,
            "ece": self.ece,
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


def evaluate_counts(
    correct: Tensor,
    labels: Tensor,
    predictions: Tensor,
    groups: ShotGroups,
    loss: float,
    ece: float,
    confusion: Tensor | None,
) -> Evaluation:
    """Derive all figures from counts per class.

    Args:
        correct: Images of each class that were classified correctly, int64 [K], on the CPU.
        labels: Images of each class, int64 [K].
        predictions: Images classified as each class, int64 [K].
        groups: Classes by their number of training images.
        loss: See `Evaluation`.
        ece: See `Evaluation`.
        confusion: See `Evaluation`.
    """
    correct, labels, predictions = correct.double(), labels.double(), predictions.double()
    per_class = (correct / labels).tolist()  # 0 / 0 is NaN: no image of that class
    present = labels > 0  # [K]
    precision = correct / predictions.clamp_min(1)
    f1 = 2 * correct / (labels + predictions)
    worst = min((value, k) for k, value in enumerate(per_class) if not math.isnan(value))
    members = {"many": groups.many, "medium": groups.medium, "few": groups.few}
    return Evaluation(
        loss=loss,
        accuracy=(correct.sum() / labels.sum()).item(),
        balanced_accuracy=_mean(per_class),
        groups={name: _mean([per_class[k] for k in classes]) for name, classes in members.items()},
        worst_class=worst[1],
        worst_class_accuracy=worst[0],
        macro_precision=_mean(precision[present].tolist()),
        macro_f1=_mean(f1[present].tolist()),
        ece=ece,
        per_class=per_class,
        confusion=confusion,
    )


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy in bins [0, 1/B), [1/B, 2/B), … of the confidence.

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


def reliability(logits: Tensor, labels: Tensor) -> Reliability:
    """Sort predictions, logits [N, K] of labels int64 [N], into bins of their confidence.

    Example:
        >>> found = reliability(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        >>> found.images[7].item(), found.accuracy[7].item(), found.error
        (4, 0.75, 0.25)
    """
    confidence, predicted = logits.double().softmax(1).max(1)  # [N] each
    images, correct, total = calibration_bins(confidence, predicted == labels)
    error = calibration_error(images, correct, total)
    # For people, a confidence of 1 is in the last bin.
    images, correct, total = (
        torch.cat([t[:-2], t[-2:].sum(0, keepdim=True)]) for t in (images, correct, total)
    )
    return Reliability(images, correct / images, total / images, error)


def calibration_bins(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over the images of each bin, whose edges are torchmetrics': 1 is a bin of its own.

    Args:
        confidence: Largest softmax probability, [N].
        correct: Whether the image was classified correctly, bool [N].

    Returns:
        Images and correct images, int64 [B + 1], and confidence, float64 [B + 1].
    """
    edges = torch.linspace(
        0, 1, CALIBRATION_BINS + 1, dtype=confidence.dtype, device=confidence.device
    )
    place = torch.bucketize(confidence, edges, right=True) - 1  # [N]
    members = torch.nn.functional.one_hot(place, CALIBRATION_BINS + 1)  # [N, B + 1]
    return members.sum(0), members[correct].sum(0), confidence.double() @ members.double()


def calibration_error(images: Tensor, correct: Tensor, confidence: Tensor) -> float:
    """Mean over images of |accuracy - mean confidence| of their bin.

    Args:
        images: Images per bin, int64.
        correct: Correct images per bin, int64.
        confidence: Sum of the confidence of each bin's images, float64.

    Example:
        >>> calibration_error(torch.tensor([2, 2]), torch.tensor([0, 2]), torch.tensor([0.5, 1.5]))
        0.25
    """
    # In each bin, images * |correct / images - confidence / images| = |correct - confidence|.
    return ((correct - confidence).abs().sum() / images.sum()).item()


def _mean(values: list[float]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    present = [value for value in values if not math.isnan(value)]
    return math.fsum(present) / len(present) if present else math.nan


CONFUSION_UP_TO = 1000
"""With more classes only the margins of the confusion matrix are counted, not the matrix."""


class Tally:
    """Counts and sums of an evaluation, kept on its device: nothing waits for it batch by batch.

    Args:
        num_classes: K.
        device: Of logits and labels.

    Attributes:
        counts: int64; the confusion matrix [K * K] (or, with more than `CONFUSION_UP_TO` classes,
            correct, labels and predictions per class, [3 * K]), then images and correct images per
            calibration bin, [2 * 16].
        sums: float64 [1 + 16]; the loss, then the confidence per calibration bin.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        """Start at zero."""
        self.num_classes = num_classes
        self.keeps_confusion = num_classes <= CONFUSION_UP_TO
        size = num_classes * (num_classes if self.keeps_confusion else 3)
        bins = CALIBRATION_BINS + 1
        self.counts = torch.zeros(size + 2 * bins, dtype=torch.int64, device=device)
        self.sums = torch.zeros(1 + bins, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count a batch: logits [B, K], labels [B], sum of its loss []."""
        confidence, predictions = logits.float().softmax(1).max(1)  # [B]
        correct = predictions == labels  # [B]
        k = self.num_classes
        if self.keeps_confusion:
            pairs = confusion_matrix(labels, predictions, k).flatten()
        else:
            pairs = torch.cat(
                [torch.bincount(x, minlength=k) for x in (labels[correct], labels, predictions)]
            )
        images, in_bin, total = calibration_bins(confidence, correct)
        self.counts += torch.cat([pairs, images, in_bin])
        self.sums[0] += loss.double()
        self.sums[1:] += total

    def sum_over(self, processes: Processes) -> Tally:
        """Add up over all processes, in place; return itself."""
        processes.sum_(self.counts)
        processes.sum_(self.sums)
        return self

    def evaluation(self, groups: ShotGroups) -> Evaluation:
        """Return the figures."""
        counts, sums = self.counts.cpu(), self.sums.cpu()
        k, n = self.num_classes, CALIBRATION_BINS + 1
        pairs, in_bin, correct_in_bin = counts.split([len(counts) - 2 * n, n, n])
        confusion = pairs.view(k, k) if self.keeps_confusion else None
        if confusion is None:
            correct, labels, predictions = pairs.view(3, k)
        else:
            correct, labels, predictions = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        return evaluate_counts(
            correct,
            labels,
            predictions,
            groups,
            loss=(sums[0] / labels.sum()).item(),
            ece=calibration_error(in_bin, correct_in_bin, sums[1:]),
            confusion=confusion,
        )
