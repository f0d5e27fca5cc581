"""TensorBoard scalars: what is written, that training is left alone, what a resumed run does."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.commands.train import run_train
from training.config import TrainConfig, validate
from training.errors import ConfigError
from training.report.progress import ScalarReporter
from training.runs.checkpoint import load_checkpoint


def _read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def _train(config: TrainConfig, name: str) -> Path:
    config.output.name = name
    run_train(config, Console(file=io.StringIO()))
    return Path(config.output.root) / name


def test_figures_of_every_epoch_and_diagnostics_of_some(config: TrainConfig):
    config.output.tensorboard = True
    config.output.diagnostics_every = 2
    config.optim.epochs = 3
    folder = _train(config, "a")
    found = _read(folder / "tensorboard")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for tag in ("train/loss", "validation/balanced_accuracy", "test/few", "learning_rate"):
        section, _, name = tag.rpartition("/")
        expected = [(r[section] if section else r)[name] for r in records]
        assert found[tag] == [(i + 1, pytest.approx(v)) for i, v in enumerate(expected)]
    assert "epoch" not in found and "test/per_class" not in found
    for tag in (
        "before/effective_rank",
        "after/mean_abs_correlation",
        "classifier/hessian_condition",
    ):
        assert [step for step, _ in found[f"diagnostics/{tag}"]] == [2, 3]  # the last one as well
    assert found["diagnostics/batches/all/distinct_classes"][0][1] > 1


def test_diagnosing_does_not_change_what_is_learnt(config: TrainConfig):
    weights = []
    for name, tensorboard in (("with", True), ("without", False)):
        config.output.tensorboard = tensorboard
        config.output.diagnostics_every = 1
        folder = _train(config, name)
        assert (folder / "tensorboard").exists() == tensorboard
        weights.append(load_checkpoint(folder / "checkpoints/last.pt")["model"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


class _Inner:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def step(self, loss: float) -> None:
        self.calls.append(loss)

    def epoch(self, record: dict[str, Any]) -> None:
        self.calls.append(record)

    def close(self) -> None:
        self.calls.append("close")

    def other(self) -> str:
        return "other"


def test_a_resumed_run_hides_the_epochs_that_it_repeats(tmp_path: Path):
    for values in ([(1, 1.0), (2, 2.0), (3, 3.0)], [(2, 20.0)]):
        reporter = ScalarReporter(_Inner(), tmp_path, dict, 0, epochs=9)
        for epoch, value in values:
            reporter.epoch({"epoch": epoch, "train": {"loss": value}})
        reporter.close()
    assert _read(tmp_path)["train/loss"] == [(1, 1.0), (2, 20.0)]


def test_the_inner_reporter_is_told_everything(tmp_path: Path):
    inner = _Inner()
    reporter = ScalarReporter(inner, tmp_path, dict, 0, epochs=1)
    reporter.step(0.5)
    record = {"epoch": 1, "train": {"loss": float("nan")}}
    reporter.epoch(record)
    reporter.close()
    assert inner.calls == [0.5, record, "close"]
    assert reporter.other() == "other"


def test_a_negative_interval_is_refused(config: TrainConfig):
    config.output.diagnostics_every = -1
    with pytest.raises(ConfigError, match=r"diagnostics_every: expected a value >= 0 epochs"):
        validate(config)
