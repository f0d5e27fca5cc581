"""Class-balanced batches: every class equally often, its images in turn."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from training.reproducibility import generator
from training.samplers.base import Batch


class ClassBalancedBatches:
    """The sampling of cRT and LWS: classes take turns, each with a shuffled queue of its images.

    An epoch is int(N / batch_size) batches, at least one, as in the paper's code, whose sampler
    could go on for n_max K images but is stopped there. In a round every class has one turn, in
    random order, of some images in a row; each class's queue is shuffled anew whenever it is used
    up. The orders begin anew with every epoch, theirs go on.

    Args:
        labels: Class of every training image, int64 [N].
        batch_size: Images per batch; at most N are taken.
        seed: Seed of all orders; the epoch is mixed in.
        images_per_class: Images of a turn.
    """

    def __init__(
        self, labels: Tensor, batch_size: int, seed: int, images_per_class: int = 4
    ) -> None:
        """Sort the positions by class."""
        present = torch.unique(labels).tolist()
        self._members = [torch.nonzero(labels == k)[:, 0] for k in present]  # each [n_k]
        self._batch_size = min(batch_size, len(labels))
        self._batches = len(labels) // self._batch_size
        self._turn = images_per_class
        self._rounds = -(-self._batches * self._batch_size // (images_per_class * len(present)))
        self._seed = seed

    def __len__(self) -> int:
        """Return the number of batches of every epoch."""
        return self._batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (counted from 1), from number ``start`` on."""
        random = generator("cpu", self._seed, epoch)
        queues = torch.stack([self._queue(members, random) for members in self._members])
        turns = queues.reshape(len(self._members), self._rounds, self._turn).transpose(0, 1)
        order = torch.rand(turns.shape[:2], generator=random).argsort(1)  # [rounds, K'], of classes
        positions = turns.gather(1, order[:, :, None].expand_as(turns)).flatten()
        for index in range(start, len(self)):
            first = index * self._batch_size
            yield Batch(positions[first : first + self._batch_size], index, "balanced")

    def _queue(self, members: Tensor, random: torch.Generator) -> Tensor:
        """An epoch's positions of one class: shuffles of its images, one after the other."""
        draws = self._rounds * self._turn
        shuffles = [
            torch.randperm(len(members), generator=random) for _ in range(-(-draws // len(members)))
        ]
        return members[torch.cat(shuffles)[:draws]]
