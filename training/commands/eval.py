"""The command ``eval``: a checkpoint of a run on one of its splits."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.config import EvalConfig
from training.console import say
from training.data.base import SplitName
from training.engine.distributed import select_device
from training.errors import ConfigError
from training.evaluation.evaluate import evaluate
from training.evaluation.metrics import COLUMNS, Evaluation, ShotGroups
from training.report.progress import percent
from training.reproducibility import cpu_threads, deterministic_algorithms
from training.runs.finished import Run, load_run, read_run
from training.runs.folder import output_file, without_nan, write_json


def run_eval(config: EvalConfig, console: Console | None = None) -> int:
    """Evaluate, print a table, and write the result as JSON if asked to.

    Returns:
        The exit status: 0, or 1 if ``verify`` found another result than the run had.

    Raises:
        ConfigError: If there is no such run, checkpoint or split.
    """
    console = console or Console()
    if config.verify and config.split == "train":
        raise ConfigError(
            "verify: expected --split validation or test, got train, whose figures in summary.json "
            "were taken in training mode; leave --verify out."
        )
    run = read_run(config.run)
    output = None if config.output is None else output_file(config.output)
    result = evaluate_run(run, config.split, config.checkpoint, config.device)
    _print(console, run, result)
    if output is not None:
        write_json(output, result)
        say(console, f"  {output}")
    return 1 if config.verify and not result["equals_summary"] else 0


def evaluate_run(
    run: Run, split: SplitName, checkpoint: str, device_name: str | None = None
) -> dict[str, Any]:
    """Evaluate a checkpoint of a run with the run's own batches, threads and device.

    Returns:
        Plain containers: the run, the split, the checkpoint, its epoch, the "result" as in
        summary.json, and whether it "equals_summary" to the bit (null for the training split, whose
        figures there were taken in training mode).
    """
    device = select_device(device_name or run.config.device)
    with cpu_threads(run.config.threads), deterministic_algorithms(run.config.deterministic):
        loaded = load_run(run, checkpoint, device)
        dataset = loaded.dataset
        groups = ShotGroups.from_counts(dataset.class_counts.tolist())
        images = dataset.split(split)
        if len(images) == 0:
            raise ConfigError(
                f"split: expected a split with images, {run.config.dataset} of {run.folder.path} "
                f"has no {split} split; use --split test or train."
            )
        result = without_nan(with_confusion(evaluate(loaded.model, dataset, images, groups)))
    known = run.summary[checkpoint].get(split)
    return {
        "run": str(run.folder.path),
        "split": split,
        "images": len(images),
        "checkpoint": checkpoint,
        "epoch": loaded.epoch,
        "result": result,
        "equals_summary": None if split == "train" else result == known,
    }


def with_confusion(evaluation: Evaluation) -> dict[str, Any]:
    """Return a result as summary.json has it."""
    matrix = evaluation.confusion
    return {**evaluation.as_dict(), "confusion": None if matrix is None else matrix.tolist()}


def _print(console: Console, run: Run, result: dict[str, Any]) -> None:
    title = escape(
        f"{run.folder.path.name}, {result['checkpoint']} (epoch {result['epoch']}): accuracy in %"
    )
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("split", no_wrap=True)
    for heading in ("images", *COLUMNS.values(), "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    figures = result["result"]
    cells = [percent(figures[name]) for name in COLUMNS]
    table.add_row(result["split"], str(result["images"]), *cells, f"{figures['loss']:.3f}")
    console.print(table)
    if result["equals_summary"] is not None:
        verdict = "equal to" if result["equals_summary"] else "NOT equal to"
        say(console, f"{verdict} the figures of {run.folder.summary}")
