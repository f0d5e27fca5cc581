"""ablate --one-process: runs that take turns in a process are what they would be alone."""

from __future__ import annotations

import io
import json
import os
import signal
from collections import deque
from pathlib import Path

import pytest
import torch
from rich.console import Console

from training.commands.ablate import run_ablate, together
from training.commands.ablate.plan import Plan, plan
from training.commands.train import run_train
from training.config import AblateConfig, TrainConfig
from training.config.load import change_config
from training.errors import ConfigError, TrainingStopped
from training.runs.checkpoint import load_checkpoint


@pytest.fixture
def ablation(tmp_path: Path) -> AblateConfig:
    """Three arms by two seeds: six runs, four at a time."""
    train = TrainConfig()
    train.model.width = 1
    train.data.batch_size = 48  # seven steps an epoch
    train.optim.epochs = 2
    train.optim.warmup_epochs = 0
    train.output.plots, train.output.loggers = False, []
    arms = {
        "ce": {"whitening": "none", "loss": "ce"},
        "ldam": {"whitening": "none", "loss": "ldam-drw"},
        "ours": {"whitening": "fused", "sampler": "b3rs", "bet_period": 2},
    }
    return AblateConfig(
        axes={"arm": arms},
        seeds=[4, 5],
        train=train,
        root=str(tmp_path),
        jobs=4,
        one_process=True,
    )


def _ablate(config: AblateConfig) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    return run_ablate(config, console), console.file.getvalue()


def _statuses(grid: Plan) -> list[str]:
    manifest = json.loads((grid.folder / "manifest.json").read_text())
    return [run["status"] for run in manifest["runs"]]


def _assert_as_alone(grid: Plan, tmp_path: Path) -> None:
    for run in grid.runs:
        alone = change_config(run.config, {"output.root": str(tmp_path / "alone")})
        run_train(alone, Console(file=io.StringIO()))
        found, expected = (
            load_checkpoint(root / run.name / "checkpoints/last.pt")
            for root in (grid.run_root, tmp_path / "alone")
        )
        assert found["model"].keys() == expected["model"].keys()
        for name, value in expected["model"].items():
            assert torch.equal(found["model"][name], value), (run.name, name)
        assert found["metrics"]["test"] == expected["metrics"]["test"]


@pytest.mark.slow
def test_taking_turns_changes_nothing(
    ablation: AblateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also where the command was stopped in the middle of everything, and given again."""
    grid, advance, steps, most = plan(ablation), together._Turn.advance, [0], [0]

    def counted(self: together._Turn):
        steps[0] += 1
        most[0] = max(most[0], _statuses(grid).count("running"))
        if steps[0] == 44:  # four runs are in their second epoch, two have not begun
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self)

    loaded, build = [], together.build_dataset
    monkeypatch.setattr(together._Turn, "advance", counted)
    monkeypatch.setattr(together, "build_dataset", lambda *a: loaded.append(a) or build(*a))
    with pytest.raises(TrainingStopped, match="the same command continues") as stopped:
        _ablate(ablation)
    assert stopped.value.signal == signal.SIGTERM
    assert set(_statuses(grid)) == {"waiting"} and most[0] == 4
    log = grid.folder / "logs" / "digits-lt-ce-4.log"
    assert "stopped by signal 15 after step" in log.read_text()
    code, text = _ablate(ablation)
    assert code == 0 and "6 runs in" in text and ", 0 of them finished before" in text
    assert f"continuing {grid.run_root / 'digits-lt-ce-4'}" in log.read_text()
    assert set(_statuses(grid)) == {"finished"}
    assert len(loaded) == 4  # one for each seed, in both commands: digits-lt splits by it
    _assert_as_alone(grid, tmp_path)


def test_a_run_that_fails_leaves_the_others_alone(ablation: AblateConfig):
    ablation.axes, ablation.seeds = {"optim.lr": [1e20, 0.1]}, [4]
    code, text = _ablate(ablation)
    assert code == 1
    assert _statuses(plan(ablation)) == ["failed", "finished"]
    assert "failed: digits-lt-lr=1e+20-4 (exit status 1): error: training loss: expected" in text


@pytest.mark.parametrize(
    ("axes", "text"),
    [
        ({"threads": [1, 2]}, "expected runs of one threads.*got 1, 2"),
        ({"deterministic": [True, False]}, "expected runs of one deterministic"),
        ({"model.name": ["torchvision:resnet18"]}, "expected a network of this package"),
    ],
)
def test_what_a_process_has_once(
    ablation: AblateConfig, axes: dict, text: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("training.commands.ablate.plan.check_groups", lambda config: None)
    ablation.axes, ablation.train.model.width = axes, 16
    with pytest.raises(ConfigError, match=text):
        _ablate(ablation)
    assert list(Path(ablation.root).iterdir()) == []


class _Step:
    def __init__(self, done: bool) -> None:
        self.done = done

    def query(self) -> bool:
        return self.done


def test_a_run_waits_for_its_turn_instead_of_the_device():
    """Ahead of it by some steps at most; by none before something is read from it."""
    turn = object.__new__(together._Turn)
    turn._waits, turn._steps = False, deque([_Step(False)] * (together._AHEAD - 1))
    assert turn.ready()
    turn._waits = True
    assert not turn.ready()
    turn._waits, turn._steps = False, deque([_Step(False)] * together._AHEAD)
    assert not turn.ready()
    turn._steps.appendleft(_Step(True))
    assert not turn.ready() and len(turn._steps) == together._AHEAD
    turn._steps = deque([_Step(True)] * together._AHEAD)
    turn._waits = True
    assert turn.ready() and not turn._steps
