"""Two processes (gloo, on the CPU) do what one does."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.helpers.processes import started, until, with_parent
from tests.training.two_processes import evaluate_split, small_config, train_steps
from training.commands.train import run_train
from training.config import TrainConfig
from training.data import build_dataset
from training.data.feed import Examples
from training.engine.distributed import Processes, loss_weight
from training.engine.trainer import build_trainer
from training.errors import ConfigError
from training.losses import CrossEntropy
from training.reproducibility import resolve_seeds
from training.runs.checkpoint import load_checkpoint
from training.samplers import Batch, rank_rows

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


def _run_two(scene: str, folder: Path, both_end: bool = False) -> list[tuple[int | None, str]]:
    """Run a scene on two processes; return exit status and standard error of each.

    Once one has failed, the other is not waited for unless that is what is tested.
    """
    script = Path(__file__).with_name("two_processes.py")
    errors = [folder / f"{scene}-{rank}.err" for rank in range(2)]
    with contextlib.ExitStack() as stack:
        two = []
        for rank in range(2):
            command = [sys.executable, script, scene, folder, str(rank)]
            file = stack.enter_context(errors[rank].open("w"))
            two.append(stack.enter_context(started(command, stderr=file, env=ENVIRONMENT)))
        until(
            lambda: (
                all(process.poll() is not None for process in two)
                or (not both_end and any(process.poll() for process in two))
            )
        )
        statuses = [process.poll() for process in two]  # None: still waits for the other
    return [(status, path.read_text()) for status, path in zip(statuses, errors, strict=True)]


def _run_two_well(scene: str, folder: Path) -> None:
    results = _run_two(scene, folder)
    assert [status for status, _ in results] == [0, 0], "\n".join(text for _, text in results)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all scenes that end well."""
    path = tmp_path_factory.mktemp("two")
    _run_two_well("all_scenes", path)
    return path


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("whitening", ["none", "fused", "recipe"])
def test_weights_are_those_of_one_process(folder: Path, tmp_path: Path, whitening: str):
    """In float64, with clipping; "fused" whitens over the rows of both processes by default.

    "recipe" adds batches of B3RS, class-balanced weights in whitening and loss, and statistics of
    balanced batches alone.
    """
    train_steps(tmp_path, Processes(), whitening)
    single = torch.load(tmp_path / f"steps-{whitening}-0.pt")
    first, second = (torch.load(folder / f"steps-{whitening}-{rank}.pt") for rank in range(2))
    assert max(first["shares"]) > 0.5  # 17 + 16 rows; the last batch of instance sampling is 6 + 6
    assert single["seen"][1][0] < single["seen"][0][0] - 1e-3  # the run does go somewhere
    assert first["plan"] == second["plan"] == single["plan"]
    for name in ("model", "ema"):
        assert _same(first[name], second[name])
        for key, value in single[name].items():
            # Up to 3e-16 was measured; 3e-10 with class weights, whose sums are float32.
            atol = 1e-8 if whitening == "recipe" else 1e-12
            assert torch.allclose(first[name][key], value, rtol=0, atol=atol), key
    if whitening != "recipe":  # a mean of weighted means is not the weighted mean
        assert torch.allclose(torch.tensor(first["seen"]), torch.tensor(single["seen"]), atol=1e-6)
    assert first["seen"] == second["seen"]
    assert [row[1:] for row in first["seen"]] == [row[1:] for row in single["seen"]]  # counts


@pytest.mark.full
def test_compiled_training_on_two_processes(tmp_path: Path):
    _run_two_well("compiled_steps", tmp_path)
    first, second = (torch.load(tmp_path / f"compiled-{rank}.pt") for rank in range(2))
    assert first["plain"]["graphs"] == 0 < first["compiled"]["graphs"]
    for found in (first, second):
        losses = {name: torch.tensor(found[name]["losses"]) for name in ("plain", "compiled")}
        assert len(losses["plain"]) == 10
        assert torch.allclose(losses["compiled"], losses["plain"], rtol=1e-3)
    assert first["plain"]["losses"] != second["plain"]["losses"]  # each of its own rows
    for name in ("plain", "compiled"):
        models = [found[name]["model"] for found in (first, second)]
        weights = [k for k in models[0] if "running" not in k and "cov" not in k]
        assert all(torch.equal(models[0][key], models[1][key]) for key in weights)


def test_evaluation_counts_are_those_of_one_process(folder: Path, tmp_path: Path):
    evaluate_split(tmp_path, Processes())
    single = torch.load(tmp_path / "evaluation-0.pt")
    for rank in range(2):
        both = torch.load(folder / f"evaluation-{rank}.pt")
        for size in (101, 1):  # of one image, the second process has none
            assert torch.equal(both[size].pop("confusion"), single[size]["confusion"])
            for key, value in both[size].items():
                assert value == pytest.approx(single[size][key], rel=1e-6, nan_ok=True), key
        assert sum(map(sum, single[101]["confusion"].tolist())) == 101


def test_stopped_and_continued_on_two_processes(folder: Path):
    # The signal came to one process; both stopped after the same step, the third of epoch 2.
    assert [(folder / f"stopped-{rank}").read_text() for rank in range(2)] == ["15 14", "15 14"]
    runs = [folder / "runs" / name for name in ("whole", "stopped")]
    for name in ("last", "best"):
        states = [load_checkpoint(run / f"checkpoints/{name}.pt") for run in runs]
        assert states[0]["world_size"] == 2
        assert _same(states[0]["model"], states[1]["model"])
        for left, right in zip(states[0]["ranks"], states[1]["ranks"], strict=True):
            assert _same(left["buffers"], right["buffers"])
    tables = [list(csv.DictReader((run / "metrics.csv").open())) for run in runs]
    for row in [*tables[0], *tables[1]]:
        del row["train_seconds"], row["images_per_second"]
    assert tables[0] == tables[1]
    assert [row["epoch"] for row in tables[0]] == ["1", "2"]
    names = sorted(path.name for path in (folder / "runs").iterdir())
    assert names == ["stopped", "unlogged", "whole"]


def test_an_error_of_the_first_process_is_raised_by_all(folder: Path):
    texts = [(folder / f"refused-{rank}").read_text() for rank in range(2)]
    assert texts[0] == texts[1] and "expected auto, none, a run folder" in texts[0]


def test_loggers_are_opened_by_the_first_process_and_their_errors_raised_by_all(folder: Path):
    assert [path.name for path in folder.glob("opened-*")] == ["opened-0"]
    texts = [(folder / f"unlogged-{rank}").read_text() for rank in range(2)]
    assert texts[0] == texts[1] and texts[0].endswith("to open, got OSError: no such server.")


def test_running_statistics_are_averaged(folder: Path):
    found = [json.loads((folder / f"statistics-{rank}.json").read_text()) for rank in range(2)]
    assert found == [[[2.0, 2.0], [5.0, 5.0], 0], [[2.0, 2.0], [6.0, 6.0], 0]]


def test_one_process_continues_a_run_of_two(folder: Path):
    """The same plan, with a note; what both saw of the epoch that was cut is counted."""
    config = small_config(folder)
    config.whitening, config.resume = "eager", str(folder / "left-by-two")
    state = load_checkpoint(folder / "left-by-two/checkpoints/last.pt")
    assert (state["epoch"], state["sampler"]["index"]) == (1, 3)
    console = Console(file=io.StringIO(), width=300)
    summary = run_train(config, console)
    assert "note: 1 processes continue a run of 2" in console.file.getvalue()
    correct = 342 * summary["last"]["train"]["accuracy"]  # of all 342 images of the epoch
    assert correct == pytest.approx(round(correct), abs=1e-6) and correct > 0
    assert summary["last"]["epoch"] == 2 and summary["processes"] == 1


def test_an_error_of_one_process_ends_both(tmp_path: Path):
    (first, first_text), (second, second_text) = _run_two("fail_on_one", tmp_path, True)
    assert first != 0 and second != 0, (first_text, second_text)
    assert "expected a file, got none on this machine" in second_text


def test_torchrun(tmp_path: Path):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "training", "train", "--device=cpu", "--optim.epochs=2", "--model.width=4"),
        *("--optim.warmup-epochs=1", "--output.plots=false", f"--output.root={tmp_path}"),
        *("--whitening=eager", "--output.name=run"),
    ]
    result = subprocess.run(
        with_parent(command), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line[:9] for line in lines if line.startswith("epoch ")] == ["epoch 1/2", "epoch 2/2"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert json.loads((tmp_path / "run/summary.json").read_text())["processes"] == 2


def test_weights_of_the_shares_by_hand():
    # 5 rows: 3 on the first, 2 on the second process. 2 * 3/5 and 2 * 2/5; their mean is 1.
    batch = Batch(torch.arange(10, 15), 0)
    found: list[Any] = []
    for rank in range(2):
        processes = Processes(rank, 2)
        rows = batch.positions[rank_rows(rank, 2)]
        examples = Examples(rows, rows, batch)
        found.append((rows.tolist(), loss_weight(CrossEntropy(), examples, processes)))
    assert found == [([10, 12, 14], 1.2), ([11, 13], 0.8)]


def test_too_few_rows_for_the_processes(config: TrainConfig):
    config.data.batch_size, config.data.drop_last = 85, False  # 342 = 4 * 85 + 2
    dataset, seeds = build_dataset(config, 0), resolve_seeds(0, config.seeds)
    with pytest.raises(ConfigError, match=r"2 rows for each of the 2 processes .* a batch of 2"):
        build_trainer(config, dataset, seeds, torch.device("cpu"), Processes(0, 2))
