"""The command ``diagnose``: all diagnostics of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from training.config.commands import DiagnoseConfig, check_diagnose
from training.console import say
from training.engine.distributed import select_device
from training.evaluation.diagnose import diagnose
from training.reproducibility import cpu_threads
from training.runs.finished import load_run, read_run
from training.runs.folder import write_json


def run_diagnose(config: DiagnoseConfig, console: Console | None = None) -> dict[str, Any]:
    """Compute, print and write diagnostics/<checkpoint>-<split>.json of a run.

    Raises:
        ConfigError: If there is no such run, checkpoint or split.
    """
    console = console or Console()
    check_diagnose(config)
    device = select_device(config.device)
    loaded = load_run(read_run(config.run), config.checkpoint, device)
    with cpu_threads(loaded.run.config.threads):
        result = {
            "run": str(loaded.run.folder.path),
            "checkpoint": config.checkpoint,
            "epoch": loaded.epoch,
            **diagnose(
                loaded.run.config,
                loaded.model,
                loaded.dataset,
                config.split,
                config.hessian_rows,
                loaded.epoch,
            ),
        }
    path = Path(config.run) / "diagnostics" / f"{config.checkpoint}-{config.split}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, result)
    print_diagnostics(console, result)
    say(console, f"  {path}")
    return result


_FEATURE_ROWS = {
    "mean_abs_correlation": "mean |off-diagonal correlation|",
    "spectral_entropy": "spectral entropy (nats)",
    "effective_rank": "effective rank",
    "gaussian_entropy": "Gaussian entropy (nats)",
    "second_moment_condition": "condition number of E(x x^T)",
}
_BATCH_ROWS = {
    "batches": "batches of an epoch",
    "distinct_classes": "distinct classes per batch",
    "covariance_fluctuation": "covariance: std over batches / mean",
    "distance_to_split": "covariance: distance to the training split's",
    "distance_to_running": "covariance: distance to the layer's running one",
    "gradient_cosine": "classifier gradients: mean |cos| between classes",
}


def print_diagnostics(console: Console, result: Mapping[str, Any]) -> None:
    """Print the figures that are one number each; vectors are in the file."""
    features = Table(
        title=f"{result['checkpoint']} (epoch {result['epoch']}), features of the "
        f"{result['split']} split, {result['images']} images",
        box=SIMPLE_HEAD,
    )
    features.add_column("")
    for heading in ("before whitening", "after"):
        features.add_column(heading, justify="right")
    for key, text in _FEATURE_ROWS.items():
        features.add_row(text, f"{result['before'][key]:.4g}", f"{result['after'][key]:.4g}")
    classifier = result["classifier"]
    condition = f"{classifier['hessian_condition']:.4g}"
    features.add_row("condition number of the classifier's Hessian", "", condition)
    console.print(features)
    batches = Table(title=f"training batches of epoch {result['epoch']}", box=SIMPLE_HEAD)
    batches.add_column("")
    for kind in result["batches"]:
        batches.add_column(kind, justify="right")
    for key, text in _BATCH_ROWS.items():
        cells = [_cell(figures[key]) for figures in result["batches"].values()]
        batches.add_row(text, *cells)
    console.print(batches)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
