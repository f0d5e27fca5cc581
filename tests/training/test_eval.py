"""The command eval: the figures of the run, to the bit, and its exit status."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from training.cli import run as run_command
from training.commands.eval import evaluate_run
from training.commands.train import run_train
from training.config import TrainConfig
from training.runs.finished import read_run


@pytest.fixture
def folder(config: TrainConfig) -> Path:
    """A finished run."""
    config.output.name = "run"
    run_train(config, Console(file=io.StringIO()))
    return Path(config.output.root) / "run"


def test_the_result_is_that_of_the_summary_to_the_bit(folder: Path, tmp_path: Path):
    summary = json.loads((folder / "summary.json").read_text())
    output = tmp_path / "result.json"
    for checkpoint in ("last", "best"):
        for split in ("validation", "test"):
            arguments = ["--checkpoint", checkpoint, "--split", split, "--output", str(output)]
            assert run_command(["eval", str(folder), *arguments, "--verify", "true"]) == 0
            result = json.loads(output.read_text())
            assert result["result"] == summary[checkpoint][split]
            assert result["equals_summary"] is True
            assert result["epoch"] == summary[checkpoint]["epoch"]


def test_another_result_than_the_summary_s_is_noticed(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["last"]["test"]["loss"] *= 1 + 1e-15
    path.write_text(json.dumps(summary))
    assert run_command(["eval", str(folder)]) == 0
    assert "NOT equal to the figures of" in capsys.readouterr().out
    assert run_command(["eval", str(folder), "--verify", "true"]) == 1
    assert run_command(["eval", str(folder), "--split", "validation", "--verify", "true"]) == 0


def test_the_training_split_without_augmentation(folder: Path):
    result = evaluate_run(read_run(folder), "train", "last")
    assert result["images"] == 342
    assert result["equals_summary"] is None
    assert 0 < result["result"]["accuracy"] < 1


def test_the_training_split_cannot_be_verified(capsys: pytest.CaptureFixture[str]):
    assert run_command(["eval", "x", "--split", "train", "--verify", "true"]) == 2
    assert "verify: expected --split validation or test" in capsys.readouterr().err


def test_other_data_than_the_run_s_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]):
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("imbalance_factor: null", "imbalance_factor: 10.0"))
    assert run_command(["eval", str(folder)]) == 2
    assert "expected the data the run was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: (f / "checkpoints/last.pt").unlink(), "last.pt: expected the last checkpoint"),
        (
            lambda f: (f / "checkpoints/last.pt").write_bytes(b"x"),
            "last.pt: no readable checkpoint",
        ),
        (lambda f: (f / "summary.json").write_text("{"), "summary.json: expected JSON"),
        (lambda f: (f / "config.yaml").write_text("a: ["), "expected a configuration in YAML"),
        (lambda f: (f / "config.yaml").write_text("lr: 1"), "expected options of `train`"),
        (lambda f: (f / "config.yaml").write_text("- 1"), "expected a mapping of options"),
    ],
)
def test_a_damaged_run_is_named(
    folder: Path, change: object, text: str, capsys: pytest.CaptureFixture[str]
):
    change(folder)
    assert run_command(["eval", str(folder)]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert str(folder) in error


def test_a_missing_run_argument_is_an_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        run_command(["eval"])
    assert stopped.value.code == 2
    assert "run" in capsys.readouterr().err
