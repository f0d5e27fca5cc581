"""What is measured after an epoch, and the line of metrics.jsonl that it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from training.config import TrainConfig
from training.data.base import FileSplit, Split
from training.engine.trainer import EpochStatistics, Trainer
from training.evaluation.evaluate import evaluate
from training.evaluation.metrics import Evaluation, ShotGroups


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
