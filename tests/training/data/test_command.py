"""The command data, and training from files, through the command line."""

from __future__ import annotations

import json
import os

import pytest
import torch
from PIL import Image

from training.cli import run
from training.data import build_dataset, evaluation_batches


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


def test_a_copy_has_the_images_of_the_splits_and_no_others(capsys, image_root, data_config):
    source = ["--dataset", "image-folder", "--data.root", str(image_root)]
    cut = ["--imbalance-factor", "4", "--data.validation-per-class", "2"]
    assert run(["data", "copy", *source, *cut, "--output", "copied"]) == 0
    assert "copied: 44 images" in capsys.readouterr().out
    config = data_config("image-folder", image_root, 4, validation_per_class=2, resident=True)
    copied = data_config("image-folder", "copied", None, resident=True)
    whole, part = build_dataset(config, 0), build_dataset(copied, 0)
    assert whole.class_counts.tolist() == part.class_counts.tolist() == [12, 7, 4, 3]
    assert torch.equal(whole.mean, part.mean) and torch.equal(whole.std, part.std)
    for name in ("train", "validation", "test"):
        found, expected = part.split(name), whole.split(name)
        assert _contents(found) == _contents(expected), name
    assert run(["data", "copy", *source, *cut, "--output", "copied"]) == 2
    assert "output: expected a folder that is not there yet" in capsys.readouterr().err
    assert run(["data", "copy", "--output", "digits"]) == 2
    assert "expected --dataset image-folder without" in capsys.readouterr().err
    assert run(["data", "stats", "--output", "copied"]) == 2
    assert "with data stats, which writes none" in capsys.readouterr().err


def _contents(split) -> list[tuple[int, bytes]]:
    images = [image.numpy().tobytes() for image in split.images]
    return sorted(zip(split.labels.tolist(), images, strict=True))


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


ODD = [
    b"with space.png",
    b" first.png",
    b"two\nlines.png",
    b"\xe9.png",
    "\u2028\xe9\x85.png".encode(),
]


@pytest.fixture
def odd_root(tmp_path):
    """Three classes with names that a person would not choose, each with five such files."""
    root = tmp_path / "odd images"
    for part in ("train", "test"):
        for name in (b"B [b]", b"\xc3\xa9t\xc3\xa9", b"\xff"):
            folder = os.path.join(os.fsencode(root), part.encode(), name)
            os.makedirs(folder)
            for number, file in enumerate(ODD):
                image = Image.new("RGB", (8, 8), (number, 0, 0))
                image.putpixel((0, 0), (255, 255, 255))
                with open(os.path.join(folder, file), "wb") as target:
                    image.save(target, "png")
    return root


def test_what_verify_passes_is_trained_on(capsys, odd_root):
    where = ["--dataset", "image-folder", "--data.root", str(odd_root)]
    where += ["--data.validation-per-class", "1"]
    assert run(["data", "verify", *where]) == 0
    assert "decoded 30 image files, none is broken" in capsys.readouterr().out
    assert run(["data", "stats", *where]) == 0
    small = ["--data.image-size", "8", "--data.resize", "8", "--data.workers", "1"]
    small += ["--data.batch-size", "4", "--optim.epochs", "1", "--optim.warmup-epochs", "0"]
    assert run(["train", *where, *small, "--model.width", "4"]) == 0
    out = capsys.readouterr().out
    assert "images found" not in out  # nothing was cut


def test_lists_hold_any_name(odd_root, data_config):
    names = [name for name in ODD if b"\n" not in name]
    for part in ("train", "test"):
        lines = [
            os.path.join(part.encode(), folder, name) + b" %d" % label
            for label, folder in enumerate((b"B [b]", b"\xff"))
            for name in names
        ]
        (odd_root / f"{part}.txt").write_bytes(b"\r\n".join(lines))
    lists = {f"list_{part}": str(odd_root / f"{part}.txt") for part in ("train", "test")}
    data = build_dataset(data_config("list-files", odd_root, None, workers=0, **lists), 0)
    assert sum(len(images) for images, _ in evaluation_batches(data, data.train, 3)) == 8


def test_verify_looks_at_values(capsys, image_root):
    path = image_root / "train" / "ant" / "0000.jpg"
    Image.new("RGB", (20, 16), (7, 7, 7)).save(path)
    where = ["--dataset", "image-folder", "--data.root", str(image_root)]
    assert run(["data", "verify", *where]) == 0
    assert f"note: 1 images are of one colour, for instance {path}" in capsys.readouterr().out


def test_every_cut_is_told(capsys):
    assert run(["data", "stats"]) == 0
    assert "1,797 images found, kept 342 to train on, 100 to choose on, 400 to test on; 955" in (
        capsys.readouterr().out
    )
