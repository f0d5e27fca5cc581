"""The command data, and training from files, through the command line."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from training.cli import run


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_stats_of_digits(capsys, tmp_path):
    assert run(["data", "stats"]) == 0
    out = capsys.readouterr().out
    for text in ("124", "many (> 100)", "342", "imbalance factor 62", "validation 100, test 400"):
        assert text in out
    with Image.open(tmp_path / "runs" / "class-counts-digits-lt.png") as picture:
        assert picture.size[0] > 800


def test_stats_of_many_classes_say_what_is_short(capsys, cifar100_root):
    arguments = ["--dataset", "cifar100-lt", "--data.root", str(cifar100_root)]
    options = ["--imbalance-factor", "5", "--data.validation-per-class", "2"]
    with pytest.warns(UserWarning, match="another number of images"):
        assert run(["data", "stats", *arguments, *options, "--picture", "a.svg"]) == 0
    out = capsys.readouterr().out
    assert "(60 more)" in out
    assert "fewer than 2 validation images: fine 0 (0)" in out
    assert "note: " in out


def test_verify_names_every_broken_file(capsys, image_root):
    arguments = ["data", "verify", "--dataset", "image-folder", "--data.root", str(image_root)]
    arguments += ["--data.validation-per-class", "1"]
    assert run(arguments) == 0
    assert "decoded 60 image files, none is broken" in capsys.readouterr().out
    broken = [image_root / "train" / "dog" / "0011.jpg", image_root / "test" / "ant" / "0002.jpg"]
    broken[0].write_bytes(b"")
    broken[1].write_bytes(broken[1].read_bytes()[:-100])
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert "2 of 60 image files are not right" in error
    assert all(str(path) in error for path in broken)


def test_verify_of_whole_files(capsys, cifar10_root):
    arguments = ["data", "verify", "--dataset", "cifar10-lt", "--data.root", str(cifar10_root)]
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert "200 training images, 30 test images of 10 classes" in out
    assert "note: " in out
    assert run([*arguments, "--data.verify-md5", "true"]) == 2
    assert "expected the published file, md5" in capsys.readouterr().err
    assert run([*arguments, "--data.verify-md5", "false"]) == 0
    assert "note: " not in capsys.readouterr().out


def test_wrong_options(capsys, tmp_path):
    assert run(["data", "stats", "--picture", "counts.jpeg2"]) == 2
    assert "ends in .png, .svg or .pdf" in capsys.readouterr().err
    assert run(["data", "verify", "--picture", "a.png"]) == 2
    with pytest.raises(SystemExit) as error:
        run(["data", "look"])
    assert error.value.code == 2


@pytest.mark.parametrize("resident", ["true", "false"])
def test_training_from_an_image_folder(capsys, image_root, tmp_path, resident):
    arguments = ["train", "--dataset", "image-folder", "--data.root", str(image_root)]
    arguments += ["--imbalance-factor", "2", "--data.validation-per-class", "2"]
    arguments += ["--data.batch-size", "8", "--optim.epochs", "1", "--optim.warmup-epochs", "0"]
    arguments += ["--model.width", "4", "--output.plots", "false", "--output.name", "run"]
    arguments += ["--data.resident", resident]
    if resident == "false":
        arguments += ["--data.image-size", "12", "--data.resize", "14", "--data.workers", "1"]
    assert run(arguments) == 0
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert summary["class_counts"] == [12, 9, 7, 6]
    assert len(summary["last"]["test"]["per_class"]) == 4
