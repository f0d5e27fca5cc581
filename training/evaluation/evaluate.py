"""Exact evaluation of a model on a split: every image once, no padding, on any number of processes.

Always in float32, whatever precision trains, so that figures do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from training.config import TrainConfig
from training.data import FileSplit, LongTailedDataset, Split, evaluation_batches
from training.engine.distributed import Processes
from training.engine.trainer import EpochStatistics, Trainer
from training.evaluation.metrics import Evaluation, ShotGroups, Tally
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
    pass_over = evaluation_batches(dataset, split, BATCH_SIZE, processes.rank, processes.world_size)
    with evaluating(model), closing(pass_over) as batches:
        for images, labels in batches:
            logits = model(images)  # [B, K]
            tally.add(logits, labels, evaluation_loss(logits, labels))
    return tally.sum_over(processes).evaluation(groups)


def collect_features(
    model: WhitenedClassifier, dataset: LongTailedDataset, split: Split | FileSplit
) -> tuple[Tensor, Tensor]:
    """Return the features before and after whitening, evaluation mode: [N, D] each, on the CPU."""
    with evaluating(model), closing(evaluation_batches(dataset, split, BATCH_SIZE)) as batches:
        pairs = [model.features(images) for images, _ in batches]
    before, after = (torch.cat(part).cpu() for part in zip(*pairs, strict=True))
    return before, after


@dataclass(frozen=True)
class EpochResults:
    """Evaluations after an epoch.

    Attributes:
        evaluated: Whether this epoch was to be evaluated.
        model: Result per split, "validation" and "test"; None if the split was not evaluated.
        average: The same of the averaged weights; empty if no average is kept.
    """

    evaluated: bool
    model: dict[str, Evaluation | None]
    average: dict[str, Evaluation | None] = field(default_factory=dict)

    @property
    def confusions(self) -> dict[str, Tensor | None]:
        """Confusion matrix of the model per evaluated split."""
        return {name: r.confusion for name, r in self.model.items() if r is not None}


def evaluate_epoch(
    config: TrainConfig, trainer: Trainer, groups: ShotGroups, epoch: int
) -> EpochResults:
    """Evaluate the model, and the average beside it, if this epoch is to be evaluated."""
    last = epoch == config.optim.epochs
    evaluated = last or epoch % config.evaluate_every == 0
    dataset = trainer.dataset
    splits: dict[str, Split | FileSplit | None] = {
        "validation": dataset.validation if evaluated and dataset.has_validation else None,
        "test": dataset.test if evaluated and (last or config.evaluate_test) else None,
    }

    def results(model: nn.Module) -> dict[str, Evaluation | None]:
        return {
            name: None
            if split is None
            else evaluate(model, dataset, split, groups, trainer.processes)
            for name, split in splits.items()
        }

    average = {} if trainer.average is None else results(trainer.average.model)
    return EpochResults(evaluated, results(trainer.model), average)


def epoch_record(
    epoch: int, step: int, statistics: EpochStatistics, results: EpochResults
) -> dict[str, Any]:
    """One line of metrics.jsonl; a split that was not evaluated is null."""
    record: dict[str, Any] = {
        "epoch": epoch,
        "step": step,
        "learning_rate": statistics.learning_rate,
        "train": {"loss": statistics.loss, "accuracy": statistics.accuracy},
        "evaluated": results.evaluated,
        **as_dicts(results.model),
    }
    if results.average:
        record["ema"] = as_dicts(results.average)
    record["train_seconds"] = statistics.seconds
    record["images_per_second"] = statistics.images / statistics.seconds
    return record


def as_dicts(results: dict[str, Evaluation | None]) -> dict[str, Any]:
    """Return each result as plain containers; None stays None."""
    return {name: result and result.as_dict() for name, result in results.items()}
