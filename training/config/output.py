"""Where results go."""

from __future__ import annotations

from dataclasses import dataclass

from training.config.checks import check


@dataclass
class OutputConfig:
    """Where results go.

    Attributes:
        root: Folder that holds the run folders.
        name: Name of the run folder; null is <dataset>-<whitening>-<loss>-<seed>, with
            sampler and BET period before the seed where they are not the defaults.
        overwrite: Replace a run folder of the same name; otherwise a new one gets a suffix.
        plots: Draw the pictures and write the report.
        tensorboard: Write the figures of every epoch for TensorBoard, into the run folder.
        diagnostics_every: Epochs from one diagnosis of features, batches and classifier to the
            next, written for TensorBoard; the last epoch is diagnosed too. 0 is never.
    """

    root: str = "runs"
    name: str | None = None
    overwrite: bool = False
    plots: bool = True
    tensorboard: bool = True
    diagnostics_every: int = 10


def check_output(output: OutputConfig) -> None:
    """Check the ranges."""
    every = output.diagnostics_every
    check("output.diagnostics_every", every, every >= 0, ">= 0 epochs")
