"""Exact evaluation of a model on a split: every image once, no padding, on any number of processes.

Always in float32, whatever precision trains, so that figures do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.data.base import LongTailedDataset, Split
from training.distributed import Processes
from training.losses import evaluation_loss
from training.metrics import Evaluation, ShotGroups
from training.models import WhitenedClassifier
from training.tally import Tally

BATCH_SIZE = 512
ALONE = Processes()


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
    model: nn.Module,
    dataset: LongTailedDataset,
    split: Split,
    groups: ShotGroups,
    processes: Processes = ALONE,
) -> Evaluation:
    """Return loss and accuracies of the model, in evaluation mode, on a split.

    Process r of n takes the images r, r + n, r + 2n, …; only sums are exchanged, so the counts
    are those of a single process.

    Args:
        model: Maps images [B, C, H, W] to logits [B, K]; the same on every process.
        dataset: That the split belongs to, on the model's device.
        split: At least one image.
        groups: Classes by their number of training images.
        processes: That share the work; all of them call this, and all get the result.
    """
    tally = Tally(dataset.num_classes, split.labels.device)
    with evaluating(model):
        for images, labels in _batches(dataset, split, processes):
            logits = model(images)  # [B, K]
            tally.add(logits, labels, evaluation_loss(logits, labels))
    return tally.sum_over(processes).evaluation(groups)


def collect_features(
    model: WhitenedClassifier, dataset: LongTailedDataset, split: Split
) -> tuple[Tensor, Tensor]:
    """Return the features before and after whitening, evaluation mode: [N, D] each, on the CPU."""
    with evaluating(model):
        pairs = [model.features(images) for images, _ in _batches(dataset, split, ALONE)]
    before, after = (torch.cat(part).cpu() for part in zip(*pairs, strict=True))
    return before, after


def _batches(
    dataset: LongTailedDataset, split: Split, processes: Processes
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised images float32 [B, C, H, W] and labels int64 [B] of this process' share."""
    step = BATCH_SIZE * processes.world_size
    for start in range(processes.rank, len(split), step):
        part = slice(start, start + step, processes.world_size)
        yield dataset.normalise(split.images[part]), split.labels[part]
