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
        for images, labels in dataset.evaluation_batches(split, BATCH_SIZE):
            logits = model(images)  # [B, K]
            total += evaluation_loss(logits, labels).double().cpu()
            confusion += confusion_matrix(labels, logits.argmax(1), dataset.num_classes).cpu()
    return evaluate_confusion(confusion, groups, (total / len(split)).item())


def collect_features(
    model: WhitenedClassifier, dataset: LongTailedDataset, split: Split
) -> tuple[Tensor, Tensor]:
    """Return the features before and after whitening, evaluation mode: [N, D] each, on the CPU."""
    with evaluating(model):
        batches = dataset.evaluation_batches(split, BATCH_SIZE)
        pairs = [model.features(images) for images, _ in batches]
    before, after = (torch.cat(part).cpu() for part in zip(*pairs, strict=True))
    return before, after
