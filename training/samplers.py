"""Batch samplers: which training images make up which batch.

A sampler is a pure function of (seed, epoch), so the plan of an epoch can be made again anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from training.errors import ConfigError
from training.reproducibility import generator

MIN_ROWS = 2
"""A whitening or batch-normalisation layer needs two rows to train on."""


class BatchSampler(Protocol):
    """What the loop needs of a sampler."""

    def __len__(self) -> int:
        """Return the number of batches of every epoch: exactly what `batches` yields."""
        ...

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Yield the positions int64 [B] of each batch of an epoch."""
        ...


class InstanceSampler:
    """Every image once per epoch, in random order ("instance-balanced").

    Args:
        num_samples: Number N of training images; >= 2.
        batch_size: Images per batch; >= 2.
        seed: Seed of the order; the epoch is mixed in.
        drop_last: Leave out the last batch if it is smaller than batch_size. Otherwise it is used,
            but a last batch of one image joins the batch before.

    Raises:
        ConfigError: If no batch would be left.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, drop_last: bool) -> None:
        """Check that the data fills a batch."""
        if num_samples < MIN_ROWS or (drop_last and num_samples < batch_size):
            raise ConfigError(
                f"data.batch_size: expected at most the {num_samples} training images with "
                f"drop_last, and at least {MIN_ROWS} training images, got {batch_size}; choose a "
                "smaller batch, or --data.drop_last false."
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self._bounds = batch_bounds(num_samples, batch_size, drop_last)

    def __len__(self) -> int:
        """Return the number of batches of every epoch."""
        return len(self._bounds)

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Yield the positions int64 [B] of each batch of an epoch."""
        order = torch.randperm(self.num_samples, generator=generator("cpu", self.seed, epoch))
        for start, stop in self._bounds:
            yield order[start:stop]


def batch_bounds(num_samples: int, batch_size: int, drop_last: bool) -> list[tuple[int, int]]:
    """Return (start, stop) of every batch; none has fewer than two rows if there are two.

    Example:
        >>> batch_bounds(9, 4, drop_last=True), batch_bounds(9, 4, drop_last=False)
        ([(0, 4), (4, 8)], [(0, 4), (4, 9)])
    """
    starts = list(range(0, num_samples, batch_size))
    remainder = num_samples % batch_size
    if remainder and len(starts) > 1 and (drop_last or remainder < MIN_ROWS):
        starts.pop()
    stops = [start + batch_size for start in starts[:-1]]
    stops.append(num_samples if not drop_last else min(num_samples, starts[-1] + batch_size))
    return list(zip(starts, stops, strict=True))
