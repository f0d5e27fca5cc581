"""image-folder: a folder of images per class.

``root/train/<class>/*`` with ``root/test/<class>/*`` or ``root/val/<class>/*`` to test on; with
both, val is the validation split. Without a train folder the classes lie in root itself, and
without a test and a val folder a balanced test split is held out.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from training.config import DataConfig
from training.data.base import FileSplit, LongTailedDataset
from training.data.decode import EXTENSIONS
from training.data.files import file_dataset
from training.data.longtail import Cut, SplitIndices, long_tailed_split, published_split
from training.errors import ConfigError

_VALIDATION_PER_CLASS = 10
_TEST_PER_CLASS = 50


def load_image_folder(
    data: DataConfig, imbalance_factor: float, seed: int, check: bool = True
) -> LongTailedDataset:
    """Load a folder of images; see the module.

    Args:
        data: Resolved options.
        imbalance_factor: See `Cut`.
        seed: Seed of the splits; with 0 and a test folder, the cut is drawn as Cao et al. do.
        check: See `file_dataset`.

    Raises:
        ConfigError: If classes or images are missing, or a file is no image.
    """
    root = Path(data.root)
    train_root = root / "train" if (root / "train").is_dir() else root
    class_names = _class_folders(train_root)
    source = scan(train_root, class_names)
    folders = [root / name for name in ("test", "val") if (root / name).is_dir()]
    others = [scan(folder, class_names) for folder in folders if train_root != root]
    own_validation = others[1] if len(others) == 2 else None
    data = _validation_options(data, own_validation is not None)
    if others:
        _refuse(data.test_per_class, "test_per_class", f"the test images of {root}")
        indices = _cut(source, data, imbalance_factor, seed)
        test = others[0]
    else:
        indices = _cut_and_hold_out(source, data, imbalance_factor, seed)
        test = source.take(torch.from_numpy(indices.test))
    train = source.take(torch.from_numpy(indices.train))
    validation = own_validation or source.take(torch.from_numpy(indices.validation))
    return file_dataset(
        "image-folder", class_names, train, validation, test, data, seed, check=check
    )


def scan(folder: Path, class_names: tuple[str, ...]) -> FileSplit:
    """List the images of a folder per class, sorted by class and file name.

    Args:
        folder: Holds a folder per class.
        class_names: The classes, in the order of their labels.

    Raises:
        ConfigError: If there are other class folders, or a class without an image.
    """
    found = _class_folders(folder)
    if found != class_names:
        missing = sorted(set(class_names) - set(found)) or sorted(set(found) - set(class_names))
        raise ConfigError(
            f"{folder}: expected the same class folders as for training, but {missing[0]!r} is in "
            f"one of them only ({len(found)} folders here, {len(class_names)} there)."
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        files = sorted(
            entry.path
            for entry in os.scandir(folder / name)
            if entry.is_file() and entry.name.lower().endswith(EXTENSIONS)
        )
        if not files:
            raise ConfigError(
                f"{folder / name}: expected images ({', '.join(EXTENSIONS)}), found none; add some "
                "or remove the folder."
            )
        paths.extend(files)
        labels.extend([label] * len(files))
    return FileSplit(tuple(paths), torch.tensor(labels), torch.arange(len(paths)))


def _class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, sorted; hidden ones are left out."""
    entries = (entry for entry in os.scandir(folder) if entry.is_dir())
    names = tuple(sorted(entry.name for entry in entries if not entry.name.startswith(".")))
    if len(names) < 2:
        raise ConfigError(
            f"{folder}: expected a folder of images for each of two or more classes, got "
            f"{len(names)} folder(s); check --data.root."
        )
    return names


def _validation_options(data: DataConfig, own_validation: bool) -> DataConfig:
    """Fill validation_per_class, which depends on the folders."""
    if not own_validation:
        given = data.validation_per_class
        return replace(data, validation_per_class=_VALIDATION_PER_CLASS if given is None else given)
    _refuse(data.validation_per_class, "validation_per_class", "a test and a val folder")
    return replace(data, validation_per_class=0)


def _refuse(value: int | None, name: str, reason: str) -> None:
    if value is not None:
        raise ConfigError(
            f"data.{name}: expected null beside {reason}, got {value}; leave the option out."
        )


def _cut(source: FileSplit, data: DataConfig, imbalance_factor: float, seed: int) -> SplitIndices:
    return published_split(
        source.labels.numpy(),
        cut=Cut(imbalance_factor, data.imbalance_type, data.class_order_seed),
        seed=seed,
        validation_per_class=data.validation_per_class,
        validation_from=data.validation_from,
    )


def _cut_and_hold_out(
    source: FileSplit, data: DataConfig, imbalance_factor: float, seed: int
) -> SplitIndices:
    return long_tailed_split(
        source.labels.numpy(),
        test_per_class=_TEST_PER_CLASS if data.test_per_class is None else data.test_per_class,
        validation_per_class=data.validation_per_class,
        imbalance_factor=imbalance_factor,
        seed=seed,
        imbalance_type=data.imbalance_type,
        class_order_seed=data.class_order_seed,
    )
