"""Class-balanced batches: every class equally often, its images in turn."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from training.reproducibility import generator
from training.samplers.base import Batch


class ClassBalancedBatches:
    """The sampling of cRT and LWS: classes in turn, each with a shuffled queue of its images.

    An epoch is a round of n_max draws of every class, as in the paper's code; each class's queue is
    shuffled anew whenever it is used up, so an image of a rare class comes again before n_max draws
    and one of the most frequent class comes once. Batches that would not be full are left out,
    unless there is no other.

    Args:
        labels: Class of every training image, int64 [N].
        batch_size: Images per batch.
        seed: Seed of all orders; the epoch is mixed in.
    """

    def __init__(self, labels: Tensor, batch_size: int, seed: int) -> None:
        """Sort the positions by class."""
        present = torch.unique(labels).tolist()
        self._members = [torch.nonzero(labels == k)[:, 0] for k in present]  # each [n_k]
        self._draws = max(len(members) for members in self._members)
        self._total = self._draws * len(present)
        self._batch_size = min(batch_size, self._total)
        self._seed = seed

    def __len__(self) -> int:
        """Return the number of batches of every epoch."""
        return self._total // self._batch_size

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (counted from 1), from number ``start`` on."""
        random = generator("cpu", self._seed, epoch)
        columns = [self._queue(members, random) for members in self._members]
        drawn = torch.stack(columns, 1)  # [n_max, K']: a row is one image of every class
        order = torch.rand(drawn.shape, generator=random).argsort(1)  # classes in random order
        positions = drawn.gather(1, order).flatten()  # [n_max * K']
        for index in range(start, len(self)):
            first = index * self._batch_size
            yield Batch(positions[first : first + self._batch_size], index, "balanced")

    def _queue(self, members: Tensor, random: torch.Generator) -> Tensor:
        """n_max positions of one class: shuffles of its images, one after the other."""
        rounds = -(-self._draws // len(members))
        shuffles = [torch.randperm(len(members), generator=random) for _ in range(rounds)]
        return members[torch.cat(shuffles)[: self._draws]]
