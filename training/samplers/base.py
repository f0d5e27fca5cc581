"""What a batch sampler is: which training images make up which batch.

The plan of an epoch is a pure function of (seed, epoch), so it can be made again anywhere: on every
rank of a distributed run, and in a run that is resumed in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from training.errors import ConfigError

MIN_ROWS = 2
"""A whitening or batch-normalisation layer needs two rows to train on."""

BatchKind = Literal["ordinary", "balanced"]


@dataclass(frozen=True)
class Batch:
    """One batch of the plan, of all ranks together; see `rank_rows` for the rows of one.

    Attributes:
        positions: Positions in the training split, int64 [B], on the CPU.
        index: Number of the batch within its epoch, from 0.
        kind: "ordinary" for instance-balanced sampling, "balanced" for every other sampler; with
            Batch Embedded Training an epoch has both.

    Example:
        >>> import torch
        >>> Batch(torch.tensor([4, 0]), index=0)
        Batch(positions=tensor([4, 0]), index=0, kind='ordinary')
    """

    positions: Tensor
    index: int
    kind: BatchKind = "ordinary"


class BatchSampler(Protocol):
    """What the loop needs of a sampler."""

    def __len__(self) -> int:
        """Return the number of batches of every epoch: exactly what `batches` yields."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (counted from 1), from number ``start`` on."""
        ...

    def smallest_batch(self) -> int:
        """Return the number of images in the smallest batch of any epoch."""
        ...

    def kinds(self) -> tuple[BatchKind, ...]:
        """Return the kinds of batches that a run may get."""
        ...

    def class_frequencies(self, kind: BatchKind | None = None) -> Tensor:
        """Return how often each class is drawn in the long run, float64 [K], sum 1.

        Args:
            kind: Over the batches of this kind alone; null is over all batches.
        """
        ...

    def parameters(self) -> dict[str, Any]:
        """Return what the plan depends on, but epoch and labels, as plain values."""
        ...


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


def rank_rows(rank: int, world_size: int) -> slice:
    """Return which rows of every batch of the plan a rank takes: rank, rank + world_size, ...

    The parts are disjoint, their union is the batch, and their sizes differ by one at most. As a
    balanced batch lists its blocks one after another, each rank gets its share of every block.

    Args:
        rank: In [0, world_size).
        world_size: Number of ranks; >= 1.

    Raises:
        ValueError: If there is no such rank.

    Example:
        >>> import torch
        >>> positions = torch.tensor([5, 6, 7, 8, 9])
        >>> [positions[rank_rows(rank, 2)].tolist() for rank in range(2)]
        [[5, 7, 9], [6, 8]]
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank_rows: expected 0 <= rank < {world_size}, got rank {rank}.")
    return slice(rank, None, world_size)


def check_world_size(sampler: BatchSampler, world_size: int) -> None:
    """Check before the first step that every batch has enough rows for every rank to normalise by.

    Raises:
        ConfigError: If a rank would get fewer than `MIN_ROWS` rows of the smallest batch.

    Example:
        >>> from training.samplers import InstanceSampler
        >>> check_world_size(InstanceSampler(9, 4, seed=0), world_size=2)
    """
    smallest = sampler.smallest_batch()
    if world_size > 1 and smallest // world_size < MIN_ROWS:
        raise ConfigError(
            f"data.batch_size: expected at least {MIN_ROWS} rows for each of the {world_size} "
            f"processes in every batch, got a batch of {smallest}; use --data.drop_last true, "
            "larger batches or fewer processes."
        )
