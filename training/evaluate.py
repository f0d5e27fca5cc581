"""Exact evaluation of a model on a split: every image once, no padding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.data.base import LongTailedDataset, Split
from training.losses import evaluation_loss
from training.metrics import Evaluation, ShotGroups, confusion_matrix, evaluate_confusion
from training.models import WhitenedClassifier

BATCH_SIZE = 512


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; the model's mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def evaluate(
    model: WhitenedClassifier, dataset: LongTailedDataset, split: Split, groups: ShotGroups
) -> Evaluation:
    """Return loss and accuracies of the model, in evaluation mode, on a split."""
    total = torch.zeros((), dtype=torch.float64)
    confusion = torch.zeros(dataset.num_classes, dataset.num_classes, dtype=torch.int64)  # [K, K]
    with evaluating(model):
        for images, labels in _batches(dataset, split):
            logits = model(images)  # [B, K]
            total += evaluation_loss(logits, labels).double().cpu()
            confusion += confusion_matrix(labels, logits.argmax(1), dataset.num_classes).cpu()
    return evaluate_confusion(confusion, groups, (total / len(split)).item())


def collect_features(
    model: WhitenedClassifier, dataset: LongTailedDataset, split: Split
) -> tuple[Tensor, Tensor]:
    """Return the features before and after whitening, evaluation mode: [N, D] each, on the CPU."""
    with evaluating(model):
        pairs = [model.features(images) for images, _ in _batches(dataset, split)]
    before, after = (torch.cat(part).cpu() for part in zip(*pairs, strict=True))
    return before, after


def _batches(dataset: LongTailedDataset, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised images float32 [B, C, H, W] and labels int64 [B]."""
    for start in range(0, len(split), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        yield dataset.normalise(split.images[part]), split.labels[part]
