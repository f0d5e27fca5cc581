"""Shuffled queues without replacement whose every draw is a pure function of its number.

A queue of n images is gone through in passes: draw j is element j mod n of the permutation of pass
j div n. The permutation of a pass is the order of one hash per image, of (seed, queue, pass,
image), so any draw of any queue is known without the draws before it: a resumed run and every rank
of a distributed run find the same images, and no image comes a second time before all others of
its queue came once, over the borders of batches and of epochs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


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
