"""Where a run averages its weights, every command takes those that "last" and "best" belong to."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import training.commands.plot
from tests.training.trained import train_briefly
from training.cli import run
from training.commands.diagnose import run_diagnose
from training.commands.plot import run_plot
from training.config.commands import DiagnoseConfig, PlotConfig
from training.evaluation.gradients import weight_norms
from training.runs.checkpoint import load_checkpoint
from training.runs.finished import load_run, read_run

NAME = "classifier.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose averaged weights are far from the raw ones."""
    return train_briefly(tmp_path_factory.mktemp("averaged"), "eager", ema_decay=0.99)


@pytest.fixture(params=["last", "best"])
def checkpoint(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def raw(folder: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    """The raw state of a checkpoint, which is another one than the average."""
    state = load_checkpoint(folder / f"checkpoints/{checkpoint}.pt")
    assert not torch.allclose(state["model"][NAME], state["ema"]["model"][NAME], rtol=0.01)
    return state["model"]


def _quiet() -> Console:
    return Console(file=io.StringIO())


def test_the_model_of_a_checkpoint(folder: Path, checkpoint: str, raw: dict[str, torch.Tensor]):
    loaded = load_run(read_run(folder), checkpoint, torch.device("cpu"))
    state = loaded.model.state_dict()
    assert state.keys() == raw.keys()
    assert all(torch.equal(state[name], raw[name]) for name in raw)


def test_eval(folder: Path, checkpoint: str, tmp_path: Path):
    output = tmp_path / "result.json"
    arguments = ["--checkpoint", checkpoint, "--verify", "true", "--output", str(output)]
    assert run(["eval", str(folder), *arguments]) == 0
    summary = json.loads((folder / "summary.json").read_text())[checkpoint]
    result = json.loads(output.read_text())["result"]
    assert result == summary["test"]
    assert result["loss"] != summary["ema"]["test"]["loss"]


def test_plot(
    folder: Path, checkpoint: str, raw: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
):
    drawn: list[Any] = []
    monkeypatch.setattr(
        training.commands.plot, "draw_plots", lambda *arguments: drawn.append(arguments[-1])
    )
    monkeypatch.setattr(training.commands.plot, "write_report", lambda *_: None)
    run_plot(PlotConfig(str(folder), checkpoint, device="cpu"), _quiet())
    (view,) = drawn
    assert torch.equal(view.weight_norms, weight_norms(raw[NAME]))
    inspection = view.inspection
    accuracy = (inspection.logits.argmax(1) == inspection.labels).double().mean().item()
    assert accuracy == read_run(folder).summary[checkpoint]["test"]["accuracy"]


def test_diagnose(folder: Path, checkpoint: str, raw: dict[str, torch.Tensor]):
    result = run_diagnose(DiagnoseConfig(str(folder), checkpoint, device="cpu"), _quiet())
    assert result["classifier"]["weight_norms"] == weight_norms(raw[NAME]).tolist()


def test_export(folder: Path, checkpoint: str, raw: dict[str, torch.Tensor], tmp_path: Path):
    path = tmp_path / "model.safetensors"
    assert run(["export", str(folder), "--checkpoint", checkpoint, "--output", str(path)]) == 0
    assert torch.equal(load_file(path)[NAME], raw[NAME])


def test_stage2(folder: Path, checkpoint: str, raw: dict[str, torch.Tensor], tmp_path: Path):
    arguments = [str(folder), "--root", str(tmp_path), "--checkpoint", checkpoint]
    assert run(["stage2", "ncm", *arguments]) == 0
    (made,) = tmp_path.glob("*/checkpoints/last.pt")
    name = "backbone.stem.0.weight"
    assert torch.equal(load_checkpoint(made)["model"][name], raw[name])
