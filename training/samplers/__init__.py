"""Batch samplers. To add one: a module with a class, and a line in `build_sampler`."""

from __future__ import annotations

from torch import Tensor

from training.config import TrainConfig
from training.samplers.base import MIN_ROWS, Batch, BatchKind, BatchSampler, batch_bounds
from training.samplers.instance import InstanceSampler

__all__ = [
    "MIN_ROWS",
    "Batch",
    "BatchKind",
    "BatchSampler",
    "InstanceSampler",
    "batch_bounds",
    "build_sampler",
]


def build_sampler(config: TrainConfig, labels: Tensor, seed: int) -> BatchSampler:
    """Return the configured sampler of the training images with these labels [N].

    Raises:
        ConfigError: If the batches do not fit the data.
    """
    return InstanceSampler(len(labels), config.data.batch_size, seed, config.data.drop_last)
