"""A command that decodes files in workers ends, however it ends, and leaves no process behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.processes import members, started

REPOSITORY = Path(__file__).parents[2]
OPTIONS = (
    "--model.width 1 --optim.epochs 1 --optim.warmup_epochs 0 "
    "--output.loggers [] --data.workers 2 --data.image_size 8 --data.resize 8 "
    "--data.batch_size 6"
).split()
FOLDER = ["--data.validation_per_class", "1"]
MODULE = ("-m", "training")


def _write(root: Path) -> Path:
    """Two classes of eight images to train and two to test on, and lists of the same files."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 2)):
        lines = []
        for label in (0, 1):
            folder = root / part / f"class {label}"
            folder.mkdir(parents=True)
            for number in range(count):
                path = folder / f"{number}.png"
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
                lines.append(f"{path.relative_to(root)} {label}\n")
        (root / f"{part}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images that no test changes."""
    return _write(tmp_path_factory.mktemp("images"))


def _train(images: Path, root: Path) -> list[str]:
    where = ["--data.root", str(images), "--output.root", str(root), "--output.name", "run"]
    return ["train", "--dataset", "image-folder", *FOLDER, *OPTIONS, *where]


def _ends(arguments: list[str], program: tuple[str, ...] = MODULE) -> tuple[int, str]:
    """Run a command; return its status and what it said. Nothing that it started may be left."""
    command = [sys.executable, *program, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with started(command, text=True, cwd=REPOSITORY, env=environment, **pipes) as process:
        said = process.stderr.read()  # at its end, no process holds the other end of the pipe
        status = process.wait()
        assert members(process.pid) == []
    return status, said


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    root = tmp_path_factory.mktemp("runs")
    assert _ends(_train(images, root)) == (0, "")
    return root / "run"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["eval", "diagnose", "stage2", "plot", "export"])
def test_a_command_on_a_run_ends(command: str, trained: Path, tmp_path: Path):
    arguments = {
        "eval": ["eval", str(trained), "--verify"],
        "stage2": ["stage2", "crt", str(trained), "--root", str(tmp_path)],
    }.get(command, [command, str(trained)])
    assert _ends(arguments)[0] == 0


@pytest.mark.slow
def test_list_files_end(images: Path, tmp_path: Path):
    lists = [f"--data.list_{part}={images / part}.txt" for part in ("train", "test")]
    where = ["--data.root", str(images), "--output.root", str(tmp_path)]
    assert _ends(["train", "--dataset", "list-files", *lists, *OPTIONS, *where]) == (0, "")


@pytest.mark.slow
def test_a_grid_ends(images: Path, tmp_path: Path):
    shared = [a.replace("--", "--train.") for a in [*FOLDER, *OPTIONS, "--data.root"]]
    grid = ["--datasets", "[image-folder]", "--seeds", "[0]", "--axes.whitening", "[none]"]
    arguments = ["ablate", "--root", str(tmp_path), *grid, *shared, str(images)]
    assert _ends(arguments) == (0, "")


@pytest.mark.slow
def test_an_error_ends(images: Path, tmp_path: Path):
    root = tmp_path / "images"
    shutil.copytree(images, root)
    arguments = [*_train(root, tmp_path), "--optim.lr", "1e30", "--optim.epochs", "9"]
    status, said = _ends(arguments)
    assert status == 1
    assert "training loss: expected" in said


@pytest.mark.slow
@pytest.mark.parametrize("where", ["train", "eval"])
@pytest.mark.parametrize(
    ("signals", "status"),
    [((signal.SIGTERM,), 143), ((signal.SIGINT,), 130), ((signal.SIGINT, signal.SIGINT), 130)],
)
def test_a_signal_ends(
    where: str, signals: tuple[int, ...], status: int, images: Path, trained: Path, tmp_path: Path
):
    method = (
        ("training.engine.meter", "Meter")
        if where == "train"
        else ("training.evaluation.metrics", "Tally")
    )
    arguments = _train(images, tmp_path) if where == "train" else ["eval", str(trained)]
    program = str(Path(__file__).with_name("signalled.py"))
    numbers = ",".join(str(int(number)) for number in signals)
    found, said = _ends(arguments, (program, numbers, *method, "add", *MODULE))
    assert found == status
    assert "Traceback" not in said
