"""Data sets. To add one: a module with a loader, and a line in ``_LOADERS`` and in `options`."""

from __future__ import annotations

from collections.abc import Callable

from training.config import DataConfig, TrainConfig
from training.data.base import FileSplit, LongTailedDataset, Split
from training.data.cifar import load_cifar10_lt, load_cifar100_lt
from training.data.digits import load_digits_lt
from training.data.fashion_mnist import load_fashion_mnist_lt
from training.data.options import resolve_options
from training.errors import ConfigError

__all__ = ["FileSplit", "LongTailedDataset", "Split", "build_dataset"]

# Cao et al. draw their splits with this seed.
_PUBLISHED_SEED = 0


def build_dataset(config: TrainConfig, split_seed: int) -> LongTailedDataset:
    """Load and split the configured data set, on the CPU.

    Args:
        config: Which data, and its options.
        split_seed: The resolved seed of the splits. For all but digits-lt it counts only if
            ``config.seeds.split`` is set: otherwise the split is the published one, with seed 0, so
            that runs of different ``seed`` share it. The data set knows which one was used.

    Raises:
        ConfigError: If an option does not go with the data set, a file is not right, or the splits
            do not fit the data.
    """
    data = resolve_options(config)
    if config.dataset == "digits-lt":
        return _digits(data, config.imbalance_factor, split_seed)
    seed = _PUBLISHED_SEED if config.seeds.split is None else split_seed
    if seed >= 2**32:
        raise ConfigError(f"seeds.split: expected a value below 2^32, got {seed}.")
    return _LOADERS[config.dataset](data, config.imbalance_factor, seed)


def _digits(data: DataConfig, imbalance_factor: float, seed: int) -> LongTailedDataset:
    return load_digits_lt(
        test_per_class=data.test_per_class,
        validation_per_class=data.validation_per_class,
        imbalance_factor=imbalance_factor,
        seed=seed,
        imbalance_type=data.imbalance_type,
        class_order_seed=data.class_order_seed,
    )


def _image_folder(data: DataConfig, imbalance_factor: float, seed: int) -> LongTailedDataset:
    from training.data.image_folder import load_image_folder  # pillow: only where there are files

    return load_image_folder(data, imbalance_factor, seed)


def _list_files(data: DataConfig, imbalance_factor: float, seed: int) -> LongTailedDataset:
    from training.data.list_files import load_list_files

    return load_list_files(data, imbalance_factor, seed)


_LOADERS: dict[str, Callable[[DataConfig, float, int], LongTailedDataset]] = {
    "fashion-mnist-lt": load_fashion_mnist_lt,
    "cifar10-lt": load_cifar10_lt,
    "cifar100-lt": load_cifar100_lt,
    "image-folder": _image_folder,
    "list-files": _list_files,
}
