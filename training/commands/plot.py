"""The command ``plot``: the pictures of a run and its report, made anew from a checkpoint."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

from training.config.commands import PlotConfig
from training.console import say
from training.engine.distributed import select_device
from training.errors import ConfigError
from training.evaluation.inspection import view_model
from training.report.report import draw_plots, write_report
from training.reproducibility import cpu_threads
from training.runs.finished import load_run, read_run
from training.runs.folder import RunFolder


def run_plot(config: PlotConfig, console: Console | None = None) -> None:
    """Draw all pictures of a run (PNG and SVG), write its report, and print where they lie.

    Features and predictions are computed from the checkpoint; nothing but the checkpoint and the
    figures of the epochs is read from the run.

    Raises:
        ConfigError: If there is no such run, checkpoint or split.
    """
    console = console or Console()
    loaded = load_run(read_run(config.run), config.checkpoint, select_device(config.device))
    folder, summary = loaded.run.folder, loaded.run.summary
    with cpu_threads(loaded.run.config.threads):
        view = view_model(loaded.model, loaded.dataset, config.split, config.checkpoint)
    folder.plot("curves").parent.mkdir(exist_ok=True)
    draw_plots(folder, summary, read_records(folder), view)
    write_report(folder, summary)
    for path in (folder.report, folder.plot("curves").parent):
        say(console, f"  {path}")


def read_records(folder: RunFolder) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl.

    Raises:
        ConfigError: If the file is missing or a line is no JSON.
    """
    records = []
    try:
        for number, line in enumerate(folder.metrics.read_text(encoding="utf-8").splitlines(), 1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise ConfigError(
                    f"{folder.metrics}, line {number}: expected JSON, got: {error}; remove the "
                    "line, or train again."
                ) from error
    except OSError as error:
        raise ConfigError(
            f"{folder.metrics}: expected the figures of every epoch, got: {error}."
        ) from error
    return records
