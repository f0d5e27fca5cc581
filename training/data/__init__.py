"""Data sets. To add one: a module with a loader, and a line in ``_LOADERS``."""

from __future__ import annotations

from collections.abc import Callable

from training.config import TrainConfig
from training.data.base import LongTailedDataset, Split
from training.data.digits import load_digits_lt

__all__ = ["LongTailedDataset", "Split", "build_dataset"]

_LOADERS: dict[str, Callable[..., LongTailedDataset]] = {"digits-lt": load_digits_lt}


def build_dataset(config: TrainConfig, split_seed: int) -> LongTailedDataset:
    """Load and split the configured data set, on the CPU.

    Raises:
        ConfigError: If the splits do not fit the data.
    """
    return _LOADERS[config.dataset](
        test_per_class=config.data.test_per_class,
        validation_per_class=config.data.validation_per_class,
        imbalance_factor=config.imbalance_factor,
        seed=split_seed,
    )
