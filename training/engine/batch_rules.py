"""What a batch's kind and classes change in the forward pass of a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.config import TrainConfig
from training.models.whitening import class_balanced_weights
from training.samplers.base import BatchKind


@dataclass(frozen=True)
class BatchRules:
    """The arguments of the model, next to the images, in training.

    Attributes:
        statistics_batches: Kind of the batches that update running statistics, or "all".
        weights_from: Whose class shares the images' weights in the whitening's statistics are the
            inverse of, "batch" or "dataset"; null for equal weights.
        class_counts: Training images per class, [K], on the training device.
    """

    statistics_batches: str
    weights_from: str | None
    class_counts: Tensor

    @classmethod
    def from_config(cls, config: TrainConfig, class_counts: Tensor) -> BatchRules:
        """Read the configuration; class_counts [K] on the training device."""
        weighted = config.whitening_weights == "class-balanced"
        weights_from = config.whitening_options.weights_from if weighted else None
        return cls(config.statistics_batches, weights_from, class_counts)

    def arguments(
        self,
        labels: Tensor,
        kind: BatchKind,
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Any]:
        """Return keyword arguments of `WhitenedClassifier.forward`; none where all is default.

        Args:
            labels: Classes of this process' rows, int64 [B].
            kind: Of the batch.
            sum_over_ranks: Sums a tensor over all processes; null for a single one.

        Example:
            >>> rules = BatchRules("ordinary", None, torch.tensor([3, 1]))
            >>> labels = torch.tensor([0, 1])
            >>> rules.arguments(labels, "ordinary"), rules.arguments(labels, "balanced")
            ({}, {'update_statistics': False})
        """
        arguments: dict[str, Any] = {}
        if self.statistics_batches not in ("all", kind):
            arguments["update_statistics"] = False
        if self.weights_from is not None:
            counts = self.class_counts
            if self.weights_from == "batch":
                counts = _class_counts(labels, len(counts))
                counts = counts if sum_over_ranks is None else sum_over_ranks(counts)
            arguments["sample_weight"] = class_balanced_weights(labels, counts)
        return arguments


def _class_counts(labels: Tensor, num_classes: int) -> Tensor:
    # bincount has no deterministic CUDA implementation, and one_hot looks at the labels' values;
    # whole numbers add up exactly in any order.
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).sum(0)  # [K]
