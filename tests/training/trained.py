"""A run of two epochs that several test files look at; they must not change it."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from training.commands.train import run_train
from training.config import TrainConfig
from training.reproducibility import cpu_threads


def train_briefly(root: Path, whitening: str = "fused", ema_decay: float | None = None) -> Path:
    """Train a small model for two epochs, without pictures; return the run folder."""
    config = TrainConfig(whitening=whitening)
    config.model.width = 4
    config.data.batch_size = 64
    config.optim.epochs = 2
    config.optim.warmup_epochs = 1
    config.optim.ema_decay = ema_decay
    config.output.root = str(root)
    config.output.name = whitening
    config.output.plots = False
    config.output.loggers = []
    with cpu_threads(1):
        run_train(config, Console(file=io.StringIO()))
    return root / whitening
