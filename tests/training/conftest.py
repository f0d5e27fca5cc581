"""A configuration that trains in a second, for tests that need a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.trained import train_briefly
from training.config import TrainConfig
from training.reproducibility import cpu_threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and lose a lot on a machine with other work."""
    with cpu_threads(1):
        yield


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Two epochs of a small model with eager whitening, without pictures, under tmp_path."""
    config = TrainConfig(whitening="eager")
    config.model.width = 4
    config.data.batch_size = 64
    config.optim.epochs = 2
    config.optim.warmup_epochs = 1
    config.output.root = str(tmp_path / "runs")
    config.output.plots = False
    config.output.loggers = []
    return config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run with fused whitening, shared by tests that do not change it."""
    return train_briefly(tmp_path_factory.mktemp("trained"))
