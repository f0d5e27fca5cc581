"""The command ``diagnose``: all diagnostics of a checkpoint."""

from __future__ import annotations

import json
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
from training.evaluation.ood import foreign_split, ood_diagnostics
from training.reproducibility import cpu_threads
from training.runs.finished import load_run, read_run
from training.runs.folder import write_json


def run_diagnose(config: DiagnoseConfig, console: Console | None = None) -> dict[str, Any]:
    """Compute, print and write diagnostics/<checkpoint>-<split>.json of a run.

    Raises:
        ConfigError: If there is no such run, checkpoint, split or foreign data set.
    """
    console = console or Console()
    check_diagnose(config)
    device = select_device(config.device)
    loaded = load_run(read_run(config.run), config.checkpoint, device)
    foreign = {
        name: foreign_split(name, config.ood_root.get(name), loaded.dataset) for name in config.ood
    }
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
        if foreign:
            result["ood"] = ood_diagnostics(loaded.model, loaded.dataset, config.split, foreign)
    path = Path(config.run) / "diagnostics" / f"{config.checkpoint}-{config.split}.json"
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "ood" in before and before["epoch"] == loaded.epoch:  # what another call has found
        result["ood"] = before["ood"] | result.get("ood", {})
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
    if "ood" in result:
        console.print(_ood_table(result))


_OOD_COLUMNS = {
    "max_softmax": "max softmax",
    "mahalanobis_layer": "Mahalanobis, layer",
    "mahalanobis_pooled": "pooled, unit norm",
    "mahalanobis_raw": "per class, raw",
}


def _ood_table(result: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"out of distribution: AUROC / FPR at 95 % TPR (%) against the {result['split']} "
        "split",
        box=SIMPLE_HEAD,
    )
    table.add_column("data set")
    for text in _OOD_COLUMNS.values():
        table.add_column(text, justify="right")
    for name, found in result["ood"].items():
        pairs = [found.get(score) for score in _OOD_COLUMNS]
        table.add_row(name, *("-" if p is None else _rates(p) for p in pairs))
    return table


def _rates(figures: Mapping[str, float]) -> str:
    return f"{100 * figures['auroc']:.1f} / {100 * figures['fpr95']:.1f}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
