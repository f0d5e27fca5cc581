"""Instance-balanced sampling: every image once per epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from training.errors import ConfigError
from training.reproducibility import generator
from training.samplers.base import MIN_ROWS, Batch, batch_bounds


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

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``start`` on."""
        order = torch.randperm(self.num_samples, generator=generator("cpu", self.seed, epoch))
        for index, (first, stop) in enumerate(self._bounds):
            if index >= start:
                yield Batch(order[first:stop], index)
