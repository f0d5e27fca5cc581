"""list-files: text files of "path label" lines, as ImageNet-LT, Places-LT and iNaturalist have.

``train/n01440764/n01440764_190.JPEG 0``; paths are relative to the root. The lists of ImageNet-LT
name the test images in two styles, with and without a folder per class, and so do the copies of
ImageNet on disk: each is found from either.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from training.data.base import FileSplit, LongTailedDataset
from training.data.checksums import Verifier, git_blob_id
from training.data.files import absolute, file_dataset, shown
from training.data.longtail import published_split
from training.data.options import ResolvedData
from training.errors import ConfigError


@dataclass(frozen=True)
class PublishedList:
    """A list that the papers share: its git blob ids (of each path style) and its lines."""

    blobs: tuple[str, ...]
    lines: int


# The same files in over twenty public repositories, among them facebookresearch's
# classifier-balancing and zhmiao's OLTR; ImageNet-LT's second test list is in the flat style.
PUBLISHED = {
    "ImageNet_LT_train.txt": PublishedList(("a063f095fcd475db4cf8b0658c4b73955535bbf9",), 115_846),
    "ImageNet_LT_val.txt": PublishedList(("3ed3188b2f44829ce2dec1cc27040d8d40984088",), 20_000),
    "ImageNet_LT_test.txt": PublishedList(
        ("76a2fb9749d6cd29e765cc4f8c270f2504131e2f", "0b447ac5396339be4de1a91cb5b2b8cc7c73fb4b"),
        50_000,
    ),
    "iNaturalist18_train.txt": PublishedList(
        ("4accdb7584d2f0a5106c40a33ed6afa392189bcc",), 437_513
    ),
    "iNaturalist18_val.txt": PublishedList(("4c23900857fd0f5adcd4cc0dffef345039eeb05f",), 24_426),
    "Places_LT_train.txt": PublishedList(("6392252f8ae867bc8a5e841cc1b29e5b8ef4b636",), 62_500),
}


@dataclass(frozen=True)
class Listing:
    """A list as read: relative paths, and labels int64 [N]."""

    paths: tuple[str, ...]
    labels: torch.Tensor


def load_list_files(data: ResolvedData, seed: int, check: bool = True) -> LongTailedDataset:
    """Load the images that two or three lists name.

    Args:
        data: Its options.
        seed: Seed of the split.
        check: See `file_dataset`.

    Raises:
        ConfigError: Naming a list, its line, or an image, that is not right.
    """
    for option in ("list_train", "list_test"):
        if getattr(data, option) is None:
            raise ConfigError(
                f"data.{option}: expected a text file of 'path label' lines, got none; pass "
                f"--data.{option} FILE."
            )
    verifier = Verifier(data.verify_md5)
    lists = {
        option: read_list(Path(path), verifier)
        for option in ("list_train", "list_val", "list_test")
        if (path := getattr(data, option)) is not None
    }
    num_classes = int(lists["list_train"].labels.max()) + 1
    for option, listing in lists.items():
        _check_labels(option, getattr(data, option), listing, num_classes)
    _check_disjoint(data, lists)
    folders = class_folders(lists["list_train"])
    root = Path(data.root)
    splits = {option: _files(root, listing, folders) for option, listing in lists.items()}
    indices = published_split(
        splits["list_train"].labels.numpy(),
        cut=data.cut,
        seed=seed,
        validation_per_class=data.validation_per_class,
        validation_from=data.validation_from,
    )
    train, held_out = (
        splits["list_train"].take(torch.from_numpy(part))
        for part in (indices.train, indices.validation)
    )
    dataset = file_dataset(
        "list-files",
        tuple(shown(folders.get(k, str(k))) for k in range(num_classes)),
        train,
        splits.get("list_val", held_out),
        splits["list_test"],
        data,
        seed,
        tuple(verifier.notes),
        check,
    )
    return replace(dataset, cut=indices.cut)


def read_list(path: Path, verifier: Verifier) -> Listing:
    """Read a list, and compare it with the published one of its name.

    Raises:
        ConfigError: Naming the line that is not "path label", or the list that is another one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a readable list, got: {error.strerror}; check the --data.list_ "
            "options."
        ) from error
    paths, labels = [], []
    # Nothing but the end of a line ends a line: a file name may hold any other character and byte.
    for number, line in enumerate(os.fsdecode(content).split("\n"), start=1):
        if not line.strip():
            continue
        name, _, label = line.rstrip().rpartition(" ")
        if not name or not label.isdecimal():
            raise ConfigError(
                f"{path}, line {number}: expected 'path label' with a label >= 0, "
                f"got {line!r:.100}."
            )
        paths.append(name)
        labels.append(int(label))
    if not paths:
        raise ConfigError(f"{path}: expected 'path label' lines, got an empty file.")
    published = PUBLISHED.get(path.name)
    if published is not None:
        verifier.compare(
            path,
            git_blob_id(content),
            published.blobs,
            full_size=len(paths) == published.lines,
            what="git blob id",
        )
    elif verifier.mode is True:
        raise ConfigError(
            f"{path}: expected, with --data.verify_md5 true, a list with a known blob id "
            f"({', '.join(PUBLISHED)}), got another name."
        )
    return Listing(tuple(paths), torch.tensor(labels))


def _check_labels(option: str, path: str, listing: Listing, num_classes: int) -> None:
    present = np.unique(listing.labels.numpy())
    if option == "list_train" and len(present) != num_classes:
        missing = sorted(set(range(num_classes)) - set(present.tolist()))
        raise ConfigError(
            f"{path}: expected each label 0 to {num_classes - 1} at least once, got none of "
            f"{missing[0]}."
        )
    if present[-1] >= num_classes:
        raise ConfigError(
            f"{path}: expected labels 0 to {num_classes - 1} as in the training list, got "
            f"{present[-1]}."
        )
    repeated = len(listing.paths) - len(set(listing.paths))
    if repeated:
        raise ConfigError(f"{path}: expected each image once, got {repeated} repeated line(s).")


def _check_disjoint(data: ResolvedData, lists: dict[str, Listing]) -> None:
    """No training image may be evaluated on (validation and test may be one list, as for iNat)."""
    trained = set(lists["list_train"].paths)
    for option in sorted(set(lists) - {"list_train"}):
        both = trained.intersection(lists[option].paths)
        if both:
            raise ConfigError(
                f"{getattr(data, option)}: expected no image of {data.list_train}, got "
                f"{len(both)}, for instance {min(both)}."
            )


def class_folders(listing: Listing) -> dict[int, str]:
    """Return the last folder of each label's images, where it is the same for all of them.

    Example:
        >>> class_folders(Listing(("train/n01/a.jpg", "train/n02/b.jpg"), torch.tensor([0, 1])))
        {0: 'n01', 1: 'n02'}
    """
    found: dict[int, set[str]] = {}
    for path, label in zip(listing.paths, listing.labels.tolist(), strict=True):
        found.setdefault(label, set()).add(PurePosixPath(path).parent.name)
    unique = {label: names.pop() for label, names in found.items() if len(names) == 1}
    # A folder shared by several labels, as in a flat list, names no class.
    shared = len(set(unique.values())) < len(unique)
    return {} if shared else dict(sorted(unique.items()))


def _files(root: Path, listing: Listing, folders: dict[int, str]) -> FileSplit:
    """Join the paths of a list with the root, in the style that the disk has."""
    paths = listing.paths
    if not os.path.exists(absolute(root, paths[0])):
        for style in (_flat, _in_folders):
            candidate = style(paths[0], int(listing.labels[0]), folders)
            if candidate is not None and os.path.exists(absolute(root, candidate)):
                labels = listing.labels.tolist()
                paths = tuple(
                    style(path, label, folders) or path
                    for path, label in zip(paths, labels, strict=True)
                )
                break
    full = tuple(absolute(root, path) for path in paths)
    return FileSplit(full, listing.labels, torch.arange(len(full)))


def _flat(path: str, label: int, folders: dict[int, str]) -> str | None:
    """val/n01440764/ILSVRC2012_val_00000293.JPEG -> val/ILSVRC2012_val_00000293.JPEG."""
    parts = PurePosixPath(path)
    if parts.parent.name != folders.get(label):
        return None
    return str(parts.parent.parent / parts.name)


def _in_folders(path: str, label: int, folders: dict[int, str]) -> str | None:
    """val/ILSVRC2012_val_00000293.JPEG -> val/n01440764/ILSVRC2012_val_00000293.JPEG."""
    folder = folders.get(label)
    if folder is None:
        return None
    parts = PurePosixPath(path)
    return str(parts.parent / folder / parts.name)
