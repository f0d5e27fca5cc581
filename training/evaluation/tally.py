"""Sums over images from which all figures of an evaluation follow; sums add up over processes."""

from __future__ import annotations

import torch
from torch import Tensor

from training.engine.distributed import Processes
from training.evaluation.metrics import (
    CALIBRATION_BINS,
    Evaluation,
    ShotGroups,
    calibration_error,
    confusion_matrix,
    evaluate_counts,
)

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
            calibration bin, [2 * 15].
        sums: float64 [1 + 15]; the loss, then the confidence per calibration bin.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        """Start at zero."""
        self.num_classes = num_classes
        self.keeps_confusion = num_classes <= CONFUSION_UP_TO
        size = num_classes * (num_classes if self.keeps_confusion else 3)
        self.counts = torch.zeros(size + 2 * CALIBRATION_BINS, dtype=torch.int64, device=device)
        self.sums = torch.zeros(1 + CALIBRATION_BINS, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count a batch: logits [B, K], labels [B], sum of its loss []."""
        confidence, predictions = logits.float().softmax(1).max(1)  # [B]
        correct = predictions == labels  # [B]
        k, n = self.num_classes, CALIBRATION_BINS
        if self.keeps_confusion:
            pairs = confusion_matrix(labels, predictions, k).flatten()
        else:
            pairs = torch.cat(
                [torch.bincount(x, minlength=k) for x in (labels[correct], labels, predictions)]
            )
        # Bin b holds confidences in [b / 15, (b + 1) / 15).
        edges = torch.linspace(0, 1, n + 1, device=logits.device)  # [16]
        bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp_(0, n - 1)  # [B]
        members = torch.nn.functional.one_hot(bins, n)  # [B, 15]
        self.counts += torch.cat([pairs, members.sum(0), members[correct].sum(0)])
        self.sums[0] += loss.double()
        self.sums[1:] += confidence.double() @ members.double()

    def sum_over(self, processes: Processes) -> Tally:
        """Add up over all processes, in place; return itself."""
        processes.sum_(self.counts)
        processes.sum_(self.sums)
        return self

    def evaluation(self, groups: ShotGroups) -> Evaluation:
        """Return the figures."""
        counts, sums = self.counts.cpu(), self.sums.cpu()
        k, n = self.num_classes, CALIBRATION_BINS
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
