"""Samplers that cut batches from streams: every one but plain instance sampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.config.checks import check
from training.reproducibility import derive_seed
from training.samplers.base import Batch, BatchKind
from training.samplers.instance import checked_bounds
from training.samplers.streams import ImageStream, MakeStream, Stream, hash_words

# The position is part of the seed: append, never reorder.
_STREAMS = ("ordinary", "balanced", "schedule")


class ScheduledSampler:
    """Balanced batches, alone or embedded between instance-balanced ones (see `Schedule`).

    Every batch has batch_size rows and every epoch as many batches as instance sampling. The
    instance-balanced ("ordinary") ones go through the images in passes of their own. Embedding is
    BET, Batch Embedded Training (arXiv 2112.05958), of which the text is not public.

    Args:
        labels: Class of every training image, int64 [N].
        batch_size: Rows per batch; >= 2.
        balanced: What balanced batches come from: `B3RSStream` or `ClasswiseStream`, their options
            filled in by `functools.partial`, or a class like them.
        seed: Seed of everything; >= 0.
        drop_last: Whether an epoch is N / batch_size batches, rounded down, or one more for the
            rest.
        num_classes: K; by default the largest label + 1.
        bet_period: T; see `Schedule`, as for the next two.
        bet_start_epoch: First epoch, from 1, with balanced batches.
        bet_schedule: "periodic" or "random".
        parameters: What the plan depends on, but epoch and labels, by the names of the recipe's
            options; null is by those of the arguments.

    Raises:
        ConfigError: If an argument is out of its range, or the batches do not fit the data.

    Example:
        >>> from functools import partial
        >>> from training.samplers import B3RSStream
        >>> labels = torch.tensor([0] * 60 + [1] * 25 + [2] * 11 + [3] * 4)
        >>> b3rs = partial(B3RSStream, blocks=2, q=0.5)
        >>> sampler = ScheduledSampler(labels, 16, b3rs, bet_period=3)
        >>> for batch in sampler.batches(epoch=1):
        ...     print(batch.kind, torch.bincount(labels[batch.positions], minlength=4).tolist())
        ordinary [10, 4, 2, 0]
        ordinary [10, 3, 1, 2]
        balanced [6, 5, 3, 2]
        ordinary [10, 1, 4, 1]
        ordinary [9, 5, 1, 1]
        balanced [8, 3, 3, 2]
    """

    def __init__(
        self,
        labels: Tensor,
        batch_size: int,
        balanced: MakeStream,
        *,
        seed: int = 0,
        drop_last: bool = True,
        num_classes: int | None = None,
        bet_period: int = 1,
        bet_start_epoch: int = 1,
        bet_schedule: Literal["periodic", "random"] = "periodic",
        parameters: dict[str, Any] | None = None,
    ) -> None:
        """Make the schedule and both streams."""
        labels = labels.cpu()
        counts = torch.bincount(labels, minlength=num_classes or 0)  # [K]
        members = np.split(np.argsort(labels.numpy(), kind="stable"), counts.cumsum(0)[:-1].numpy())
        batches = len(checked_bounds(len(labels), batch_size, drop_last))
        schedule_seed, ordinary_seed, balanced_seed = (
            derive_seed(seed, _STREAMS.index(name)) for name in ("schedule", "ordinary", "balanced")
        )
        allowed = ("periodic", "random")
        check("bet_schedule", bet_schedule, bet_schedule in allowed, f"out of {', '.join(allowed)}")
        random = bet_schedule == "random"
        self.schedule = Schedule(batches, bet_period, bet_start_epoch, random, schedule_seed)
        ordinary = ImageStream(
            np.arange(len(labels)), batch_size, self.schedule.ordinary_count, ordinary_seed
        )
        stream = balanced(members, batch_size, self.schedule.balanced_count, balanced_seed)
        self._streams: dict[BatchKind, Stream] = {"ordinary": ordinary, "balanced": stream}
        self._frequencies: dict[BatchKind, Tensor] = {
            "ordinary": counts.double() / counts.sum(),
            "balanced": torch.from_numpy(stream.frequencies),
        }
        self._batch_size = batch_size
        self._parameters = parameters or {
            "seed": seed,
            "num_samples": len(labels),
            "batch_size": batch_size,
            "batches": batches,
            "bet_period": bet_period,
            "bet_start_epoch": bet_start_epoch,
            "bet_schedule": bet_schedule,
        }

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

    Raises:
        ConfigError: If period or start_epoch is below 1.

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
        check("bet_period", period, period >= 1, ">= 1")
        check("bet_start_epoch", start_epoch, start_epoch >= 1, ">= 1")
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
