"""Samplers that cut batches from streams: every one but plain instance sampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.samplers.base import Batch, BatchKind
from training.samplers.streams import Stream, hash_words


class ScheduledSampler:
    """Balanced batches, alone or embedded between ordinary ones (see `Schedule`).

    Every batch has batch_size rows and every epoch as many batches as instance sampling.

    Args:
        schedule: Which batches are balanced.
        ordinary: Stream of the others (not used if there are none).
        balanced: Stream of the balanced batches.
        frequencies: Long-run class frequencies of each kind of batch, float64 [K] each.
        batch_size: Rows per batch.
        parameters: What the plan depends on, but epoch and labels.
    """

    def __init__(
        self,
        schedule: Schedule,
        ordinary: Stream,
        balanced: Stream,
        frequencies: dict[BatchKind, Tensor],
        batch_size: int,
        parameters: dict[str, Any],
    ) -> None:
        """Remember the parts."""
        self.schedule = schedule
        self._streams: dict[BatchKind, Stream] = {"ordinary": ordinary, "balanced": balanced}
        self._frequencies = frequencies
        self._batch_size = batch_size
        self._parameters = parameters

    def __len__(self) -> int:
        """Return the number of batches of every epoch."""
        return self.schedule.batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``start`` on."""
        balanced = self.schedule.balanced(epoch)
        rows: dict[BatchKind, Iterator[Tensor]] = {
            kind: iter(torch.from_numpy(stream.positions(epoch)))
            for kind, stream in self._streams.items()
        }
        for index, is_balanced in enumerate(balanced.tolist()):
            kind: BatchKind = "balanced" if is_balanced else "ordinary"
            positions = next(rows[kind])
            if index >= start:
                yield Batch(positions, index, kind)

    def smallest_batch(self) -> int:
        """Return the number of images in every batch."""
        return self._batch_size

    def kinds(self) -> tuple[BatchKind, ...]:
        """Return the kinds of batches that a run may get."""
        alone = self.schedule.period == 1 and self.schedule.start_epoch == 1
        return ("balanced",) if alone else ("ordinary", "balanced")

    def class_frequencies(self, kind: BatchKind | None = None) -> Tensor:
        """Return how often each class is drawn, float64 [K], sum 1.

        Args:
            kind: In the batches of this kind; null mixes both kinds with their shares
                1 - 1 / T and 1 / T, as they are from the schedule's start_epoch on.
        """
        if kind is not None:
            return self._frequencies[kind]
        share = 1 / self.schedule.period
        ordinary, balanced = self._frequencies["ordinary"], self._frequencies["balanced"]
        return (1 - share) * ordinary + share * balanced

    def parameters(self) -> dict[str, Any]:
        """Return what the plan depends on, but epoch and labels."""
        return self._parameters


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
