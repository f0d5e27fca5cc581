"""Captured training steps, with the CPU's recording in the place of CUDA graphs."""

from __future__ import annotations

import copy
import gc
import io
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.helpers.recording import record
from training.commands.train import run_train
from training.config import TrainConfig, validate
from training.data import build_dataset
from training.engine import trainer as engine
from training.engine.distributed import Processes
from training.engine.graphs import check_cuda_graph
from training.engine.signals import StopSignals
from training.engine.trainer import Trainer, build_trainer
from training.errors import ConfigError, TrainingDiverged, TrainingStopped
from training.reproducibility import resolve_seeds
from training.runs.checkpoint import load_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Callable]:
    """What was captured; on the CPU, by `record`."""
    captured: list[Callable] = []

    def capture(function: Callable[[], Tensor]):
        captured.append(function)
        return record(function)

    monkeypatch.setattr(engine, "check_cuda_graph", lambda device, processes: None)
    monkeypatch.setattr(engine, "CudaCapture", lambda: capture)
    # Looks at the weights where they are on the CPU.
    monkeypatch.setattr("fastwhiten.validation.check_sample_weight", lambda *a, **options: None)
    return captured


def _trainer(config: TrainConfig) -> Trainer:
    validate(config)
    seeds = resolve_seeds(config.seed, config.seeds)
    return build_trainer(config, build_dataset(config, seeds.split), seeds, CPU)


def _graphed(config: TrainConfig) -> TrainConfig:
    return replace(copy.deepcopy(config), cuda_graph=True)


CASES = {
    "a smaller last batch": {"data.drop_last": False},
    "two kinds of batches": {
        "sampler": "b3rs",
        "bet_period": 2,
        "statistics_batches": "ordinary",
        "whitening_weights": "class-balanced",
    },
    "a loss in two phases": {"loss": "ldam-drw", "loss_options.drw_epoch": 3},
    "whitening that begins from the last step": {
        "whitening_options.batch_weight": 0.5,
        "optim.clip_norm": 0.1,
    },
    "another layer": {"whitening": "iternorm", "optim.nesterov": True, "precision": "bf16"},
}
GRAPHS = {"a smaller last batch": 2, "two kinds of batches": 2, "a loss in two phases": 2}


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_have_the_bits_of_others(case: str, config: TrainConfig, captures: list):
    config.whitening, config.optim.epochs, config.data.batch_size = "fused", 4, 48
    for name, value in CASES[case].items():
        *section, option = name.split(".")
        setattr(getattr(config, section[0]) if section else config, option, value)
    plain, graphed = (_trainer(_graphed(config)) for _ in range(2))
    plain.graphs = None
    for epoch in range(4):
        losses: list[list[float]] = [[], []]
        statistics = [
            trainer.run_epoch(found.append)
            for trainer, found in zip((plain, graphed), losses, strict=True)
        ]
        assert losses[0] == losses[1], epoch
        ours, theirs = (replace(s, seconds=0.0) for s in statistics)
        assert ours == theirs
    for (name, one), other in zip(
        plain.model.state_dict().items(), graphed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert len(captures) == GRAPHS.get(case, 1)


def test_graphs_change_rounding_alone(config: TrainConfig, captures: list):
    """Their optimiser, in one kernel, rounds otherwise than the default."""
    config.whitening, config.optim.epochs = "fused", 2
    losses: list[list[float]] = [[], []]
    for settings, found in zip((config, _graphed(config)), losses, strict=True):
        trainer = _trainer(settings)
        trainer.run_epoch(found.append)
        trainer.run_epoch(found.append)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert captures


def test_a_run_that_was_stopped_goes_on(config: TrainConfig, captures: list):
    """After a checkpoint in the middle of an epoch, with new graphs and the rate's own tensor."""
    config.whitening, config.optim.epochs = "fused", 3

    def run(config: TrainConfig, name: str, steps: int | None = None) -> dict:
        config = copy.deepcopy(config)
        config.output.name, config.resume = name, "auto"
        with pytest.MonkeyPatch.context() as patch:
            if steps is not None:
                stop = lambda _, processes, step, device: 15 * (step == steps)  # noqa: E731
                patch.setattr(StopSignals, "agreed", stop)
                with pytest.raises(TrainingStopped):
                    run_train(config, Console(file=io.StringIO()))
                return {}
            run_train(config, Console(file=io.StringIO()))
        return load_checkpoint(Path(config.output.root) / name / "checkpoints/last.pt")

    config = _graphed(config)
    expected = run(config, "whole")
    run(config, "stopped", steps=8)
    found = run(config, "stopped")
    assert expected["model"].keys() == found["model"].keys()
    for name, value in expected["model"].items():
        assert torch.equal(value, found["model"][name]), name
    assert expected["metrics"]["train"] == found["metrics"]["train"]
    assert len(captures) == 3  # a continued run captures again


def test_the_step_that_diverged_is_named_after_replays(
    config: TrainConfig, captures: list, monkeypatch: pytest.MonkeyPatch
):
    """As on a GPU, where the losses are not read after every step."""
    monkeypatch.setattr(engine, "is_time_to_check", lambda step, device: False)
    config.whitening, config.optim.lr, config.optim.warmup_epochs = "none", 1e8, 0
    config.loss, config.data.batch_size, config.optim.epochs = "ce", 16, 9
    errors = []
    for graphs in (True, False):
        trainer = _trainer(_graphed(config))
        trainer.graphs = trainer.graphs if graphs else None
        trainer.cursor.epoch = 3  # as in a run that goes on
        with pytest.raises(TrainingDiverged) as error:
            trainer.run_epoch()
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    step = int(re.search(r"in step (\d+)", errors[0])[1]) - 2 * len(trainer.sampler)
    assert captures and 2 < step < len(trainer.sampler), errors


def test_what_reads_the_device_cannot_be_captured(config: TrainConfig, captures: list):
    """The recording refuses it, so that the steps above are known to wait nowhere."""
    config.whitening = "none"
    trainer = _trainer(_graphed(config))

    def look(module: Any, inputs: Any, loss: Tensor) -> None:
        loss.item()

    read = trainer.loss.register_forward_hook(look)
    with pytest.raises(RuntimeError, match="_local_scalar_dense: not permitted"):
        trainer.run_epoch()
    read.remove()
    trainer.run_epoch()


def test_the_memory_of_graphs_ends_with_the_run(config: TrainConfig, captures: list):
    """Without waiting for Python's search for cycles, which could come during a capture."""
    config.whitening = "fused"
    trainer = _trainer(_graphed(config))
    trainer.run_epoch()
    captures.clear()
    graphs = weakref.ref(trainer.graphs)
    gc.disable()
    try:
        del trainer
        assert graphs() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"precision": "fp16"}, "precision: expected a value fp32 or bf16 with --cuda-graph"),
        ({"whitening": "eager"}, "whitening: expected a value fused or another with --cuda-graph"),
        ({"optim.ema_decay": 0.5}, "optim.ema_decay: expected a value null with --cuda-graph"),
    ],
)
def test_what_cannot_be_captured_is_refused(config: TrainConfig, changes: dict, text: str):
    config.whitening, config.cuda_graph = "fused", True
    validate(config)
    for name, value in changes.items():
        *section, option = name.split(".")
        setattr(getattr(config, section[0]) if section else config, option, value)
    with pytest.raises(ConfigError, match=text):
        validate(config)


def test_graphs_need_a_gpu_and_a_single_process(config: TrainConfig):
    config.whitening = "fused"
    with pytest.raises(ConfigError, match=r"got true on 1 process\(es\) on cpu"):
        _trainer(_graphed(config))
    check_cuda_graph(torch.device("cuda"), Processes())
    with pytest.raises(ConfigError, match=r"got true on 2 process\(es\) on cuda"):
        check_cuda_graph(torch.device("cuda"), Processes(0, 2))
