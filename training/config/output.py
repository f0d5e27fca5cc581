"""Where results go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class OutputConfig:
    """Where results go.

    Attributes:
        root: Folder that holds the run folders.
        name: Name of the run folder; null is <dataset>-<whitening>-<loss>-<seed>, with
            sampler and BET period before the seed where they are not the defaults.
        overwrite: Replace a run folder of the same name; otherwise a new one gets a suffix.
        plots: Draw the pictures and write the report.
    """

    root: str = "runs"
    name: str | None = None
    overwrite: bool = False
    plots: bool = True
