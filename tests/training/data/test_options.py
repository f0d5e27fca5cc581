"""Defaults per data set, and options that would have no effect."""

from __future__ import annotations

import pytest

from training.config import TrainConfig, validate
from training.config.data import DataConfig
from training.data import build_dataset
from training.data.options import resolve_options
from training.errors import ConfigError


def resolve(dataset: str, imbalance_factor: float | None = None, **data) -> DataConfig:
    config = TrainConfig(
        dataset=dataset, imbalance_factor=imbalance_factor, data=DataConfig(**data)
    )
    validate(config)
    return resolve_options(config)


def test_defaults(tmp_path):
    digits = resolve("digits-lt")
    assert (digits.test_per_class, digits.validation_per_class, digits.augment) == (40, 10, "shift")
    cifar = resolve("cifar10-lt", root=str(tmp_path))
    assert (cifar.validation_per_class, cifar.augment) == (100, "crop-flip")
    assert (cifar.imbalance_type, cifar.validation_from) == ("exp", "dropped")
    lists = resolve("list-files", root=str(tmp_path))
    assert (lists.imbalance_type, lists.validation_per_class) == ("natural", 0)
    assert resolve("cifar10-lt", root=str(tmp_path), validation_per_class=0).augment == "crop-flip"


@pytest.mark.parametrize(
    ("dataset", "data", "message"),
    [
        ("digits-lt", {"root": "."}, r"data.root: .*--dataset digits-lt, where it has no effect"),
        ("digits-lt", {"workers": 2}, r"use --?image-folder or list-files|image-folder"),
        ("digits-lt", {"validation_from": "held-out"}, "fashion-mnist-lt or cifar10-lt"),
        ("cifar10-lt", {"test_per_class": 9}, "digits-lt or image-folder"),
        ("cifar10-lt", {"randaugment_ops": 3}, "use --data.augment randaugment"),
        ("digits-lt", {"crop_padding": 3}, "use --data.augment crop-flip or --data.augment auto"),
        ("image-folder", {"crop_padding": 3}, "use --data.resident true"),
        ("image-folder", {"resident": True, "workers": 1}, "use --data.resident false"),
        ("image-folder", {"augment": "shift"}, "decoded in workers, got shift"),
        (
            "list-files",
            {"class_order_seed": 1},
            "expected the default null with data.imbalance_type natural",
        ),
        ("image-folder", {"imbalance_type": "natural", "validation_from": "dropped"}, "held-out"),
    ],
)
def test_an_option_without_effect_is_an_error(tmp_path, dataset, data, message):
    if dataset != "digits-lt":
        data = {"root": str(tmp_path), **data}
    with pytest.raises(ConfigError, match=message):
        resolve(dataset, **data)


def test_a_factor_without_a_cut_is_an_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"imbalance_factor: expected the default null with .*got 10.0"
    ):
        resolve("list-files", 10.0, root=str(tmp_path), imbalance_type="natural")


@pytest.mark.parametrize("dataset", ["image-folder", "list-files"])
def test_files_of_ones_own_are_cut_only_where_that_is_asked_for(tmp_path, dataset):
    root = str(tmp_path)
    assert resolve(dataset, root=root).imbalance_type == "natural"
    assert resolve(dataset, 10.0, root=root).imbalance_type == "exp"
    assert resolve(dataset, root=root, imbalance_type="step").imbalance_type == "step"


@pytest.mark.parametrize("dataset", ["cifar10-lt", "cifar100-lt", "image-folder", "list-files"])
def test_a_missing_root_says_how_to_pass_it(dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"got none; pass --data.root FOLDER"):
        build_dataset(TrainConfig(dataset=dataset), 0)
    with pytest.raises(ConfigError, match=r"which is none; check --data\.root"):
        resolve(dataset, root=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"resize": 200}, r"data.resize: expected a value >= data.image_size=224"),
        ({"color_jitter": 1.5}, r"in \[0, 1\]"),
        ({"randaugment_magnitude": 31}, r"in \[0, 30\]"),
        ({"workers": -1}, ">= 0"),
        ({"cutout": -1}, ">= 0 pixels"),
        ({"class_order_seed": -1}, ">= 0"),
    ],
)
def test_ranges(data, message):
    with pytest.raises(ConfigError, match=message):
        validate(TrainConfig(data=DataConfig(**data)))
