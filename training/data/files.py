"""From lists of image files to a data set: decoded by workers, or once and kept in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.data.base import FileSplit, LongTailedDataset, Split, channel_statistics
from training.data.decode import open_image, to_tensor
from training.data.options import ResolvedData
from training.errors import ConfigError

# Mean and deviation of the training pixels, in [0, 1]: the usual ones of ImageNet, and iNaturalist
# 2018's in the code of Kang et al., ICLR 2020.
PIXEL_STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inaturalist": ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
}
_SAMPLE = 64


def file_dataset(
    name: str,
    class_names: tuple[str, ...],
    train: FileSplit,
    validation: FileSplit,
    test: FileSplit,
    data: ResolvedData,
    seed: int,
    notes: tuple[str, ...] = (),
    check: bool = True,
) -> LongTailedDataset:
    """Check the files quickly, and return the data set.

    Args:
        name: Name on the command line.
        class_names: By label.
        train: Files of the training split; the others likewise.
        validation: May be empty.
        test: Not empty.
        data: Resolved options.
        seed: Seed that the splits were drawn with.
        notes: See `LongTailedDataset`.
        check: Look at the files first (`check_files`).

    Raises:
        ConfigError: Naming a file that is missing, empty or no image.
    """
    splits = (train, validation, test)
    if data.resident:
        size = open_image(train.paths[0]).size
        decoded = [_decode_split(split, size) for split in splits]
        mean, std = channel_statistics(decoded[0].images)
        return LongTailedDataset(
            name, class_names, decoded[0], decoded[1], decoded[2], mean, std, data, seed, notes
        )
    if check:
        check_files([path for split in splits for path in split.paths])
    mean, std = (255 * torch.tensor(part) for part in PIXEL_STATISTICS[data.pixel_statistics])
    return LongTailedDataset(
        name, class_names, train, validation, test, mean, std, data, seed, notes
    )


def check_files(paths: Sequence[str]) -> None:
    """Check that all files are there and not empty, and that 64 of them, evenly spread, decode.

    Raises:
        ConfigError: Naming the first file that fails.
    """
    for path in paths:
        _check_size(path)
    broken, _ = look_at_files(paths[:: max(1, len(paths) // _SAMPLE)])
    if broken:
        raise ConfigError(broken[0])


def look_at_files(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Decode all files.

    Returns:
        A message about each that fails, and the paths of those that are of one colour.
    """

    def look(path: str) -> str | bool:
        try:
            _check_size(path)
            return bool(np.ptp(np.asarray(open_image(path)), axis=(0, 1)).max() == 0)
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:  # pillow decodes without the interpreter's lock
        found = list(pool.map(look, paths))
    plain = [path for path, result in zip(paths, found, strict=True) if result is True]
    return [result for result in found if isinstance(result, str)], plain


def _check_size(path: str) -> None:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise ConfigError(
            f"{path}: expected an image file, got: {reason(path, error)}; check --data.root and "
            "the list, or fetch the file again."
        ) from error
    if size == 0:
        raise ConfigError(
            f"{path}: expected an image file, got an empty one; fetch it again or remove it."
        )


def _decode_split(split: FileSplit, size: tuple[int, int]) -> Split:
    """Decode all images of a split, which must have one size (width, height)."""

    def decode(path: str) -> Tensor:
        image = open_image(path)
        if image.size != size:
            raise ConfigError(
                f"{path}: expected {size[0]} x {size[1]} pixels like the first image with "
                f"--data.resident true, got {image.width} x {image.height}; use --data.resident "
                "false."
            )
        return to_tensor(image)

    images = torch.empty((len(split), 3, size[1], size[0]), dtype=torch.uint8)  # [N, 3, H, W]
    with ThreadPoolExecutor() as pool:
        for position, image in enumerate(pool.map(decode, split.paths)):
            images[position] = image
    return Split(images, split.labels, split.indices)


def reason(path: str, error: OSError) -> str:
    """Why a file or folder cannot be read, for a person; a link is said to be one."""
    link = f"a link to {shown(os.readlink(path))!r}: " if os.path.islink(path) else ""
    return f"{link}{error.strerror}"


def shown(name: str) -> str:
    """A file's name for a person: what is no text in it is replaced, and can be printed."""
    return os.fsencode(name).decode(errors="replace")


def absolute(root: Path, name: str) -> str:
    """Join a folder and a relative path of a list, quickly."""
    return f"{root}{os.sep}{name}"
