"""Sampling by class: a class is drawn with a probability of its own, then an image of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.samplers.apportion import Floats, Ints
from training.samplers.streams import BatchCount, DeckStream

ClassRule = Callable[[Floats, int, int], Floats]
"""Images of each class [K], the epoch from 1, the run's epochs -> probability of each class [K]."""


def class_balanced(counts: Floats, epoch: int, epochs: int) -> Floats:
    """Every class alike (Kang et al., ICLR 2020, section 4.1: n_k^r with r = 0).

    Example:
        >>> class_balanced(np.array([3.0, 1.0]), 1, 1).tolist()
        [0.5, 0.5]
    """
    return np.full(len(counts), 1 / len(counts))


def square_root(counts: Floats, epoch: int, epochs: int) -> Floats:
    """In proportion to the square root of the images (the same, r = 1/2).

    Example:
        >>> square_root(np.array([9.0, 1.0]), 1, 1).tolist()
        [0.75, 0.25]
    """
    return np.sqrt(counts) / np.sqrt(counts).sum()


def progressive(counts: Floats, epoch: int, epochs: int) -> Floats:
    """From instance-balanced in the first epoch to class-balanced in the last one, linearly.

    A run of one epoch stays instance-balanced.

    Example:
        >>> [progressive(np.array([3.0, 1.0]), epoch, 3).tolist() for epoch in (1, 2, 3)]
        [[0.75, 0.25], [0.625, 0.375], [0.5, 0.5]]
    """
    t = min((epoch - 1) / max(epochs - 1, 1), 1.0)
    return (1 - t) * (counts / counts.sum()) + t * class_balanced(counts, epoch, epochs)


class ClasswiseStream:
    """Rows whose class is drawn by a rule, exactly so over an epoch; see `DeckStream`.

    Args:
        members: Positions of the images of each class, [n_k] each; empty ones are allowed.
        rows: Rows per batch.
        batches: Number of batches per epoch.
        seed: Seed of everything; >= 0.
        rule: Probabilities of the classes that have images, sum 1; linear in the epoch.
        epochs: Of the run; what `progressive` needs.

    Attributes:
        frequencies: Class frequencies of the whole run, float64 [K], sum 1.

    Example:
        >>> members = [np.arange(12), np.arange(12, 16)]
        >>> stream = ClasswiseStream(members, 4, lambda epoch: 4, seed=0)
        >>> int((stream.positions(epoch=1) >= 12).sum())  # of 16 rows
        8
    """

    def __init__(
        self,
        members: list[Ints],
        rows: int,
        batches: BatchCount,
        seed: int,
        *,
        rule: ClassRule = class_balanced,
        epochs: int = 1,
    ) -> None:
        """Make the deck."""
        present = [k for k, images in enumerate(members) if len(images)]
        images = [members[k] for k in present]
        counts = np.array([len(m) for m in images], dtype=np.float64)

        def probabilities(epoch: int) -> Floats:
            return rule(counts, epoch, epochs)

        self.frequencies: Floats = np.zeros(len(members))
        # The mean of first and last epoch is that of the run.
        self.frequencies[present] = (probabilities(1) + probabilities(epochs)) / 2
        self._deck = DeckStream(images, probabilities, rows, batches, seed)

    def positions(self, epoch: int) -> Ints:
        """Return the positions of the epoch's batches, [batches, rows]."""
        return self._deck.positions(epoch)
