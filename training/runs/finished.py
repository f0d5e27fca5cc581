"""Finished runs: reading their folders, and getting their models back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.config import TrainConfig
from training.config.load import load_config
from training.data import LongTailedDataset, build_dataset
from training.engine.memory_format import to_channels_last, unsafe_convolutions
from training.errors import ConfigError
from training.models import WhitenedClassifier, build_model
from training.reproducibility import Seeds, resolve_seeds
from training.runs.checkpoint import load_checkpoint
from training.runs.folder import RunFolder


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
    run: Run, channels: int, checkpoint: str, device: torch.device
) -> WhitenedClassifier:
    """Return the model of a run's checkpoint ("last" or "best") on a device, in training mode.

    It takes images of ``channels`` channels. Its weights are the raw ones, also where the
    checkpoint holds their average too: the figures of "last" and "best" in summary.json, and the
    choice of "best", belong to these.

    Raises:
        ConfigError: If the checkpoint is missing, corrupt or of another model.
    """
    path = run.folder.checkpoint(checkpoint)
    seed = run.seeds.initialisation
    model = build_model(run.config, channels, len(run.summary["class_names"]), seed)
    try:
        model.load_state_dict(load_checkpoint(path)["model"])
    except ConfigError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path}: expected the {checkpoint} checkpoint of this run, got: {reason}"
        ) from error
    # What was trained on a GPU may have a gradient (`diagnose`) that corrupts memory on a CPU.
    if run.config.channels_last and not (device.type == "cpu" and unsafe_convolutions(model)):
        model = to_channels_last(model)
    return model.to(device)


@dataclass(frozen=True)
class LoadedRun:
    """A finished run with its model and its data on a device.

    Attributes:
        run: Folder, configuration and summary.
        checkpoint: "last" or "best".
        dataset: As it was for training.
        model: The checkpoint's, see `restore_model`.
    """

    run: Run
    checkpoint: str
    dataset: LongTailedDataset
    model: WhitenedClassifier

    @property
    def epoch(self) -> int:
        """The epoch after which the checkpoint was written."""
        epoch: int = self.run.summary[self.checkpoint]["epoch"]
        return epoch


def load_run(run: Run, checkpoint: str, device: torch.device) -> LoadedRun:
    """Load data and model of a finished run, for all that is made from it afterwards.

    Raises:
        ConfigError: If there is no such checkpoint, or the run's data have changed.
    """
    dataset = restore_dataset(run)
    model = restore_model(run, dataset.channels, checkpoint, device)
    return LoadedRun(run, checkpoint, dataset.to(device), model)
