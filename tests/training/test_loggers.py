"""Loggers: what is written, that training is left alone, resumed runs, classes that do not fit."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.cli import parse
from training.commands.train import run_train
from training.config import TrainConfig, to_dict, validate
from training.config.load import load_config
from training.errors import ConfigError
from training.report.loggers import LoggedRun
from training.runs.checkpoint import load_checkpoint


def _read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]


def _train(config: TrainConfig, name: str) -> Path:
    config.output.name = name
    run_train(config, Console(file=io.StringIO()))
    return Path(config.output.root) / name


def test_figures_of_every_epoch_and_diagnostics_of_some(config: TrainConfig):
    config.output.loggers = ["tensorboard", "jsonl"]
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
    lines = _lines(folder)
    assert [line.pop("epoch") for line in lines] == [1, 2, 3]
    for tag, points in found.items():
        values = {i + 1: line[tag] for i, line in enumerate(lines) if tag in line}
        assert points == [(step, pytest.approx(value)) for step, value in values.items()]
    assert {tag for line in lines for tag in line} == set(found)


def test_diagnosing_does_not_change_what_is_learnt(config: TrainConfig):
    weights = []
    for name, loggers in (("with", ["tensorboard"]), ("without", [])):
        config.output.loggers = loggers
        config.output.diagnostics_every = 1
        folder = _train(config, name)
        assert (folder / "tensorboard").exists() == bool(loggers)
        weights.append(load_checkpoint(folder / "checkpoints/last.pt")["model"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


class Recorder:
    """A logger of a user: notes what it is told; ``fail`` is the epoch that it fails at."""

    told: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, run: LoggedRun, label: str, fail: int | None = None) -> None:
        self._label, self._fail = label, fail
        self.told.append((label, "start", run.start, run.config["optim.epochs"], run.folder.name))
        if fail == run.start:
            raise OSError("no such server")

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == self._fail:
            raise OSError("no connection")
        self.told.append((self._label, step, "test/accuracy" in values))

    def close(self) -> None:
        self.told.append((self._label, "close"))


class Mute:
    """It is told figures, and has nowhere to take them."""

    def close(self) -> None: ...


RECORDER = f"{__name__}:Recorder"


def test_a_resumed_run_logs_every_epoch_once(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    """The second epoch reaches the first loggers, fails at the last one, and is not saved."""
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Recorder, "told", told)
    config.optim.epochs, config.resume = 3, "auto"
    loggers: list[Any] = ["tensorboard", "jsonl", {RECORDER: {"label": "a"}}]
    config.output.loggers = [*loggers, {RECORDER: {"label": "b", "fail": 2}}]
    with pytest.raises(OSError, match="no connection"):
        _train(config, "run")
    folder = Path(config.output.root) / "run"
    assert [line["epoch"] for line in _lines(folder)] == [1, 2]
    assert told == [
        ("a", "start", 1, 3, "run"),
        ("b", "start", 1, 3, "run"),
        ("a", 1, True),
        ("b", 1, True),
        ("a", 2, True),
        ("b", "close"),
        ("a", "close"),
    ]
    told.clear()
    with (folder / "scalars.jsonl").open("a") as file:
        file.write('{"epoch": 3, "tr')  # what a process that is killed leaves
    config.output.loggers = loggers
    _train(config, "run")
    assert [line["epoch"] for line in _lines(folder)] == [1, 2, 3]
    assert [step for step, _ in _read(folder / "tensorboard")["train/loss"]] == [1, 2, 3]
    assert told == [("a", "start", 2, 3, "run"), ("a", 2, True), ("a", 3, True), ("a", "close")]


@pytest.mark.parametrize(
    ("logger", "text"),
    [
        ("wandb", "expected tensorboard, jsonl or module:Class, got 'wandb'"),
        ("no_such_module:Writer", "expected no_such_module:Writer to be importable, got ModuleNot"),
        (f"{__name__}:Absent", "Absent to be importable, got AttributeError: "),
        (f"{__name__}:Mute", "expected a class with the methods .*Mute has no add_scalars"),
        (RECORDER, "Recorder to take the run and its options {}, got: missing .* 'label'"),
        ({"jsonl": {"path": "x"}}, "jsonl to take the run and its options .* argument 'path'"),
        ({"jsonl": {}, "tensorboard": {}}, "of one name each"),
    ],
)
def test_a_logger_that_does_not_fit_is_refused_at_the_start(
    config: TrainConfig, logger: str | dict[str, Any], text: str
):
    config.output.loggers, config.dry_run = [logger], True
    with pytest.raises(ConfigError, match=text):
        _train(config, "a")


def test_a_logger_that_cannot_be_made_ends_the_run_before_it_trains(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Recorder, "told", told)
    config.output.loggers = [{RECORDER: {"label": "a"}}, {RECORDER: {"label": "b", "fail": 1}}]
    with pytest.raises(ConfigError, match="Recorder to open, got OSError: no such server"):
        _train(config, "a")
    assert [what[:2] for what in told] == [("a", "start"), ("b", "start"), ("a", "close")]


def test_how_loggers_are_written_and_read(tmp_path: Path):
    options = "[jsonl, {my_package.my_module:Writer: {project: digits}}]"
    written = parse(["train", f"--output.loggers={options}"])[1]
    expected = ["jsonl", {"my_package.my_module:Writer": {"project": "digits"}}]
    assert written.output.loggers == expected
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(written)))
    assert load_config(path) == written == parse(["train", "--config", str(path)])[1]


@pytest.mark.parametrize(("old", "new"), [("true", ["tensorboard"]), ("false", [])])
def test_a_run_of_before_there_were_loggers_can_be_read(tmp_path: Path, old: str, new: list[str]):
    path = tmp_path / "config.yaml"
    path.write_text(f"output:\n  tensorboard: {old}\n")
    assert load_config(path).output.loggers == new


def test_a_negative_interval_is_refused(config: TrainConfig):
    config.output.diagnostics_every = -1
    with pytest.raises(ConfigError, match=r"diagnostics_every: expected a value >= 0 epochs"):
        validate(config)
