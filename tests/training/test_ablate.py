"""ablate: planning a grid, running it in processes, continuing it after a kill."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from tests.helpers.processes import started, until
from training.cli import parse
from training.cli import run as run_command
from training.commands.ablate import choose, execute, run_ablate
from training.commands.ablate.choose import trial_config
from training.commands.ablate.plan import chosen_options, plan, resolve_axes
from training.commands.ablate.state import RunState, is_finished, locked, prepare
from training.config import AblateConfig, TrainConfig, to_dict
from training.config.commands import GRIDS
from training.config.load import load_config
from training.errors import ConfigError
from training.runs.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def ablation(tmp_path: Path) -> AblateConfig:
    """Two whitenings, one seed: two runs of one epoch of a tiny model."""
    train = TrainConfig()
    train.model.width = 1
    train.optim.epochs = 1
    train.optim.warmup_epochs = 0
    train.output.plots = False
    return AblateConfig(
        axes={"whitening": ["none", "batchnorm"]}, seeds=[4], train=train, root=str(tmp_path)
    )


def _ablate(config: AblateConfig) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    return run_ablate(config, console), console.file.getvalue()


def _statuses(config: AblateConfig) -> dict[str, str]:
    manifest = json.loads((plan(config).folder / "manifest.json").read_text())
    return {run["name"]: run["status"] for run in manifest["runs"]}


# Planning


def test_every_combination_once(ablation: AblateConfig):
    ablation.axes = {
        "loss": ["ce", "logit-adjusted"],
        "optim.lr": [0.1, 0.2],
        "layer": {"plain": {"whitening": "none"}, "ours": {"whitening": "fused"}},
    }
    ablation.seeds = [1, 5]
    grid = plan(ablation)
    assert len(grid.runs) == len({run.name for run in grid.runs}) == 16
    found = {
        (r.config.loss, r.config.optim.lr, r.config.whitening, r.config.seed) for r in grid.runs
    }
    assert len(found) == 16
    assert grid.options == ["loss", "optim.lr", "whitening"]
    assert grid.baseline == {"loss": "ce", "optim.lr": 0.1, "whitening": "none"}
    run = grid.runs[-1]
    assert run.name == "digits-lt-logit-adjusted-lr=0.2-ours-5"
    assert run.config.output.name == run.name
    assert run.config.output.root == str(Path(ablation.root) / "axes" / "runs")
    assert all(r.config.model.width == 1 for r in grid.runs)


def test_options_of_one_data_set(ablation: AblateConfig):
    ablation.dataset_options = {"digits-lt": {"optim": {"epochs": 3}, "optim.lr": 0.7}}
    assert {(r.config.optim.epochs, r.config.optim.lr) for r in plan(ablation).runs} == {(3, 0.7)}


def test_the_default_grid_is_two_by_two():
    axes = resolve_axes(GRIDS["2x2"])
    assert [list(axis) for axis in axes.values()] == [["none", "fused"], ["plain", "b3rs+bet"]]
    assert axes["batches"]["b3rs+bet"] == {"sampler": "b3rs", "bet_period": 8}


def test_axes_on_the_command_line():
    arguments = ["ablate", "--axes.whitening", "[none, fused]", "--axes.optim.lr=[0.1, 0.2]"]
    config = parse([*arguments, "--train.model.width", "2", "--seeds", "[3]", "--jobs", "2"])[1]
    grid = plan(replace(config, root="x"))
    assert grid.options == ["whitening", "optim.lr"]
    assert [r.config.optim.lr for r in grid.runs] == [0.1, 0.2, 0.1, 0.2]
    assert (config.train.model.width, config.seeds, config.jobs) == (2, [3], 2)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"axes": {"whitning": ["none"]}}, "whitning: expected an option of `train`"),
        ({"axes": {"whitening": ["nine"]}}, "whitening=nine.*got:"),
        ({"axes": {"whitening": []}}, "axes.whitening: expected a list of different values"),
        ({"axes": {"whitening": "none"}}, "axes.whitening: expected a list of different values"),
        ({"axes": {"whitening": ["none", "none"]}}, "expected a list of different values"),
        ({"axes": {"seed": [1, 2]}}, "use --datasets and --seeds"),
        ({"axes": {"x": {"a": {"output.root": "b"}}}}, "use --datasets and --seeds"),
        (
            {"axes": {"loss": ["ce"], "x": {"a": {"loss": "ce"}}}},
            "axes.x: expected options that no other axis sets, got loss, which loss sets",
        ),
        ({"axes": {"optim.lr": [0.1, -1.0]}}, "lr=-1.0-4: optim.lr: expected a value > 0"),
        ({"axes": {"x": {"a b": {"loss": "ce"}, "a_b": {"loss": "ce"}}}}, "runs of the same name"),
        ({"seeds": []}, "seeds: expected a value with at least one seed, each once"),
        ({"seeds": [1, 1]}, "seeds: expected a value with at least one seed, each once"),
        ({"jobs": 0}, "jobs: expected a value >= 1"),
        ({"grid": "3x3"}, "grid: expected a value out of 2x2"),
        ({"datasets": ["mnist"]}, "dataset=mnist.*digits-lt"),
        ({"datasets": []}, "at least one data set"),
        ({"dataset_options": {"mnist": {}}}, "dataset_options: expected a value that names"),
        ({"name": "a/b"}, "name: expected a value without a slash"),
    ],
)
def test_wrong_grids_are_refused_before_anything_runs(
    ablation: AblateConfig, changes: dict[str, Any], text: str
):
    with pytest.raises(ConfigError, match=text):
        _ablate(replace(ablation, **changes))
    assert list(Path(ablation.root).iterdir()) == []


def test_a_finished_run_of_another_configuration_is_not_overwritten(ablation: AblateConfig):
    grid = plan(ablation)
    folder = grid.run_root / grid.runs[0].name
    folder.mkdir(parents=True)
    assert not is_finished(grid, grid.runs[0])
    config = to_dict(grid.runs[0].config)
    config["output"]["root"] = "moved"  # where a run lies is not what it is
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "summary.json").write_text("{}")
    assert is_finished(grid, grid.runs[0])
    ablation.train.optim.lr = 0.7
    with pytest.raises(ConfigError, match=r"optim.lr was 0.1 and is 0.7 now\. Choose another --n"):
        _ablate(ablation)
    assert (folder / "summary.json").exists()


def test_a_grid_is_worked_on_by_one(ablation: AblateConfig):
    with locked(plan(ablation)):
        with pytest.raises(ConfigError, match="is in use by another `ablate`"):
            _ablate(ablation)
    with locked(plan(ablation)):
        pass  # free again


# Running


@pytest.mark.full
def test_parallel_equals_serial_and_both_print_the_table(ablation: AblateConfig):
    ablation.name = "serial"
    code, text = _ablate(ablation)
    assert code == 0
    parallel = replace(ablation, name="parallel", jobs=2)
    assert _ablate(parallel)[0] == 0
    tables = []
    for config in (ablation, parallel):
        folder = plan(config).folder
        assert set(_statuses(config).values()) == {"finished"}
        tables.append([(folder / f"{t}.csv").read_text() for t in ("compare", "differences")])
    assert tables[0] == tables[1]
    for run in plan(ablation).runs:
        paths = [plan(c).run_root / run.name / "checkpoints/last.pt" for c in (ablation, parallel)]
        models = [load_checkpoint(path)["model"] for path in paths]
        assert models[0].keys() == models[1].keys()
        assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert "2/2  digits-lt-batchnorm-4: finished after" in text
    assert (plan(ablation).folder / "compare.md").read_text() in text
    again, text = _ablate(ablation)
    assert again == 0
    assert "2 runs in" in text
    assert "2 of them finished before" in text


def _interpreter(folder: Path, *arguments: str | Path) -> Path:
    """What runs like Python, but stops runs as `stopping_runs.py` does with these arguments."""
    program = folder / "python"
    command = [sys.executable, Path(__file__).with_name("stopping_runs.py"), *arguments]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')
    program.chmod(0o755)
    return program


def _kill(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path) -> None:
    """Have the run of that name killed with -9 when its first epoch is saved."""
    start, program = execute._start, _interpreter(folder, "kill")

    def started(grid: Any, run: Any, lock: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if run.name == name:
                patch.setattr(sys, "executable", str(program))
            return start(grid, run, lock)

    monkeypatch.setattr(execute, "_start", started)


@pytest.mark.full
def test_a_killed_run_stops_no_other_and_continues(
    ablation: AblateConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    ablation.train.optim.epochs = 3
    killed, other = "digits-lt-none-4", "digits-lt-batchnorm-4"
    with monkeypatch.context() as patch:
        _kill(patch, killed, tmp_path)
        code, text = _ablate(ablation)
    assert code == 1
    assert _statuses(ablation) == {killed: "failed", other: "finished"}
    assert f"failed: {killed} (exit status -9)" in text
    assert "| digits-lt | batchnorm | last" in text  # the table of what there is
    root = plan(ablation).run_root
    assert (root / killed / "config.yaml").exists()
    assert not (root / killed / "summary.json").exists()
    kept = (root / other / "summary.json").stat().st_mtime_ns

    code, text = _ablate(ablation)
    assert code == 0
    assert "1 of them finished before" in text
    assert sorted(path.name for path in root.iterdir()) == sorted([killed, other])
    assert (root / other / "summary.json").stat().st_mtime_ns == kept
    assert len((root / killed / "metrics.jsonl").read_text().splitlines()) == 3
    log = (plan(ablation).folder / "logs" / f"{killed}.log").read_text()
    assert f"continuing {root / killed}" in log
    planned = next(run.config for run in plan(ablation).runs if run.name == killed)
    assert load_config(root / killed / "config.yaml") == planned


def test_what_another_configuration_has_left_is_removed(ablation: AblateConfig):
    grid = plan(ablation)
    run = grid.runs[0]
    folder = grid.run_root / run.name
    folder.mkdir(parents=True)
    for change, stays in (({}, True), ({"seed": 9}, False)):
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({**to_dict(run.config), **change}))
        prepare(grid, run)
        assert folder.exists() is stays
    folder.mkdir()  # without a configuration: nothing of ours can be continued
    prepare(grid, run)
    assert not folder.exists()


@pytest.mark.slow
def test_a_run_that_fails_is_reported_with_its_reason(ablation: AblateConfig):
    ablation.axes = {"optim.lr": [1e20, 0.1]}
    code, text = _ablate(ablation)
    assert code == 1
    assert set(_statuses(ablation).values()) == {"failed", "finished"}
    assert "failed: digits-lt-lr=1e+20-4 (exit status 1): error: training loss: expected" in text
    assert "/logs/digits-lt-lr=1e+20-4.log" in text


def _ablate_in_a_process(config: AblateConfig, interpreter: str) -> list[str]:
    """Return the command of the ablation in a process of its own."""
    code = f"import sys; sys.executable = {interpreter!r}; from training.cli import run; "
    arguments = ["ablate", "--root", config.root, "--axes.whitening", "[none, batchnorm]"]
    arguments += ["--seeds", "[4]", "--train.model.width", "1", "--train.output.plots", "false"]
    arguments += ["--train.optim.epochs", str(config.train.optim.epochs)]
    arguments += ["--train.optim.warmup_epochs", "0"]
    return [sys.executable, "-c", code + "sys.exit(run(sys.argv[1:]))", *arguments]


def _is_locked(config: AblateConfig) -> bool:
    try:
        with locked(plan(config)):
            return False
    except ConfigError:
        return True


@pytest.mark.full
def test_ablate_itself_is_killed(ablation: AblateConfig, tmp_path: Path):
    ablation.train.optim.epochs = 2
    go_on = tmp_path / "go on"
    command = _ablate_in_a_process(ablation, str(_interpreter(tmp_path, go_on, str(os.getpid()))))
    metrics = plan(ablation).run_root / "digits-lt-none-4/metrics.jsonl"
    with started(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as process:
        until(metrics.exists, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        with pytest.raises(ConfigError, match="by runs that one has started"):
            _ablate(ablation)  # its run goes on, and holds the folder
        go_on.touch()
        until(lambda: not _is_locked(ablation))
    code, text = _ablate(ablation)
    assert code == 0
    assert "1 of them finished before" in text


@pytest.mark.full
def test_ablate_is_asked_to_end(ablation: AblateConfig):
    ablation.train.optim.epochs = 100_000
    folder = plan(ablation).run_root / "digits-lt-none-4"
    command = _ablate_in_a_process(ablation, sys.executable)
    with started(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as process:
        until((folder / "metrics.jsonl").exists, process)
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM
        assert not _is_locked(ablation)  # its run was ended with it
        assert not (folder / "summary.json").exists()


def test_the_command_returns_the_status(ablation: AblateConfig, capsys: pytest.CaptureFixture[str]):
    assert run_command(["ablate", "--root", ablation.root, "--axes.nothing", "[1, 2]"]) == 2
    assert "nothing: expected an option of `train`" in capsys.readouterr().err


# Options that every arm chooses for itself


def test_every_arm_takes_the_value_that_is_best_on_validation_images(
    ablation: AblateConfig, monkeypatch: pytest.MonkeyPatch
):
    ablation.axes = {
        "data.class_order_seed": [0, 1],
        "layer": {"plain": {"whitening": "none"}, "bn": {"whitening": "batchnorm"}},
    }
    ablation.choose = {"optim": {"weight_decay": [0.1, 0.2]}}
    trial = plan(trial_config(ablation))
    assert len(trial.runs) == 8 and {run.config.seed for run in trial.runs} == {1000}
    assert {run.arm for run in trial.runs} == {"plain", "bn"}
    # The first order alone would choose otherwise for "plain"; both together choose 0.1.
    accuracy = {
        ("plain", 0, 0.1): 0.5,
        ("plain", 0, 0.2): 0.6,
        ("plain", 1, 0.1): 0.8,
        ("plain", 1, 0.2): 0.6,
        ("bn", 0, 0.1): 0.1,
        ("bn", 0, 0.2): 0.2,
        ("bn", 1, 0.1): 0.1,
        ("bn", 1, 0.2): 0.2,
    }
    by_name = {
        run.name: accuracy[run.arm, run.config.data.class_order_seed, run.config.optim.weight_decay]
        for run in trial.runs
    }

    def fake(path: Path) -> Any:
        result = {"validation": {"balanced_accuracy": by_name[path.name]}, "test": None}
        return SimpleNamespace(summary={"last": result})

    monkeypatch.setattr(choose, "read_run", fake)
    states = {run.name: RunState("finished") for run in trial.runs}
    chosen = choose.choose(trial, states, chosen_options(ablation))
    assert chosen == {
        ("digits-lt", "plain"): {"optim.weight_decay": 0.1},
        ("digits-lt", "bn"): {"optim.weight_decay": 0.2},
    }
    grid = plan(ablation, chosen)
    assert {(r.arm, r.config.seed, r.config.optim.weight_decay) for r in grid.runs} == {
        ("plain", 4, 0.1),
        ("bn", 4, 0.2),
    }
    assert grid.options[-1] == "optim.weight_decay"


@pytest.mark.slow
def test_choosing_and_comparing_what_was_chosen(ablation: AblateConfig):
    """A learning rate of almost nothing must not be taken."""
    ablation.choose = {"optim.lr": [1e-9, 0.1]}
    ablation.train.model.width = 4
    ablation.train.optim.epochs = 3
    status, text = _ablate(ablation)
    assert status == 0
    grid = Path(ablation.root) / "axes"
    configs = [load_config(path) for path in sorted(grid.glob("runs/*/config.yaml"))]
    assert [config.optim.lr for config in configs] == [0.1, 0.1]
    assert len(list(Path(ablation.root).glob("axes-choice/runs/*/summary.json"))) == 4
    assert text.count("optim.lr 0.1, chosen on validation images") == 2
    assert "Difference to the baseline" in text
    assert _ablate(ablation)[1].count("finished before") == 2  # nothing runs again
    with pytest.raises(ConfigError, match="none of seeds"):
        run_ablate(replace(ablation, choose_seeds=[4]))
