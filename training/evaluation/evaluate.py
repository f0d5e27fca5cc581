"""Exact evaluation of a model on a split: every image once, no padding, on any number of processes.

Always in float32, whatever precision trains, so that figures do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch
from torch import Tensor, nn

from training.data.base import FileSplit, LongTailedDataset, Split
from training.engine.distributed import Processes
from training.evaluation.metrics import Evaluation, ShotGroups
from training.evaluation.tally import Tally
from training.losses import evaluation_loss
from training.models import WhitenedClassifier

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
    split: Split | FileSplit,
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
    pass_over = dataset.evaluation_batches(split, BATCH_SIZE, processes.rank, processes.world_size)
    with evaluating(model), closing(pass_over) as batches:
        for images, labels in batches:
            logits = model(images)  # [B, K]
            tally.add(logits, labels, evaluation_loss(logits, labels))
    return tally.sum_over(processes).evaluation(groups)


def collect_features(
    model: WhitenedClassifier, dataset: LongTailedDataset, split: Split | FileSplit
) -> tuple[Tensor, Tensor]:
    """Return the features before and after whitening, evaluation mode: [N, D] each, on the CPU."""
    with evaluating(model), closing(dataset.evaluation_batches(split, BATCH_SIZE)) as batches:
        pairs = [model.features(images) for images, _ in batches]
    before, after = (torch.cat(part).cpu() for part in zip(*pairs, strict=True))
    return before, after
