"""The end of a run: what is still to evaluate, summary.json, pictures, report, closing table."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict
from typing import Any

from rich.console import Console

from training.config import TrainConfig
from training.engine.trainer import Trainer
from training.evaluation.evaluate import evaluate
from training.evaluation.inspection import view_model
from training.evaluation.metrics import ShotGroups
from training.report.progress import print_results
from training.report.report import draw_plots, write_report
from training.runs.checkpoint import load_checkpoint
from training.runs.folder import RunFolder, versions, write_json
from training.runs.history import SELECTION_METRIC, SELECTION_SPLIT, History


def finish_run(
    config: TrainConfig,
    trainer: Trainer,
    history: History,
    folder: RunFolder,
    console: Console,
    started: float,
) -> dict[str, Any]:
    """Write and print everything that is made once, at the end; return the summary.

    Args:
        config: Of the run.
        trainer: With the last model.
        history: Complete.
        folder: Of the run.
        console: For the closing table.
        started: `time.perf_counter` at the start of this part of the run.
    """
    _evaluate_best(trainer, history, folder)

    def finish() -> dict[str, Any]:
        view = view_model(trainer.model, trainer.dataset, "test")
        summary = _summarise(config, trainer, history, view.mean_abs_correlation)
        if config.output.plots:
            whole = [r for r in history.records if r["validation"] and r["test"]]
            draw_plots(folder, summary, whole, view)
        this_part = time.perf_counter() - started
        summary["wall_seconds"] = max(this_part, history.wall_seconds)
        write_json(folder.summary, summary)
        if config.output.plots:
            write_report(folder, summary)
        print_results(console, summary, folder)
        return summary

    return trainer.processes.on_first(finish)


def _evaluate_best(trainer: Trainer, history: History, folder: RunFolder) -> None:
    """Evaluate the best model on the test split, if that was left for the end."""
    best = history.records[history.best]
    if best["test"] is not None:
        return
    processes, dataset = trainer.processes, trainer.dataset
    checkpoint = processes.on_first(lambda: load_checkpoint(folder.checkpoint("best")))
    groups = ShotGroups.from_counts(dataset.class_counts.tolist())
    model = copy.deepcopy(trainer.model)
    model.load_state_dict(checkpoint["model"])
    result = evaluate(model, dataset, dataset.test, groups, processes)
    # The line in metrics.jsonl stays as the epoch wrote it; the summary has the result.
    best["test"] = result.as_dict()
    history.confusions["best"]["test"] = result.confusion


def _summarise(
    config: TrainConfig,
    trainer: Trainer,
    history: History,
    mean_abs_correlation: dict[str, float],
) -> dict[str, Any]:
    """The content of summary.json, but for the wall time."""
    dataset = trainer.dataset
    counts = dataset.class_counts.tolist()
    chosen = dataset.has_validation
    return {
        "dataset": config.dataset,
        "imbalance_factor": dataset.options.imbalance_factor or dataset.imbalance_factor,
        "whitening": config.whitening,
        "loss": config.loss,
        "seed": config.seed,
        "seeds": asdict(trainer.seeds),
        "selection": {
            "split": SELECTION_SPLIT if chosen else "none",
            "metric": SELECTION_METRIC if chosen else None,
        },
        "last": _result(history, "last", -1),
        "best": _result(history, "best", history.best),
        "class_names": list(dataset.class_names),
        "class_counts": counts,
        "cut": dataset.cut,
        "preparation": dataset.preparation(),
        "shot_groups": ShotGroups.from_counts(counts).as_dict(),
        "split_sizes": {
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "test": len(dataset.test),
        },
        "mean_abs_correlation": mean_abs_correlation,
        "images_per_second": history.images / history.train_seconds,
        "processes": trainer.processes.world_size,
        "versions": versions(),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }


def _result(history: History, kind: str, position: int) -> dict[str, Any]:
    """One epoch's record with its confusion matrices."""
    record = history.records[position]
    result = {key: record[key] for key in ("epoch", "train", "validation", "test")}
    if "ema" in record:
        result["ema"] = record["ema"]
    for split, confusion in history.confusions.get(kind, {}).items():
        matrix = None if confusion is None else confusion.tolist()
        result[split] = {**result[split], "confusion": matrix}
    return result
