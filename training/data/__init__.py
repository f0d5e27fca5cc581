"""Data sets, and how they are fed. To add one: a module with a loader, and a line in two tables.

These are ``DATASETS`` of `training.config.datasets` and ``_LOADERS`` here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from dataclasses import replace

from torch import Tensor

from training.config import TrainConfig
from training.config.checks import check
from training.config.datasets import DATASETS
from training.data.augment import Augmentation
from training.data.base import FileSplit, LongTailedDataset, Split
from training.data.cifar import load_cifar10_lt, load_cifar100_lt
from training.data.fashion_mnist import load_fashion_mnist_lt
from training.data.feed import ResidentFeed, TrainFeed
from training.data.glyphs import load_glyphs_lt
from training.data.label_noise import add_label_noise
from training.data.longtail import (
    Cut,
    SplitIndices,
    exponential_counts,
    long_tailed_split,
    published_split,
    step_counts,
)
from training.data.options import ResolvedData, resolve_options
from training.errors import ConfigError

__all__ = [
    "Cut",
    "FileSplit",
    "LongTailedDataset",
    "Split",
    "SplitIndices",
    "build_dataset",
    "build_feed",
    "effective_split_seed",
    "evaluation_batches",
    "exponential_counts",
    "long_tailed_split",
    "published_split",
    "step_counts",
]

# Cao et al. draw their splits with this seed.
_PUBLISHED_SEED = 0


def build_dataset(
    config: TrainConfig, split_seed: int, check_files: bool = True
) -> LongTailedDataset:
    """Load and split the configured data set, on the CPU.

    A file that is used though it is not the published one gives a warning.

    Args:
        config: Which data, and its options.
        split_seed: The resolved seed of the splits. For all but digits-lt it counts only if
            ``config.seeds.split`` is set: otherwise the split is the published one, with seed 0, so
            that runs of different ``seed`` share it. The data set knows which one was used.
        check_files: Look at the files of folders and lists before anything is decoded; the others
            are read whole in any case.

    Raises:
        ConfigError: If an option does not go with the data set, a file is not right, or the splits
            do not fit the data.
    """
    name, known = config.dataset, ", ".join(_LOADERS)
    check("dataset", name, name in _LOADERS, f"out of {known} (_LOADERS)")
    data = resolve_options(config)
    seed = effective_split_seed(config, split_seed)
    if DATASETS[name].own_test and seed >= 2**32:
        raise ConfigError(f"seeds.split: expected a value below 2^32, got {seed}.")
    dataset = _LOADERS[name](data, seed, check_files)
    if data.label_noise:
        labels = add_label_noise(dataset.train.labels, data.label_noise, seed)
        dataset = replace(dataset, train=replace(dataset.train, labels=labels))
    for note in dataset.notes:
        warnings.warn(note, stacklevel=2)
    return dataset


def effective_split_seed(config: TrainConfig, split_seed: int) -> int:
    """Return the seed that `build_dataset` draws the splits with."""
    published = DATASETS[config.dataset].own_test and config.seeds.split is None
    return _PUBLISHED_SEED if published else split_seed


def _digits(data: ResolvedData, seed: int, check: bool) -> LongTailedDataset:
    from training.data.digits import load_digits_lt  # scikit-learn: only where digits are wanted

    return load_digits_lt(data, seed)


def _image_folder(data: ResolvedData, seed: int, check: bool) -> LongTailedDataset:
    from training.data.image_folder import load_image_folder  # pillow: only where there are files

    return load_image_folder(data, seed, check)


def _cifar10_jpeg(data: ResolvedData, seed: int, check: bool) -> LongTailedDataset:
    dataset = _image_folder(replace(data, resident=True), seed, check)
    return replace(dataset, name="cifar10-jpeg-lt")


def _list_files(data: ResolvedData, seed: int, check: bool) -> LongTailedDataset:
    from training.data.list_files import load_list_files

    return load_list_files(data, seed, check)


_LOADERS: dict[str, Callable[[ResolvedData, int, bool], LongTailedDataset]] = {
    "digits-lt": _digits,
    "fashion-mnist-lt": lambda data, seed, _: load_fashion_mnist_lt(data, seed),
    "glyphs-lt": lambda data, seed, _: load_glyphs_lt(data, seed),
    "cifar10-jpeg-lt": _cifar10_jpeg,
    "cifar10-lt": lambda data, seed, _: load_cifar10_lt(data, seed),
    "cifar100-lt": lambda data, seed, _: load_cifar100_lt(data, seed),
    "image-folder": _image_folder,
    "list-files": _list_files,
}


def build_feed(
    dataset: LongTailedDataset, seed: int, rank: int = 0, world_size: int = 1
) -> TrainFeed:
    """Return the feed of a data set's training split.

    Args:
        dataset: On the training device; its options say how to augment.
        seed: Seed of the augmentation.
        rank: Which images of each batch are loaded: see `rank_rows`.
        world_size: Number of processes that share the batches.
    """
    fill = dataset.mean.round().to(dataset.device).byte()
    augmentation = Augmentation(dataset.options, fill, crop=dataset.resident)
    if dataset.resident:
        return ResidentFeed(dataset, augmentation, seed, rank, world_size)
    from training.data.file_feed import FileFeed

    return FileFeed(dataset, augmentation, seed, rank, world_size)


def evaluation_batches(
    dataset: LongTailedDataset,
    split: Split | FileSplit,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[tuple[Tensor, Tensor]]:
    """Yield a split's images, normalised and not augmented, and labels, every image once.

    To be closed (`contextlib.closing`) if it may be left before its end: that ends the processes
    which decode files.

    Args:
        dataset: That the split belongs to.
        split: Which images.
        batch_size: Images per batch and rank; the last batch may be smaller.
        rank: Which share: image ``rank``, ``rank + world_size``, ... Nothing is padded.
        world_size: Number of shares.

    Yields:
        Images float32 [B, C, H, W] and labels int64 [B], on the data set's device.

    Raises:
        ConfigError: If a file cannot be decoded, with its name.
    """
    if isinstance(split, FileSplit):
        # Worker processes and pillow are for those who have files.
        from training.data.file_feed import evaluation_files

        yield from evaluation_files(dataset, split, batch_size, rank, world_size)
        return
    share = range(rank, len(split), world_size)
    for start in range(0, len(share), batch_size):
        part = share[start : start + batch_size]
        here = slice(part.start, part.stop, part.step)
        yield dataset.normalise(split.images[here]), split.labels[here]
