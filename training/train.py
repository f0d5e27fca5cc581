"""One training run from the configuration to the report: the command ``train``."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import yaml
from rich.console import Console

from training.checkpoint import save_checkpoint
from training.config import TrainConfig, to_dict, validate
from training.data import LongTailedDataset, build_dataset
from training.environment import describe_environment, versions
from training.errors import ConfigError
from training.evaluate import evaluate
from training.files import append_json_line, write_json, write_text
from training.inspection import view_model
from training.loop import EpochStatistics, Trainer, build_trainer
from training.metrics import Evaluation, ShotGroups
from training.progress import Reporter, build_reporter, print_results
from training.report import draw_plots, write_report
from training.reproducibility import (
    Seeds,
    cpu_threads,
    deterministic_algorithms,
    resolve_seeds,
)
from training.run_folder import RunFolder, create_run_folder
from training.scalars import with_scalars

SELECTION_SPLIT = "validation"
SELECTION_METRIC = "balanced_accuracy"


@dataclass
class History:
    """The epochs so far, and which one is the best."""

    records: list[dict[str, Any]] = field(default_factory=list)
    best: int = -1
    images: int = 0
    train_seconds: float = 0.0

    def add(self, record: dict[str, Any], statistics: EpochStatistics) -> bool:
        """Append an epoch; return whether it is the best one so far.

        Best is the highest balanced accuracy on the validation split, the lower validation loss
        on a tie. The test split is never looked at.
        """
        self.records.append(record)
        self.images += statistics.images
        self.train_seconds += statistics.seconds
        is_best = self.best < 0 or _score(record) > _score(self.records[self.best])
        if is_best:
            self.best = len(self.records) - 1
        return is_best


def run_training(config: TrainConfig, console: Console | None = None) -> dict[str, Any]:
    """Train, evaluate, write the run folder, and return the summary.

    Args:
        config: The configuration.
        console: Where progress and the closing table are printed; standard output by default.

    Returns:
        The content of summary.json.

    Raises:
        ConfigError: If the configuration makes no sense.
        TrainingDiverged: If the loss is not finite.
    """
    started = time.perf_counter()
    console = console or Console()
    validate(config)
    device = select_device(config.device)
    seeds = resolve_seeds(config.seed, config.seeds)
    dataset = build_dataset(config, seeds.split)
    with cpu_threads(config.threads), deterministic_algorithms(config.deterministic):
        trainer = build_trainer(config, dataset, seeds, device)
        folder = create_run_folder(config.run_name(), config.output)
        write_text(folder.config, yaml.safe_dump(to_dict(config), sort_keys=False))
        write_json(folder.environment, describe_environment(device))
        reporter = build_reporter(console, config.optim.epochs, len(trainer.sampler))
        reporter = with_scalars(reporter, config, folder, trainer)
        try:
            history = _train(config, trainer, folder, reporter)
        finally:
            reporter.close()
        view = view_model(trainer.model, trainer.dataset, "test")
    summary = _summarise(config, dataset, seeds, history, view.mean_abs_correlation)
    summary["parameters"] = sum(p.numel() for p in trainer.model.parameters())
    if config.output.plots:
        draw_plots(folder, summary, history.records, view)
    summary["wall_seconds"] = time.perf_counter() - started
    write_json(folder.summary, summary)
    if config.output.plots:
        write_report(folder, summary)
    print_results(console, summary, folder)
    return summary


def select_device(name: str) -> torch.device:
    """Return the torch device of a name; "auto" is cuda where there is one.

    Raises:
        ConfigError: If the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, by the kind of device
        raise ConfigError(
            f"device: expected auto, cpu or a device that torch can use here, got {name!r} "
            f"({str(error).splitlines()[0]})."
        ) from error


def _train(config: TrainConfig, trainer: Trainer, folder: RunFolder, reporter: Reporter) -> History:
    """Run all epochs; write a line of metrics.jsonl and the checkpoints after each."""
    history = History()
    dataset = trainer.dataset
    groups = ShotGroups.from_counts(dataset.class_counts.tolist())
    for epoch in range(1, config.optim.epochs + 1):
        statistics = trainer.run_epoch(epoch, reporter.step)
        validation = evaluate(trainer.model, dataset, dataset.validation, groups)
        test = evaluate(trainer.model, dataset, dataset.test, groups)
        record = _epoch_record(epoch, trainer.step, statistics, validation, test)
        is_best = history.add(record, statistics)
        append_json_line(folder.metrics, record)
        for name in ("last", "best") if is_best else ("last",):
            save_checkpoint(
                folder.checkpoint(name),
                trainer.model,
                config=to_dict(config),
                seeds=asdict(trainer.seeds),
                epoch=epoch,
                step=trainer.step,
                metrics=record,
                class_counts=dataset.class_counts,
            )
        reporter.epoch(record)
    return history


def _epoch_record(
    epoch: int,
    step: int,
    statistics: EpochStatistics,
    validation: Evaluation,
    test: Evaluation,
) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    return {
        "epoch": epoch,
        "step": step,
        "learning_rate": statistics.learning_rate,
        "train": {"loss": statistics.loss, "accuracy": statistics.accuracy},
        "validation": validation.as_dict(),
        "test": test.as_dict(),
        "train_seconds": statistics.seconds,
        "images_per_second": statistics.images / statistics.seconds,
    }


def _score(record: dict[str, Any]) -> tuple[float, float]:
    result = record[SELECTION_SPLIT]
    return result[SELECTION_METRIC], -result["loss"]


def _summarise(
    config: TrainConfig,
    dataset: LongTailedDataset,
    seeds: Seeds,
    history: History,
    mean_abs_correlation: dict[str, float],
) -> dict[str, Any]:
    """The content of summary.json, but for the wall time."""
    counts = dataset.class_counts.tolist()
    results = {}
    for kind, position in (("last", -1), ("best", history.best)):
        record = history.records[position]
        results[kind] = {key: record[key] for key in ("epoch", "train", "validation", "test")}
    return {
        "dataset": config.dataset,
        "imbalance_factor": config.imbalance_factor,
        "whitening": config.whitening,
        "loss": config.loss,
        "seed": config.seed,
        "seeds": asdict(seeds),
        "selection": {"split": SELECTION_SPLIT, "metric": SELECTION_METRIC},
        **results,
        "class_names": list(dataset.class_names),
        "class_counts": counts,
        "shot_groups": ShotGroups.from_counts(counts).as_dict(),
        "split_sizes": {
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "test": len(dataset.test),
        },
        "mean_abs_correlation": mean_abs_correlation,
        "images_per_second": history.images / history.train_seconds,
        "versions": versions(),
    }
