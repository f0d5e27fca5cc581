"""A finished run of two epochs, made once, and what stage 2 makes of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from training.commands.stage2 import run_stage2
from training.commands.train import run_train
from training.config import Stage2Config, TrainConfig
from training.reproducibility import cpu_threads
from training.runs.finished import Run, read_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """digits-lt, fused whitening, a small model, bias and weights trained for two epochs."""
    config = TrainConfig(whitening="fused", seed=3)
    config.model.width = 4
    config.data.batch_size = 64
    config.optim.epochs = 2
    config.optim.warmup_epochs = 0
    config.output.root = str(tmp_path_factory.mktemp("runs"))
    config.output.name = "first"
    config.output.plots = False
    with cpu_threads(1):
        run_train(config, Console(file=io.StringIO()))
    return read_run(Path(config.output.root) / "first")


@pytest.fixture
def stage2(run: Run, tmp_path: Path) -> Callable[..., Run]:
    """Run stage 2 with a method and options; return the new run."""

    def make(method: str, **options: object) -> Run:
        given = {"root": str(tmp_path), "name": method, "overwrite": True, **options}
        config = Stage2Config(method=method, run=str(run.folder.path), **given)
        run_stage2(config, Console(file=io.StringIO()))
        return read_run(Path(str(given["root"])) / str(given["name"]))

    return make
