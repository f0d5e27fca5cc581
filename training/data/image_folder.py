"""image-folder: a folder of images per class.

``root/train/<class>/*`` with ``root/test/<class>/*`` or ``root/val/<class>/*`` to test on; with
both, val is the validation split. Without a train folder the classes lie in root itself, and
without a test and a val folder a balanced test split is held out. What is hidden (.name) is left
out, and of train, test and val the capitals do not matter. A train folder that has no folders, and
neither test nor val beside it, is a class. A link that leads nowhere is an error.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import torch

from training.config.checks import check_unused
from training.data.base import FileSplit, LongTailedDataset
from training.data.decode import EXTENSIONS
from training.data.files import file_dataset, reason, shown
from training.data.longtail import long_tailed_split, published_split
from training.data.options import ResolvedData
from training.errors import ConfigError


def load_image_folder(data: ResolvedData, seed: int, check: bool = True) -> LongTailedDataset:
    """Load a folder of images; see the module.

    Args:
        data: Its options.
        seed: Seed of the splits; with 0 and a test folder, the cut is drawn as Cao et al. do.
        check: See `file_dataset`.

    Raises:
        ConfigError: If classes or images are missing, or a file is no image.
    """
    root = Path(data.root)
    parts = {name.lower(): root / name for name in _folders(root)}
    if "train" in parts and not ({"test", "val"} & parts.keys() or _folders(parts["train"])):
        del parts["train"]
    train_root = parts.get("train", root)
    class_names = _class_folders(train_root)
    source = scan(train_root, class_names)
    _check_all_classes(train_root, class_names, source)
    folders = [parts[name] for name in ("test", "val") if name in parts and "train" in parts]
    others = [scan(folder, class_names) for folder in folders]
    own_validation = others[1] if len(others) == 2 else None
    if own_validation is not None:
        where, given = "beside a test and a val folder", data.given.validation_per_class
        check_unused("data.validation_per_class", given, None, where)
        data = replace(data, validation_per_class=0)
    labels, held_out = source.labels.numpy(), data.validation_per_class
    if others:
        where, given = f"beside the test images of {root}", data.given.test_per_class
        check_unused("data.test_per_class", given, None, where)
        indices = published_split(
            labels,
            cut=data.cut,
            seed=seed,
            validation_per_class=held_out,
            validation_from=data.validation_from,
        )
        test = others[0]
    else:
        indices = long_tailed_split(
            labels,
            cut=data.cut,
            seed=seed,
            validation_per_class=held_out,
            test_per_class=data.test_per_class,
        )
        test = source.take(torch.from_numpy(indices.test))
    train = source.take(torch.from_numpy(indices.train))
    validation = own_validation or source.take(torch.from_numpy(indices.validation))
    names = tuple(shown(name) for name in class_names)
    notes = tuple(
        f"{folder}: no image of {len(missing)} of the classes, for instance {shown(missing[0])!r}"
        for folder, split in zip(folders, others, strict=True)
        if (missing := _without_image(class_names, split))
    )
    dataset = file_dataset("image-folder", names, train, validation, test, data, seed, notes, check)
    return replace(dataset, cut=indices.cut)


def scan(folder: Path, class_names: tuple[str, ...]) -> FileSplit:
    """List the images of a folder per class, sorted by class and file name.

    Args:
        folder: Holds a folder for each of some of the classes.
        class_names: The classes, in the order of their labels.

    Raises:
        ConfigError: If there are other class folders, or there is no image.
    """
    here = _folders(folder)
    for name in here:
        if name not in class_names:
            raise ConfigError(
                f"{folder}: expected the same class folders as for training, but {shown(name)!r} "
                f"is none of those{_hint(name, class_names)}; rename or remove it."
            )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        files = sorted(_images(folder / name)) if name in here else []
        paths.extend(files)
        labels.extend([label] * len(files))
    if not paths:
        raise ConfigError(
            f"{folder}: expected images ({', '.join(EXTENSIONS)}) in a folder per class, found "
            "none; add some or remove the folder."
        )
    return FileSplit(tuple(paths), torch.tensor(labels), torch.arange(len(paths)))


def _images(folder: Path) -> list[str]:
    return [
        entry.path
        for entry in _visible(folder)
        if entry.name.lower().endswith(EXTENSIONS) and (_dangling(entry) or entry.is_file())
    ]


def _hint(name: str, class_names: tuple[str, ...]) -> str:
    """Name the class whose letters are the same, if there is one."""
    for other in class_names:
        if _letters(other) == _letters(name):
            return f" ({shown(other)!r} has other capitals, or its accents in another Unicode form)"
    return ""


def _letters(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _without_image(class_names: tuple[str, ...], split: FileSplit) -> list[str]:
    present = set(split.labels.tolist())
    return [name for label, name in enumerate(class_names) if label not in present]


def _check_all_classes(folder: Path, class_names: tuple[str, ...], split: FileSplit) -> None:
    missing = _without_image(class_names, split)
    if missing:
        raise ConfigError(
            f"{folder / missing[0]}: expected images ({', '.join(EXTENSIONS)}), found none; add "
            "some or remove the folder."
        )


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are left out."""
    return sorted(entry.name for entry in _visible(folder) if _dangling(entry) or entry.is_dir())


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ConfigError(
            f"{folder}: expected a folder that can be read, got: {reason(str(folder), error)}; "
            "mend or remove it."
        ) from error


def _dangling(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link that leads nowhere: taken for what is looked for, it is named then."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = tuple(_folders(folder))
    if len(names) < 2:
        raise ConfigError(
            f"{folder}: expected a folder of images for each of two or more classes, got "
            f"{len(names)} folder(s); check --data.root."
        )
    return names
