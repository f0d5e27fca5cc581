"""Instance-balanced sampling: every image once per epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from training.config.checks import check
from training.errors import ConfigError
from training.reproducibility import generator
from training.samplers.base import MIN_ROWS, Batch, BatchKind, batch_bounds


class InstanceSampler:
    """Every image once per epoch, in random order ("instance-balanced").

    Args:
        num_samples: Number N of training images; >= 2.
        batch_size: Images per batch; >= 2.
        seed: Seed of the order, >= 0; the epoch is mixed in.
        drop_last: Leave out the last batch if it is smaller than batch_size. Otherwise it is used,
            but a last batch of one image joins the batch before.
        class_counts: Images per class, [K]; for `class_frequencies` alone.

    Raises:
        ConfigError: If no batch would be left.

    Example:
        >>> sampler = InstanceSampler(num_samples=9, batch_size=4)
        >>> [len(batch.positions) for batch in sampler.batches(epoch=1)]
        [4, 4]
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = True,
        class_counts: Tensor | None = None,
    ) -> None:
        """Check that the data fills a batch."""
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.class_counts = class_counts
        self._bounds = checked_bounds(num_samples, batch_size, drop_last)

    def __len__(self) -> int:
        """Return the number of batches of every epoch."""
        return len(self._bounds)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``start`` on."""
        order = torch.randperm(self.num_samples, generator=generator("cpu", self.seed, epoch))
        for index, (first, stop) in enumerate(self._bounds):
            if index >= start:
                yield Batch(order[first:stop], index)

    def smallest_batch(self) -> int:
        """Return the number of images in the smallest batch."""
        return min(stop - first for first, stop in self._bounds)

    def kinds(self) -> tuple[BatchKind, ...]:
        """Return the kind of all batches."""
        return ("ordinary",)

    def class_frequencies(self, kind: BatchKind | None = None) -> Tensor:
        """Return the share of every class in the training data, float64 [K].

        Raises:
            ValueError: Without class counts, or for batches of another kind than "ordinary".
        """
        if self.class_counts is None or kind == "balanced":
            raise ValueError(
                "InstanceSampler.class_frequencies: expected class_counts and a kind of batch that "
                f"this sampler has, ordinary, got {self.class_counts} and {kind}; construct it "
                "with class_counts."
            )
        return self.class_counts.double() / self.class_counts.sum()

    def parameters(self) -> dict[str, Any]:
        """Return what the plan depends on, but the epoch."""
        return {
            "sampler": "instance",
            "seed": self.seed,
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
        }


def checked_bounds(num_samples: int, batch_size: int, drop_last: bool) -> list[tuple[int, int]]:
    """Return `batch_bounds`, after a check that there is a batch, and that it can be whitened.

    Raises:
        ConfigError: If no batch would be left.
    """
    check("batch_size", batch_size, batch_size >= MIN_ROWS, f">= {MIN_ROWS}")
    if num_samples < MIN_ROWS or (drop_last and num_samples < batch_size):
        raise ConfigError(
            f"data.batch_size: expected at most the {num_samples} images left to train on with "
            f"drop_last, and at least {MIN_ROWS} training images, got {batch_size}; choose a "
            "smaller batch, or --data.drop_last false."
        )
    return batch_bounds(num_samples, batch_size, drop_last)
