"""From shares to whole numbers, and from classes to blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def largest_remainder(
    total: int, shares: Floats, minimum: int = 0, maximum: int | None = None
) -> Ints:
    """Split ``total`` into whole numbers proportional to shares, within bounds.

    Each part gets the integer below its exact share, and the units that are left go to the largest
    remainders (the first of equals). Parts outside the bounds are set to the bound, and the rest is
    split among the others.

    Args:
        total: What is split; in [n * minimum, n * maximum].
        shares: >= 0, any scale, [n].
        minimum: Smallest part.
        maximum: Largest part; null is none.

    Example:
        >>> roots = np.sqrt([6653, 2617, 1025, 399, 153])  # CIFAR-100-LT, 5 blocks of 20 classes
        >>> largest_remainder(128, roots).tolist()
        [53, 33, 21, 13, 8]
        >>> largest_remainder(10, np.array([98.0, 1.0, 1.0]), minimum=2).tolist()
        [6, 2, 2]
        >>> largest_remainder(10, np.array([98.0, 1.0, 1.0]), maximum=5).tolist()
        [5, 3, 2]
    """
    limit = total if maximum is None else maximum
    parts = np.zeros(len(shares), dtype=np.int64)
    free = np.ones(len(shares), dtype=bool)
    while True:
        parts[free] = _split(total - int(parts[~free].sum()), shares[free])
        low, high = free & (parts < minimum), free & (parts > limit)
        if not (low.any() or high.any()):
            return parts
        # The side that is further out first: setting it can only help the other one.
        missing, excess = (minimum - parts[low]).sum(), (parts[high] - limit).sum()
        fixed, bound = (low, minimum) if missing >= excess else (high, limit)
        parts[fixed] = bound
        free &= ~fixed


def _split(total: int, shares: Floats) -> Ints:
    if not shares.sum() > 0:
        shares = np.ones(len(shares))
    exact = total * (shares / shares.sum())
    parts = np.floor(exact + 1e-9).astype(np.int64)  # 1e-9: 2.9999999999 is a rounded 3
    order = np.argsort(parts - exact, kind="stable")
    parts[order[: total - int(parts.sum())]] += 1
    return parts


def contiguous_blocks(counts: Ints, blocks: int, rule: str) -> list[Ints]:
    """Cut the classes, most frequent first, into contiguous blocks.

    Args:
        counts: Training images per class, [K]; classes without images are left out.
        blocks: Number of blocks; in [1, number of classes with images].
        rule: "classes": as many classes in each (the first blocks have one more if that does not
            come out even); "images": about as many images in each, at least one class.

    Returns:
        The classes of each block.

    Example:
        >>> [b.tolist() for b in contiguous_blocks(np.array([1, 50, 9, 0, 30]), 2, "classes")]
        [[1, 4], [2, 0]]
        >>> [b.tolist() for b in contiguous_blocks(np.array([1, 50, 9, 0, 30]), 2, "images")]
        [[1], [4, 2, 0]]
    """
    order = sorted_classes(counts)
    if rule == "classes":
        return np.array_split(order, blocks)
    # A class belongs to the block in which the middle of its images lies.
    seen = np.cumsum(counts[order])
    middle = seen - counts[order] / 2
    cuts = np.searchsorted(middle, seen[-1] * np.arange(1, blocks) / blocks)
    for i in range(len(cuts)):  # every block keeps a class
        earlier = cuts[i - 1] if i else 0
        cuts[i] = min(max(cuts[i], earlier + 1), len(order) - (len(cuts) - i))
    return np.split(order, cuts)


def sized_blocks(counts: Ints, sizes: Sequence[int]) -> list[Ints]:
    """Cut the classes, most frequent first, into blocks of these numbers of classes."""
    return np.split(sorted_classes(counts), np.cumsum(sizes)[:-1])


def sorted_classes(counts: Ints) -> Ints:
    """Return the classes with images, most frequent first, equals in their own order."""
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] > 0].astype(np.int64)


def inclusion_probabilities(shares: Floats, chosen: int) -> Floats:
    """Return the probability of each of n classes to be among ``chosen`` different ones.

    Proportional to the shares, except that none is above 1; the sum is ``chosen``.

    Args:
        shares: > 0, [n].
        chosen: In [1, n].

    Example:
        >>> inclusion_probabilities(np.array([8.0, 1.0, 1.0]), 2).tolist()
        [1.0, 0.5, 0.5]
    """
    certain = np.zeros(len(shares), dtype=bool)
    while True:
        rest = ~certain
        result = np.ones(len(shares))
        result[rest] = (chosen - certain.sum()) * shares[rest] / shares[rest].sum()
        above = rest & (result > 1 + 1e-12)
        if not above.any():
            return result
        certain |= above
