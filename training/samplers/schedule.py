"""Batch Embedded Training (BET): which batches of a run are balanced ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.samplers.queues import hash_words


class Schedule:
    """When a balanced batch takes the place of an ordinary one.

    Batches are counted over the run, from the first batch of ``start_epoch`` on, so a period longer
    than an epoch works, and one that does not divide the epoch does not restart with it. Every
    epoch has the same number of batches, whatever the period.

    Args:
        batches: Number of batches per epoch.
        period: T >= 1: one balanced batch after every T - 1 ordinary ones, so 1 is balanced ones
            alone.
        start_epoch: First epoch (from 1) with balanced batches.
        random: Each batch is balanced with probability 1 / T instead, independently.
        seed: Seed of the random choice.

    Example:
        >>> schedule = Schedule(batches=4, period=3)
        >>> [schedule.balanced(epoch).astype(int).tolist() for epoch in (1, 2, 3)]
        [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]]
    """

    def __init__(
        self,
        batches: int,
        period: int,
        start_epoch: int = 1,
        random: bool = False,
        seed: int = 0,
    ) -> None:
        """Remember the parts."""
        self.batches = batches
        self.period = period
        self.start_epoch = start_epoch
        self.random = random
        self.seed = seed

    def balanced(self, epoch: int) -> npt.NDArray[np.bool_]:
        """Return for each batch of an epoch whether it is a balanced one, [batches]."""
        if epoch < self.start_epoch:
            return np.zeros(self.batches, dtype=bool)
        number = (epoch - self.start_epoch) * self.batches + np.arange(self.batches)
        if self.random:
            # One of period equal parts of the hash's range, to within 2^-64 * period.
            return hash_words(self.seed, number) < np.uint64((2**64 - 1) // self.period)
        return number % self.period == self.period - 1

    def balanced_count(self, epoch: int) -> int:
        """Return the number of balanced batches of an epoch."""
        return int(self.balanced(epoch).sum())

    def ordinary_count(self, epoch: int) -> int:
        """Return the number of ordinary batches of an epoch."""
        return self.batches - self.balanced_count(epoch)
