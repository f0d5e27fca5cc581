"""Streams of images: what a sampler cuts its batches, or the blocks of its batches, from.

A stream gives every batch the same number of rows. Which images they are depends on how many
batches of the stream went before, never on what was drawn on the way, so a stream goes on over the
borders of epochs and can be entered anywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from training.samplers.apportion import Floats, Ints, inclusion_probabilities, largest_remainder

State = TypeVar("State")

BatchCount = Callable[[int], int]
"""Epoch (from 1) -> number of batches that the stream makes in it."""


class Stream(Protocol):
    """Rows of the batches of an epoch."""

    def positions(self, epoch: int) -> Ints:
        """Return positions in the training split, int64 [batches of the epoch, rows]."""
        ...


class BatchStream(Stream, Protocol):
    """A stream of whole batches, not of the rows of one block.

    Attributes:
        frequencies: How often each class is drawn in the long run, [K], sum 1.
    """

    frequencies: Floats


MakeStream = Callable[[list[Ints], int, BatchCount, int], BatchStream]
"""The images of each class ([n_k] each, empty ones allowed), rows of a batch, batches of an epoch,
seed -> a stream. Most are classes whose other arguments `functools.partial` has filled in."""


class Fold(Generic[State]):
    """What the epochs before an epoch add up to; the newest result is kept.

    Args:
        start: Result before epoch 1.
        step: (epoch, result before it) -> result after it, without changing its argument.

    Example:
        >>> images_before = Fold(0, lambda epoch, before: before + 10 * epoch)
        >>> images_before(1), images_before(4), images_before(2)
        (0, 60, 10)
    """

    def __init__(self, start: State, step: Callable[[int, State], State]) -> None:
        """Begin before epoch 1."""
        self._start, self._step = start, step
        self._epoch, self._state = 1, start

    def __call__(self, epoch: int) -> State:
        """Return the result of the epochs before this one."""
        if epoch < self._epoch:
            self._epoch, self._state = 1, self._start
        while self._epoch < epoch:
            self._state = self._step(self._epoch, self._state)
            self._epoch += 1
        return self._state


class ImageStream:
    """All images of a set, in passes: a shuffled queue without replacement.

    Args:
        members: Positions of the set, [n].
        rows: Rows per batch; may exceed n, and then a batch goes on with the next pass.
        batches: Number of batches per epoch.
        seed: Seed of the order.
    """

    def __init__(self, members: Ints, rows: int, batches: BatchCount, seed: int) -> None:
        """Make the queue."""
        self._queue = ShuffledQueues([members], seed)
        self._rows, self._batches = rows, batches
        self._before: Fold[int] = Fold(0, lambda epoch, before: before + batches(epoch))

    def positions(self, epoch: int) -> Ints:
        """Return the positions of the epoch's batches, [batches, rows]."""
        count = self._batches(epoch) * self._rows
        numbers = self._before(epoch) * self._rows + np.arange(count)
        return self._queue.draw(np.zeros_like(numbers), numbers).reshape(-1, self._rows)


class ClassStream(ABC):
    """Classes are chosen first; each gives its images from a shuffled queue of its own.

    Args:
        members: Positions of the images of each class, [n_k] each.
        rows: Rows per batch.
        batches: Number of batches per epoch.
        seed: Seed of everything.
    """

    def __init__(self, members: list[Ints], rows: int, batches: BatchCount, seed: int) -> None:
        """Make the queues."""
        self._queues = ShuffledQueues(members, seed)
        self._rows, self._batches, self._seed = rows, batches, seed
        nothing = np.zeros(len(members), dtype=np.int64)
        self._before: Fold[Ints] = Fold(nothing, lambda epoch, sum_: sum_ + self.counts(epoch))

    @abstractmethod
    def counts(self, epoch: int) -> Ints:
        """Return how many images of each class the epoch draws, [classes]."""

    @abstractmethod
    def arrange(self, epoch: int) -> Ints:
        """Return the class of every row of the epoch's batches, [batches, rows]."""

    def positions(self, epoch: int) -> Ints:
        """Return the positions of the epoch's batches, [batches, rows]."""
        # First: it asks for the epochs before, and a fold that has to go back starts anew.
        before = self._before(epoch)  # [classes]
        classes = self.arrange(epoch).reshape(-1)  # [M]
        numbers = before[classes] + occurrence(classes)
        return self._queues.draw(classes, numbers).reshape(-1, self._rows)


def occurrence(values: Ints) -> Ints:
    """Return for each element how many equal ones come before it.

    Example:
        >>> occurrence(np.array([7, 3, 7, 7, 3])).tolist()
        [0, 0, 1, 2, 1]
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, ordered)  # where each value's run begins
    result = np.empty(len(values), dtype=np.int64)
    result[order] = np.arange(len(values)) - first
    return result


class CumulativePlan:
    """Whole numbers per epoch that follow real-valued shares, without losing the remainders.

    What rounding gave a class too little or too much in one epoch is made good in the next ones, so
    the sums over epochs stay within a few units of the exact ones, also for a class whose share of
    an epoch is a fraction of one.

    Args:
        shares: Epoch -> shares of the classes, [n], sum 1; where there is a maximum, at most
            maximum / total.
        total: Epoch -> sum of the epoch's numbers.
        maximum: Epoch -> largest number of a class; null is none.

    Example:
        >>> plan = CumulativePlan(lambda epoch: np.array([0.7, 0.2, 0.1]), lambda epoch: 2)
        >>> [plan.counts(epoch).tolist() for epoch in range(1, 6)]
        [[2, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 0], [2, 0, 0]]
    """

    def __init__(
        self,
        shares: Callable[[int], Floats],
        total: Callable[[int], int],
        maximum: Callable[[int], int] | None = None,
    ) -> None:
        """Begin with nothing owed."""
        self._shares, self._total, self._maximum = shares, total, maximum
        self._owed: Fold[Floats] = Fold(np.zeros(len(shares(1))), self._owe)

    def counts(self, epoch: int) -> Ints:
        """Return the numbers of an epoch, [n]."""
        return self._round(epoch, self._owed(epoch))

    def _round(self, epoch: int, owed: Floats) -> Ints:
        total = self._total(epoch)
        limit = self._maximum(epoch) if self._maximum else None
        wanted = np.clip(total * self._shares(epoch) + owed, 0, limit)
        return largest_remainder(total, wanted, maximum=limit)

    def _owe(self, epoch: int, owed: Floats) -> Floats:
        exact = self._total(epoch) * self._shares(epoch)
        return owed + exact - self._round(epoch, owed)


class DeckStream(ClassStream):
    """Each row's class is drawn with given probabilities, exactly so over an epoch.

    An epoch's rows are a shuffled deck that holds every class as often as its probability says
    (rounded; remainders go to later epochs, see `CumulativePlan`). So a batch is a random one, and
    the epoch's exposure is no matter of chance.

    Args:
        members: Positions of the images of each class.
        probabilities: Epoch -> probability of each class, sum 1.
        rows: Rows per batch.
        batches: Number of batches per epoch.
        seed: Seed of everything.
    """

    def __init__(
        self,
        members: list[Ints],
        probabilities: Callable[[int], Floats],
        rows: int,
        batches: BatchCount,
        seed: int,
    ) -> None:
        """Make the plan."""
        super().__init__(members, rows, batches, seed)
        self._plan = CumulativePlan(probabilities, lambda epoch: rows * batches(epoch))

    def counts(self, epoch: int) -> Ints:
        """Return how many images of each class the epoch draws, [classes]."""
        return self._plan.counts(epoch)

    def arrange(self, epoch: int) -> Ints:
        """Return the class of every row, [batches, rows]."""
        counts = self.counts(epoch)
        deck = np.repeat(np.arange(len(counts)), counts)
        return deck[shuffled(len(deck), self._seed, epoch)].reshape(-1, self._rows)


class ClassesTimesImages(ClassStream):
    """P different classes per batch, with rows / P images of each (P x K sampling of re-ID).

    Where P does not divide the rows, some classes of a batch give one image more. A class is in a
    batch with probability proportional to its share, but at most 1, and over an epoch as often as
    that says: each class takes as many consecutive places as it has batches in a table of P rows
    and one column per batch, filled row by row, so that no batch gets a class twice. Order of the
    classes, first place and order of the batches are random.

    Args:
        members: Positions of the images of each class.
        shares: Share of each class, > 0.
        classes: P; in [1, number of classes].
        rows: Rows per batch; >= P.
        batches: Number of batches per epoch.
        seed: Seed of everything.
    """

    def __init__(
        self,
        members: list[Ints],
        shares: Floats,
        classes: int,
        rows: int,
        batches: BatchCount,
        seed: int,
    ) -> None:
        """Make the plan."""
        super().__init__(members, rows, batches, seed)
        self._classes = classes
        self.frequencies = inclusion_probabilities(shares, classes) / classes  # [classes], sum 1
        self._plan = CumulativePlan(
            lambda epoch: self.frequencies, lambda epoch: classes * batches(epoch), batches
        )

    def counts(self, epoch: int) -> Ints:
        """Return how many images of each class the epoch draws, [classes]."""
        return np.bincount(self.arrange(epoch).reshape(-1), minlength=len(self.frequencies))

    def arrange(self, epoch: int) -> Ints:
        """Return the class of every row, [batches, rows]."""
        counts = self._plan.counts(epoch)  # batches of each class, at most all of them
        batches = self._batches(epoch)
        order = shuffled(len(counts), self._seed, epoch, 0)
        places = np.repeat(order, counts[order])  # [P * batches]
        if len(places):
            places = np.roll(places, shuffled(len(places), self._seed, epoch, 1)[0])
        table = places.reshape(self._classes, batches).T  # [batches, P]
        table = table[shuffled(batches, self._seed, epoch, 2)]
        images = np.full(self._classes, self._rows // self._classes)
        images[: self._rows % self._classes] += 1
        return np.repeat(table, images, axis=1)


class ShuffledQueues:
    """Several queues over disjoint sets of positions.

    Args:
        members: The positions of every queue, int64 [n_i] each, all n_i >= 1.
        seed: Decides all permutations.

    Example:
        >>> queues = ShuffledQueues([np.array([3, 4, 5])], seed=0)
        >>> drawn = queues.draw(np.zeros(6, dtype=np.int64), np.arange(6))
        >>> sorted(drawn[:3].tolist()), sorted(drawn[3:].tolist())
        ([3, 4, 5], [3, 4, 5])
    """

    def __init__(self, members: list[Ints], seed: int) -> None:
        """Lay the members out one queue after another."""
        self._members = np.concatenate(members)  # [sum n_i]
        self._sizes = np.array([len(m) for m in members], dtype=np.int64)  # [Q]
        self._starts = np.cumsum(self._sizes) - self._sizes  # [Q]
        self._seed = seed

    def draw(self, queue: Ints, number: Ints) -> Ints:
        """Return the positions of some draws.

        Args:
            queue: Which queue, int64 [M].
            number: Number of the draw in its queue, from 0, int64 [M].
        """
        if not len(number):
            return np.zeros(0, dtype=np.int64)
        turn, slot = np.divmod(number, self._sizes[queue])  # [M] each
        passes, which = np.unique(np.stack([queue, turn]), axis=1, return_inverse=True)
        which = which.reshape(-1)  # [M], into the P distinct passes
        sizes = self._sizes[passes[0]]  # [P]
        starts = np.cumsum(sizes) - sizes  # [P]
        within = np.arange(sizes.sum()) - np.repeat(starts, sizes)  # [sum sizes], 0 .. size - 1
        owner = np.repeat(np.arange(len(sizes)), sizes)  # [sum sizes]
        key = hash_words(self._seed, passes[0][owner], passes[1][owner], within)
        order = within[np.lexsort((key, owner))]  # [sum sizes]: each pass permuted
        return self._members[self._starts[queue] + order[starts[which] + slot]]


def hash_words(seed: int, *words: Ints) -> npt.NDArray[np.uint64]:
    """Mix a seed and integers >= 0 to one 64-bit hash per element (finaliser of splitmix64).

    The finaliser is that of Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014, applied after each word.

    Example:
        >>> hash_words(0, np.array([1, 2])).tolist() == hash_words(0, np.array([1, 2])).tolist()
        True
    """
    state = np.full(np.broadcast_shapes(*(w.shape for w in words)), seed, dtype=np.uint64)
    for word in words:
        state = _finalise(state + np.uint64(0x9E3779B97F4A7C15) + word.astype(np.uint64))
    return state


def shuffled(size: int, seed: int, *words: int) -> Ints:
    """Return a permutation of 0 .. size - 1 that depends on the integers alone.

    Example:
        >>> sorted(shuffled(4, 0, 1).tolist())
        [0, 1, 2, 3]
    """
    fixed = [np.array([word], dtype=np.int64) for word in words]
    return np.argsort(hash_words(seed, *fixed, np.arange(size)), kind="stable")


def _finalise(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
