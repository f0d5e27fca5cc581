"""Cutting a balanced data set to a long tail, and splitting it before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError


def exponential_counts(n_max: int, num_classes: int, imbalance_factor: float) -> list[int]:
    """Training images per class, most frequent first: n_k = int(n_max * IF^(-k / (K - 1))).

    The rule of Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin
    Loss", NeurIPS 2019, in the floating-point form of their code (a power of 1 / IF), so that the
    counts agree with the published splits to the last image.

    Args:
        n_max: Images of the most frequent class; >= 1.
        num_classes: Number K of classes; >= 2.
        imbalance_factor: IF, the ratio of the largest to the smallest count; >= 1.

    Returns:
        K counts, in descending order.

    Raises:
        ConfigError: If the rarest class would be left without an image.

    Example:
        >>> exponential_counts(500, 5, 100)
        [500, 158, 50, 15, 5]
    """
    ratio = 1.0 / imbalance_factor
    counts = [int(n_max * ratio ** (k / (num_classes - 1.0))) for k in range(num_classes)]
    if counts[-1] < 1:
        raise ConfigError(
            f"imbalance_factor: expected at most {n_max} (the images of the largest class), so "
            f"that every class keeps one image, got {imbalance_factor}."
        )
    return counts


@dataclass(frozen=True)
class SplitIndices:
    """Disjoint positions in the source, int64 each, sorted."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def long_tailed_split(
    labels: NDArray[np.int64],
    *,
    test_per_class: int,
    validation_per_class: int,
    imbalance_factor: float,
    seed: int,
) -> SplitIndices:
    """Hold out a balanced test and validation split, and cut the rest to a long tail.

    Each class is shuffled once; the first images are tested on, the next ones validated on, and the
    n_k after those are trained on. So for one seed all imbalance factors share the test and the
    validation split, and a larger factor trains on a subset. n_max is what the smallest class has
    left, so that the exponential rule holds for every class.

    Args:
        labels: Class of every image, [N], values 0 .. K-1; class 0 becomes the most frequent one.
        test_per_class: Test images per class; >= 1.
        validation_per_class: Validation images per class; >= 1.
        imbalance_factor: See `exponential_counts`.
        seed: Seed of the shuffle.

    Returns:
        The positions of the three splits.

    Raises:
        ConfigError: If a class has too few images.
    """
    num_classes = int(labels.max()) + 1
    held_out = test_per_class + validation_per_class
    smallest = int(np.bincount(labels, minlength=num_classes).min())
    if smallest <= held_out:
        raise ConfigError(
            f"data: expected test_per_class + validation_per_class below {smallest} (the images "
            f"of the smallest class), got {test_per_class} + {validation_per_class}."
        )
    counts = exponential_counts(smallest - held_out, num_classes, imbalance_factor)
    rng = np.random.default_rng(seed)
    train, validation, test = [], [], []
    for k, count in enumerate(counts):
        shuffled = rng.permutation(np.flatnonzero(labels == k))
        test.append(shuffled[:test_per_class])
        validation.append(shuffled[test_per_class:held_out])
        train.append(shuffled[held_out : held_out + count])
    return SplitIndices(*(np.sort(np.concatenate(part)) for part in (train, validation, test)))
