"""What a batch sampler is: which training images make up which batch.

The plan of an epoch is a pure function of (seed, epoch), so it can be made again anywhere: on every
rank of a distributed run, and in a run that is resumed in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

MIN_ROWS = 2
"""A whitening or batch-normalisation layer needs two rows to train on."""

BatchKind = Literal["ordinary", "balanced"]


@dataclass(frozen=True)
class Batch:
    """One batch of the plan, of all ranks together.

    Attributes:
        positions: Positions in the training split, int64 [B], on the CPU.
        index: Number of the batch within its epoch, from 0.
        kind: "balanced" for a batch that Batch Embedded Training puts between the ordinary ones.
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
