"""A run that was killed at any moment goes on as if nothing had happened, bit by bit."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import training.commands.train
from tests.helpers.processes import started, until, with_parent
from training.commands.train import run_train
from training.config import TrainConfig
from training.data import LongTailedDataset, Split
from training.errors import ConfigError, TrainingStopped
from training.runs.checkpoint import CorruptCheckpoint, load_checkpoint, save_last
from training.runs.folder import RunFolder
from training.runs.resume import load_newest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_killed_at_random_moments(tmp_path: Path):
    """22 times kill -9, at seeded delays: while a run starts, resumes, trains or saves."""
    script = Path(__file__).with_name("killed_runs.py")
    result = subprocess.run(
        with_parent([sys.executable, script, tmp_path, "22", "0"]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert sum(report["kills_per_run"]) >= 22
    assert report["kills_that_got_on"] >= 5, report  # not only while they start
    assert report["steps"] == 30
    assert report["equal"] and all(report["equal"]), report


def _quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def _folder(path: Path) -> RunFolder:
    (path / "checkpoints").mkdir(parents=True)
    return RunFolder(path)


def _save(folder: RunFolder, step: int) -> None:
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, float(step))
    save_last(folder, model, step=step)


def _die_at(event: int, action: Callable[[], Any]) -> bool:
    """Do something in a forked child that dies at its n-th file operation; return if it did."""
    child = os.fork()
    if child == 0:
        counter = itertools.count()

        def dying(function: Callable[..., Any]) -> Callable[..., Any]:
            def replacement(*args: Any, **kwargs: Any) -> Any:
                if next(counter) == event:
                    os._exit(9)
                result = function(*args, **kwargs)
                if next(counter) == event:
                    os._exit(9)
                return result

            return replacement

        for name in ("replace", "fsync", "chmod", "open", "close", "fdopen"):
            setattr(os, name, dying(getattr(os, name)))
        save = torch.save

        def save_and_die(value: Any, file: Any) -> None:
            buffer = io.BytesIO()
            save(value, buffer)
            half = len(buffer.getvalue()) // 2
            file.write(buffer.getvalue()[:half])
            file.flush()
            if next(counter) == event:
                os._exit(9)
            file.write(buffer.getvalue()[half:])

        torch.save = save_and_die
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_killed_at_every_moment_of_a_save(tmp_path: Path):
    steps = []
    for event in range(100):
        folder = _folder(tmp_path / str(event))
        _save(folder, 1)
        _save(folder, 2)
        died = _die_at(event, lambda folder=folder: _save(folder, 3))
        state = load_newest(folder, None, _quiet())
        assert state is not None
        steps.append(state["step"])
        assert state["model"]["weight"].item() == state["step"]
        _save(folder, 4)  # what is left over does not disturb the next save
        assert load_newest(folder, None, _quiet())["step"] == 4
        if not died:
            break
    assert steps == sorted(steps)  # first the old one, from some moment on the new one
    assert steps[0] == 2 and steps[-1] == 3 and len(steps) > 15


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text"])
def test_a_corrupt_checkpoint_is_reported_and_the_previous_used(tmp_path: Path, damage: str):
    folder = _folder(tmp_path / "run")
    _save(folder, 1)
    _save(folder, 2)
    last = folder.checkpoint("last")
    content = bytearray(last.read_bytes())
    if damage == "flipped":  # one bit of the weight
        place = content.index(torch.tensor([2.0]).numpy().tobytes())
        content[place + 1] ^= 1
    damaged = {"cut": content[: len(content) // 2], "empty": b"", "text": b"hello"}
    last.write_bytes(damaged.get(damage, content))
    console = _quiet()
    assert load_newest(folder, None, console)["step"] == 1
    said = console.file.getvalue()
    assert "last.pt" in said and "last-previous.pt" in said
    # The damaged file does not push the good one out at the next save.
    assert folder.checkpoint("last-corrupt").exists()
    _save(folder, 3)
    assert load_checkpoint(folder.checkpoint("last-previous"))["step"] == 1


def test_when_no_checkpoint_is_whole_that_is_an_error(tmp_path: Path):
    folder = _folder(tmp_path / "run")
    assert load_newest(folder, None, _quiet()) is None  # none at all: the run starts anew
    folder.checkpoint("last").write_bytes(b"")
    with pytest.raises(ConfigError, match="expected a whole checkpoint, got none; start again"):
        load_newest(folder, None, _quiet())
    with pytest.raises(CorruptCheckpoint, match="no readable checkpoint"):
        load_newest(folder, folder.checkpoint("last"), _quiet())


class Stop(Exception):
    """Ends a run from inside."""


class _StopAt:
    """A console that ends the run when an epoch is printed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines: list[str] = []
        self.is_terminal = False

    def print(self, line: Any = "", **options: Any) -> None:
        self.lines.append(str(line))
        if str(line).startswith(self.text):
            raise Stop


def _ended_after_an_epoch(config: TrainConfig) -> RunFolder:
    config.resume, config.output.name = "auto", "run"
    with pytest.raises(Stop):
        run_train(config, _StopAt("epoch 1/"))
    return RunFolder(Path(config.output.root) / "run")


def test_another_configuration_is_an_error_that_names_the_options(config: TrainConfig):
    folder = _ended_after_an_epoch(config)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    config.optim.lr, config.whitening = 0.2, "none"
    with pytest.raises(ConfigError) as error:
        run_train(config, _quiet())
    assert "optim.lr (0.1 there, 0.2 now), whitening ('eager' there, 'none' now)" in str(
        error.value
    )
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_options_that_change_no_result_may_differ(config: TrainConfig):
    folder = _ended_after_an_epoch(config)
    config.checkpoint_every_steps = 2
    config.output.overwrite = True  # continues all the same: auto found something to continue
    console = _quiet()
    summary = run_train(config, console)
    assert "1 epochs and 0 batches done" in console.file.getvalue()
    assert summary["last"]["epoch"] == 2
    lines = folder.metrics.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
def test_resume_from_a_path(config: TrainConfig, kind: str):
    folder = _ended_after_an_epoch(config)
    config.output.name = None
    config.resume = str(folder.path if kind == "folder" else folder.checkpoint("best"))
    assert run_train(config, _quiet())["last"]["epoch"] == 2
    assert folder.summary.exists()
    config.resume = str(folder.path.parent / "nothing")
    with pytest.raises(ConfigError, match="expected auto, none, a run folder or a checkpoint"):
        run_train(config, _quiet())


def test_a_finished_run_is_summarised_again(config: TrainConfig):
    config.resume, config.output.name = "auto", "run"
    first = run_train(config, _quiet())
    config.evaluate_every = 1
    again = run_train(config, _quiet())
    for key in ("last", "best", "images_per_second", "mean_abs_correlation"):
        assert json.dumps(first[key]) == json.dumps(again[key])


def test_lost_metrics_are_an_error(config: TrainConfig):
    folder = _ended_after_an_epoch(config)
    folder.metrics.write_text("")
    with pytest.raises(ConfigError, match=r"expected at least the 1 epochs .* got 0 bytes"):
        run_train(config, _quiet())


def test_lines_that_the_checkpoint_does_not_know_are_cut_off(config: TrainConfig):
    folder = _ended_after_an_epoch(config)
    known = folder.metrics.read_text()
    folder.metrics.write_text(known + '{"epoch": 2, "cut of')
    run_train(config, _quiet())
    text = folder.metrics.read_text()
    assert text.startswith(known)
    assert [json.loads(line)["epoch"] for line in text.splitlines()] == [1, 2]
    rows = folder.metrics_csv.read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2"]


def test_other_data_is_an_error(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    """The configuration is the same; the message names what differs: labels, or their number."""
    folder = _ended_after_an_epoch(config)
    build = training.commands.train.build_dataset

    def changed(change: Callable[[Split], Split]) -> str:
        def other(*arguments: Any) -> LongTailedDataset:
            dataset = build(*arguments)
            return replace(dataset, train=change(dataset.train))

        monkeypatch.setattr(training.commands.train, "build_dataset", other)
        with pytest.raises(ConfigError, match="expected the plan of batches") as error:
            run_train(config, _quiet())
        return str(error.value)

    text = changed(lambda split: split.take(torch.arange(len(split) - 1)))
    assert "num_samples: 342 there, 341 now" in text and "labels: '" in text
    text = changed(lambda split: replace(split, labels=split.labels.roll(1)))
    assert "(labels: '" in text and "num_samples" not in text
    state = load_checkpoint(folder.checkpoint("last"))
    assert (state["sampler"]["epoch"], state["sampler"]["index"]) == (2, 0)


def test_saved_between_the_last_step_of_an_epoch_and_its_evaluation(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    """All five batches of epoch 1 are done and the epoch is not: it is evaluated after resuming."""
    config.output.name, config.resume, config.checkpoint_every_steps = "whole", "auto", 5
    whole = run_train(config, _quiet())
    config.output.name = "run"
    with monkeypatch.context() as patch:

        def stop(*_: Any) -> None:
            raise Stop

        patch.setattr(training.commands.train, "evaluate_epoch", stop)
        with pytest.raises(Stop):
            run_train(config, _quiet())
    folder = RunFolder(Path(config.output.root) / "run")
    state = load_checkpoint(folder.checkpoint("last"))
    assert (state["sampler"]["epoch"], state["sampler"]["index"]) == (1, 5)
    assert (state["epoch"], state["step"]) == (0, 5)
    console = _quiet()
    resumed = run_train(config, console)
    assert "0 epochs and 5 batches done" in console.file.getvalue()
    assert json.dumps(resumed["last"]) == json.dumps(whole["last"])
    lines = folder.metrics.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(tmp_path: Path, number: int):
    command = [
        *(sys.executable, "-m", "training", "train", "--whitening=none", "--model.width=4"),
        *("--optim.epochs=100000", "--output.name=run", f"--output.root={tmp_path}"),
        "--evaluate-every=50",
    ]
    metrics = tmp_path / "run/metrics.jsonl"
    kinds = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with started(command, cwd=ROOT, **kinds) as process:
        until(lambda: metrics.exists() and metrics.stat().st_size > 0, process)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert f"stopped by signal {int(number)} after step" in errors
    assert "Traceback" not in errors
    state = load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert f"after step {state['step']};" in errors
    assert state["step"] == state["epoch"] * 2 + state["sampler"]["index"]  # 342 // 128 batches


def test_stopped_in_the_middle_of_an_epoch_and_continued(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    """SIGTERM after the third of five steps; the end is that of a run without it."""
    config.output.name, config.resume = "whole", "auto"
    whole = run_train(config, _quiet())
    config.output.name = "run"
    with monkeypatch.context() as patch:
        from training.report.progress import PlainReporter

        count = itertools.count(1)
        patch.setattr(
            PlainReporter,
            "step",
            lambda self, loss: next(count) == 3 and os.kill(os.getpid(), signal.SIGTERM),
        )
        with pytest.raises(TrainingStopped) as stopped:
            run_train(config, _quiet())
    assert stopped.value.signal == signal.SIGTERM
    folder = RunFolder(Path(config.output.root) / "run")
    assert load_checkpoint(folder.checkpoint("last"))["sampler"]["index"] == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as it was before
    resumed = run_train(config, _quiet())
    assert json.dumps(resumed["last"]) == json.dumps(whole["last"])
    models = [
        load_checkpoint(Path(config.output.root) / name / "checkpoints/last.pt")["model"]
        for name in ("whole", "run")
    ]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
