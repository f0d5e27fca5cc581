"""Finished runs: reading their folders, and getting their models back."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.config.load import load_config
from training.data import LongTailedDataset, build_dataset
from training.errors import ConfigError
from training.models import WhitenedClassifier, build_model
from training.reproducibility import Seeds, resolve_seeds
from training.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Its folder.
        config: Its configuration.
        summary: The content of summary.json.
    """

    folder: RunFolder
    config: TrainConfig
    summary: dict[str, Any]

    @property
    def seeds(self) -> Seeds:
        """The resolved seeds of the run."""
        return resolve_seeds(self.config.seed, self.config.seeds)


def read_run(path: str | Path) -> Run:
    """Read configuration and summary of a finished run.

    Raises:
        ConfigError: If the folder is no run folder, or its run is not finished.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise ConfigError(
            f"{path}: expected a run folder, with a config.yaml; found none. "
            "`python -m training train` prints the folder that it writes."
        )
    if not folder.summary.is_file():
        raise ConfigError(
            f"{path}: expected a finished run, with a summary.json; found none. "
            "Wait for the run to end, or train it again."
        )
    try:
        summary = json.loads(folder.summary.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{folder.summary}: expected JSON, got: {error}.") from error
    return Run(folder, load_config(folder.config), summary)


def restore_dataset(run: Run) -> LongTailedDataset:
    """Load the data of a run, on the CPU, split as it was.

    Raises:
        ConfigError: If the training images are not as many as they were.
    """
    dataset = build_dataset(run.config, run.seeds.split)
    before, now = run.summary["class_counts"], dataset.class_counts.tolist()
    if before != now:
        raise ConfigError(
            f"{run.folder.path}: expected the data the run was trained on, with the class counts "
            f"{before}, got {now}; the files or the version of this package have changed."
        )
    return dataset


def restore_model(
    run: Run, dataset: LongTailedDataset, checkpoint: str, device: torch.device
) -> WhitenedClassifier:
    """Return the model of a run's checkpoint ("last" or "best") on a device, in training mode.

    Raises:
        ConfigError: If the checkpoint is missing, corrupt or of another model.
    """
    path = run.folder.checkpoint(checkpoint)
    model = build_model(run.config, dataset.channels, dataset.num_classes, run.seeds.initialisation)
    try:
        model.load_state_dict(load_checkpoint(path)["model"])
    except ConfigError:
        raise
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.PickleError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path}: expected the {checkpoint} checkpoint of this run, got: {reason}"
        ) from error
    return model.to(device)
