"""list-files: both path styles of ImageNet-LT, iNaturalist's, blob ids, and wrong lists."""

from __future__ import annotations

import hashlib

import pytest
import torch

from training.data import build_dataset, list_files
from training.data.checksums import Verifier, git_blob_id
from training.data.list_files import PublishedList, read_list
from training.errors import ConfigError

_CLASSES = ("n01440764", "n01443537", "n01484850")


@pytest.fixture
def imagenet(tmp_path, write_images):
    """Root with train/<class>/ and val/<class>/, and the lists in a folder of their own."""
    root, lists = tmp_path / "imagenet", tmp_path / "lists"
    lists.mkdir()
    lines = {"train": [], "val": [], "test": []}
    for label, (name, count) in enumerate(zip(_CLASSES, (6, 3, 2), strict=True)):
        for file in write_images(root / "train" / name, count + 1):
            part = "val" if file == f"{count:04}.jpg" else "train"
            lines[part].append(f"train/{name}/{file} {label}")
        for file in write_images(root / "val" / name, 2):
            source = root / "val" / name / file
            source.rename(source.with_name(f"ILSVRC2012_val_{label}{file}"))
            lines["test"].append(f"val/{name}/ILSVRC2012_val_{label}{file} {label}")
    for part, content in lines.items():
        (lists / f"ImageNet_LT_{part}.txt").write_text("\n".join(content) + "\n")
    return root, lists


def configure(data_config, imagenet, val=True, **data):
    root, lists = imagenet
    paths = {f"list_{part}": str(lists / f"ImageNet_LT_{part}.txt") for part in ("train", "test")}
    if val:
        paths["list_val"] = str(lists / "ImageNet_LT_val.txt")
    return data_config("list-files", root, None, **{**paths, **data})


def load(config):
    with pytest.warns(UserWarning, match="git blob id"):
        return build_dataset(config, 0)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("inaturalist", (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
    ],
)
def test_pixels_are_normalised_by_the_chosen_statistics(imagenet, data_config, name, mean, std):
    data = load(configure(data_config, imagenet, pixel_statistics=name))
    white = data.normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))[0, :, 0, 0]
    expected = (1 - torch.tensor(mean)) / torch.tensor(std)
    assert torch.allclose(white, expected, rtol=1e-5)


def test_the_lists_are_the_splits(imagenet, data_config):
    data = load(configure(data_config, imagenet))
    assert data.class_counts.tolist() == [6, 3, 2]
    assert data.class_names == _CLASSES
    assert torch.bincount(data.validation.labels).tolist() == [1, 1, 1]
    assert torch.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert [path.split("/")[-2] for path in data.test.paths] == [
        name for name in _CLASSES for _ in range(2)
    ]


def test_a_flat_list_finds_folders(imagenet, data_config):
    expected = load(configure(data_config, imagenet)).test.paths
    path = imagenet[1] / "ImageNet_LT_test.txt"
    flat = [line.replace("/" + line.split("/")[1], "") for line in path.read_text().splitlines()]
    assert flat[0] == "val/ILSVRC2012_val_00000.jpg 0"
    path.write_text("\n".join(flat))
    assert load(configure(data_config, imagenet)).test.paths == expected


def test_a_list_with_folders_finds_flat_files(imagenet, data_config):
    root = imagenet[0]
    for path in (root / "val").glob("*/*.jpg"):
        path.rename(root / "val" / path.name)
    data = load(configure(data_config, imagenet))
    assert all(path.split("/")[-2] == "val" for path in data.test.paths)


def test_inaturalist_paths_and_one_list_for_validation_and_test(
    tmp_path, write_images, data_config
):
    root = tmp_path / "inat"
    for label in range(2):
        write_images(root / "train_val2018" / "Plantae" / f"72{label}", 3)
    for part, numbers in (("train", (0, 1)), ("val", (2,))):
        lines = [
            f"train_val2018/Plantae/72{label}/{number:04}.jpg {label}"
            for label in range(2)
            for number in numbers
        ]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines))
    lists = {name: str(tmp_path / "val.txt") for name in ("list_val", "list_test")}
    config = data_config("list-files", root, None, list_train=str(tmp_path / "train.txt"), **lists)
    data = build_dataset(config, 0)
    assert data.class_names == ("720", "721")
    assert data.validation.paths == data.test.paths
    assert len(data.train) == 4


def test_validation_out_of_the_training_list(imagenet, data_config):
    data = load(configure(data_config, imagenet, val=False))
    assert not data.has_validation
    data = load(configure(data_config, imagenet, val=False, validation_per_class=1))
    assert torch.bincount(data.validation.labels).tolist() == [1, 1, 1]
    assert data.class_counts.tolist() == [5, 2, 1]
    with pytest.raises(ConfigError, match=r"beside data.list_val"):
        build_dataset(configure(data_config, imagenet, validation_per_class=1), 0)


def test_blob_id_is_gits(tmp_path):
    content = b"train/a.jpg 0\ntrain/b.jpg 1\n"
    assert git_blob_id(content) == hashlib.sha1(b"blob 28\0" + content).hexdigest()
    # `git hash-object` of an empty file, as everybody's git says it.
    assert git_blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_blob_ids_of_the_published_lists(tmp_path, monkeypatch):
    path = tmp_path / "ImageNet_LT_train.txt"
    path.write_text("a.jpg 0\nb.jpg 1\n")
    blob = git_blob_id(path.read_bytes())
    verifier = Verifier("auto")
    read_list(path, verifier)
    assert "another number of images" in verifier.notes[0]
    with pytest.raises(ConfigError, match="git blob id a063f095"):
        read_list(path, Verifier(True))
    # As many lines as the published list, and another content.
    monkeypatch.setitem(list_files.PUBLISHED, path.name, PublishedList(("0" * 40,), 2))
    with pytest.raises(ConfigError, match="expected the published file"):
        read_list(path, Verifier("auto"))
    read_list(path, Verifier(False))
    monkeypatch.setitem(list_files.PUBLISHED, path.name, PublishedList(("0" * 40, blob), 2))
    verifier = Verifier(True)
    read_list(path, verifier)
    assert not verifier.notes
    other = path.rename(tmp_path / "mine.txt")
    with pytest.raises(ConfigError, match=r"a list with a known blob id"):
        read_list(other, Verifier(True))


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("train", "", "got an empty file"),
        ("train", "train/a.jpg\n", r"line 1: expected 'path label'"),
        ("train", "train/a.jpg 0\ntrain/b.jpg x\n", r"line 2: expected 'path label'.*b\.jpg x"),
        ("train", "train/a.jpg -1\n", "line 1"),
        ("train", "train/a.jpg 0\ntrain/b.jpg 2\n", r"each label 0 to 2 .*none of 1"),
        ("train", "train/a.jpg 0\ntrain/a.jpg 0\ntrain/b.jpg 1\n", "each image once, got 1"),
        ("test", "val/a.jpg 3\n", "expected labels 0 to 2 as in the training list, got 3"),
        ("test", "train/n01440764/0000.jpg 0\n", r"no image of .*train.txt, got 1"),
    ],
)
def test_a_wrong_list_is_named(imagenet, data_config, part, content, message):
    path = imagenet[1] / f"ImageNet_LT_{part}.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        build_dataset(configure(data_config, imagenet), 0)
    assert str(error.value).startswith(str(path))


def test_missing_lists_and_images(imagenet, data_config):
    root, lists = imagenet
    path = root / "train" / _CLASSES[1] / "0001.jpg"
    path.unlink()
    with pytest.raises(ConfigError, match="No such file") as error:
        build_dataset(configure(data_config, imagenet), 0)
    assert str(error.value).startswith(str(path))
    with pytest.raises(ConfigError, match=r"data.list_test: expected a text file"):
        build_dataset(configure(data_config, imagenet, list_test=None), 0)
    (lists / "ImageNet_LT_val.txt").unlink()
    with pytest.raises(ConfigError, match=r"ImageNet_LT_val.txt: expected a readable list"):
        build_dataset(configure(data_config, imagenet), 0)
