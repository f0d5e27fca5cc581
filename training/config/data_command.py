"""The command ``data``: what is in a data set, and whether its files are right."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from training.config.arguments import POSITIONAL
from training.config.data import DataConfig
from training.config.datasets import DatasetName
from training.config.seeds import SeedConfig
from training.config.train import TrainConfig


@dataclass
class DataCommandConfig:
    """Look at a data set without training on it.

    Attributes:
        action: stats prints the images per class and shot group and draws them; verify reads every
            file, compares checksums, and lists what is wrong (exit status 2).
        dataset: Which data, as for train.
        imbalance_factor: As for train.
        seed: As for train.
        seeds: As for train; only ``split`` matters.
        data: As for train.
        picture: File of the picture, .png, .svg or .pdf; null is
            runs/class-counts-<dataset>.png. (stats)
    """

    action: Literal["stats", "verify"] = field(metadata=POSITIONAL)
    dataset: DatasetName = "digits-lt"
    imbalance_factor: float | None = None
    seed: int = 0
    seeds: SeedConfig = field(default_factory=SeedConfig)
    data: DataConfig = field(default_factory=DataConfig)
    picture: str | None = None

    def as_train(self) -> TrainConfig:
        """Return the configuration of a run on this data."""
        return TrainConfig(
            dataset=self.dataset,
            imbalance_factor=self.imbalance_factor,
            seed=self.seed,
            seeds=self.seeds,
            data=self.data,
        )
