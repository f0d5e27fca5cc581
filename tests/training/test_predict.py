"""The command predict: what evaluation makes of the same images, by a run and its exports."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from training.cli import run
from training.commands.predict import find_images, run_predict
from training.config.commands import PredictConfig
from training.data import evaluation_batches
from training.evaluation.evaluate import evaluating
from training.runs.finished import load_run, read_run

OPTIONS = (
    "--model.width 4 --optim.epochs 1 --output.plots false --output.loggers [] "
    "--data.batch_size 4 --data.validation_per_class 1 --output.name run"
).split()
FILES = "--data.workers 0 --data.image_size 8 --data.resize 10".split()


@pytest.fixture(scope="module", params=["files", "resident"])
def trained(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on files of 12 x 9 pixels, and its images."""
    root = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for name in ("[b]ird", "cat"):
            folder = root / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
                image.save(folder / f"{number}.png")
    where = ["--data.root", str(root / "images"), "--output.root", str(root)]
    how = FILES if request.param == "files" else ["--data.resident", "true"]
    assert run(["train", "--dataset", "image-folder", *where, *OPTIONS, *how]) == 0
    return root / "run", root / "images" / "test"


def _expected(folder: Path) -> torch.Tensor:
    loaded = load_run(read_run(folder), "last", torch.device("cpu"))
    with evaluating(loaded.model):
        batches = list(evaluation_batches(loaded.dataset, loaded.dataset.test, 100))
        return torch.cat([loaded.model(images) for images, _ in batches]).softmax(1)


@pytest.mark.parametrize("form", [None, "safetensors", "torch-export", "onnx"])
def test_the_probabilities_are_those_of_the_evaluation(form, trained, tmp_path: Path):
    folder, images = trained
    model = folder
    if form is not None:
        ending = {"safetensors": "safetensors", "torch-export": "pt2", "onnx": "onnx"}[form]
        if form == "onnx":
            pytest.importorskip("onnxscript")
            pytest.importorskip("onnxruntime")
        model = tmp_path / f"model.{ending}"
        assert run(["export", str(folder), "--format", form, "--output", str(model)]) == 0
    console = Console(file=io.StringIO(), width=40)
    output = tmp_path / "all.csv"
    found = run_predict(PredictConfig(str(model), [str(images)], output=str(output)), console)
    expected = _expected(folder)
    assert torch.allclose(found, expected, atol=1e-5)
    names = ["[b]ird", "cat"]
    lines = console.file.getvalue().splitlines()[:-1]
    for line, row in zip(lines, expected, strict=True):
        assert f": {names[int(row.argmax())]} {100 * row.max():.1f} %" in line
    rows = list(csv.reader(output.open()))
    assert rows[0] == ["image", *names]
    assert [row[0] for row in rows[1:]] == sorted(str(p) for p in images.rglob("*.png"))


def test_what_is_hidden_in_a_folder_is_left_out(tmp_path: Path):
    for name in (".trash/a.png", ".b.png", "c/d.png", "c/.e/f.png", "g.PNG", "h.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images([str(tmp_path)]) == [str(tmp_path / name) for name in ("c/d.png", "g.PNG")]


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_the_folder_of_the_output_is_made(command: str, trained: tuple, tmp_path: Path, capsys):
    arguments = [command, str(trained[0]), *([str(trained[1])] if command == "predict" else [])]
    output = tmp_path / "new folder" / "a"
    assert run([*arguments, "--output", str(output)]) == 0
    assert output.is_file()
    for wrong in (output / "b", tmp_path):
        assert run([*arguments, "--output", str(wrong)]) == 2
        assert "output: expected a file" in capsys.readouterr().err


def test_a_file_has_one_checkpoint(trained: tuple, tmp_path: Path, capsys):
    model = tmp_path / "last.safetensors"
    assert run(["export", str(trained[0]), "--output", str(model)]) == 0
    assert run(["predict", str(model), str(trained[1]), "--checkpoint", "best"]) == 2
    assert "which holds 'last' alone" in capsys.readouterr().err


def test_what_is_no_model_or_no_image_is_named(trained, tmp_path: Path, capsys):
    folder, images = trained
    (tmp_path / "a.onnx").write_text("no model")
    for arguments, text in (
        ([str(folder)], "images: expected a value with at least one image"),
        ([str(folder), str(tmp_path)], "expected a folder with images"),
        ([str(folder), str(tmp_path / "none.png")], "none.png: expected an image file, found none"),
        ([str(tmp_path / "none"), str(images)], "expected a run folder, or a file that"),
        ([str(tmp_path / "a.onnx"), str(images)], "a.onnx: expected a file that"),
    ):
        assert run(["predict", *arguments]) == 2
        assert text in capsys.readouterr().err


def test_a_run_brings_along_what_it_needs(trained: tuple, tmp_path: Path, capsys):
    folder, images = trained
    expected = _expected(folder)
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    images = Path(shutil.copytree(images, tmp_path / "images"))
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace(str(folder.parent / "images"), "/gone"))
    found = run_predict(PredictConfig(str(moved), [str(images)]), Console(quiet=True))
    assert torch.equal(found, expected)
    # A run from before the preparation was kept needs its data, and says so.
    for run_folder, status in ((Path(shutil.copytree(folder, tmp_path / "old")), 0), (moved, 2)):
        summary = json.loads((run_folder / "summary.json").read_text())
        del summary["preparation"]
        (run_folder / "summary.json").write_text(json.dumps(summary))
        assert run(["predict", str(run_folder), str(images)]) == status
    assert "whose data set is needed for that (data.root: " in capsys.readouterr().err


@pytest.mark.parametrize("exported", [False, True])
def test_digits_are_predicted_from_grey_images(exported: bool, tmp_path: Path):
    """Their values go from 0 to 16, where files have 0 to 255."""
    small = ["--data.batch_size", "64", "--output.root", str(tmp_path), "--output.name", "run"]
    assert run(["train", *OPTIONS[:8], *small]) == 0
    folder = model = tmp_path / "run"
    if exported:
        model = tmp_path / "model.safetensors"
        assert run(["export", str(folder), "--output", str(model)]) == 0
    test = load_run(read_run(folder), "last", torch.device("cpu")).dataset.test.images[:, 0]
    (tmp_path / "images").mkdir()
    for number, digit in enumerate(test[:20]):
        grey = (digit.numpy() * (255 / 16)).round().astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / "images" / f"{number:02}.png")
    found = run_predict(PredictConfig(str(model), [str(tmp_path / "images")]), Console(quiet=True))
    assert torch.allclose(found, _expected(folder)[:20], atol=1e-6)
