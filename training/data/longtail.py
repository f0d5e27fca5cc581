"""Cutting a balanced data set to a long tail, and splitting it: labels in, positions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from training.config.checks import check
from training.config.data import ImbalanceType, ValidationSource
from training.errors import ConfigError

__all__ = [
    "Cut",
    "SplitIndices",
    "exponential_counts",
    "long_tailed_split",
    "published_split",
    "step_counts",
]


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
        ConfigError: If the factor is below 1, or the rarest class would be left without an image.

    Example:
        >>> exponential_counts(500, 5, 100)
        [500, 158, 50, 15, 5]
    """
    ratio = 1.0 / imbalance_factor
    counts = [int(n_max * ratio ** (k / (num_classes - 1.0))) for k in range(num_classes)]
    return _nonempty(counts, n_max, imbalance_factor)


def step_counts(n_max: int, num_classes: int, imbalance_factor: float) -> list[int]:
    """Training images per class: n_max for the first K // 2 classes, int(n_max / IF) for the rest.

    The step imbalance of Cao et al. (see `exponential_counts`, also for arguments and errors),
    whose class numbers are even; for an odd K the class in the middle is a rare one.

    Example:
        >>> step_counts(500, 5, 100)
        [500, 500, 5, 5, 5]
    """
    many = num_classes // 2
    rare = int(n_max * (1.0 / imbalance_factor))
    counts = [n_max] * many + [rare] * (num_classes - many)
    return _nonempty(counts, n_max, imbalance_factor)


def _nonempty(counts: list[int], n_max: int, imbalance_factor: float) -> list[int]:
    check("imbalance_factor", imbalance_factor, imbalance_factor >= 1, ">= 1")
    if counts[-1] < 1:
        raise ConfigError(
            f"imbalance_factor: expected at most {n_max} (the training images of the smallest "
            "class, which is what the most frequent one keeps), so that every class keeps one "
            f"image, got {imbalance_factor}."
        )
    return counts


@dataclass(frozen=True)
class Cut:
    """How many images each class keeps.

    Attributes:
        imbalance_factor: See `exponential_counts`.
        imbalance_type: exp, step or natural (every class keeps what it has).
        class_order_seed: Seed of a random order of the classes, most frequent first; null is
            0, 1, 2, ...

    Raises:
        ConfigError: If there is no such type.

    Example:
        >>> Cut(imbalance_factor=4).counts(np.array([8, 8, 8]))
        [8, 4, 2]
    """

    imbalance_factor: float
    imbalance_type: ImbalanceType = "exp"
    class_order_seed: int | None = None

    def __post_init__(self) -> None:
        """Check the type."""
        kinds, kind = get_args(ImbalanceType), self.imbalance_type
        check("imbalance_type", kind, kind in kinds, f"out of {', '.join(kinds)}")

    def counts(self, available: NDArray[np.int64]) -> list[int]:
        """Return the images that each class keeps, of those available per class [K].

        n_max is what the smallest class has, so that the rule holds for every class.

        Raises:
            ConfigError: As `exponential_counts`.

        Example:
            >>> Cut(4, "step").counts(np.array([10, 8, 9, 8]))
            [8, 8, 2, 2]
            >>> sorted(Cut(4, "step", class_order_seed=0).counts(np.array([10, 8, 9, 8])))
            [2, 2, 8, 8]
        """
        if self.imbalance_type == "natural":
            return [int(count) for count in available]
        rule = step_counts if self.imbalance_type == "step" else exponential_counts
        ranked = rule(int(available.min()), len(available), self.imbalance_factor)
        if self.class_order_seed is None:
            return ranked
        order = np.random.default_rng(self.class_order_seed).permutation(len(available))  # [K]
        counts = [0] * len(available)
        for rank, k in enumerate(order):
            counts[k] = ranked[rank]
        return counts

    def sentence(self, found: int, train: int, validation: int, test: int = 0) -> str:
        """Say what became of the images found; nothing if all of them are used.

        Example:
            >>> Cut(50).sentence(3660, 107, 0)
            '3,660 images found, kept 107 to train on; 3,553 are not used: imbalance_type exp, \
imbalance_factor 50, from the size of the smallest class'
        """
        unused = found - train - validation - test
        if unused == 0:
            return ""
        parts = {"train": train, "choose": validation, "test": test}
        uses = ", ".join(f"{count:,} to {verb} on" for verb, count in parts.items() if count)
        return (
            f"{found:,} images found, kept {uses}; {unused:,} are not used: imbalance_type "
            f"{self.imbalance_type}, imbalance_factor {self.imbalance_factor:g}, from the size of "
            "the smallest class"
        )


@dataclass(frozen=True)
class SplitIndices:
    """Disjoint positions in the source, int64 each; test is empty where the data brings its own.

    Attributes:
        train: To train on.
        validation: To choose on.
        test: To test on.
        cut: What the cut has done, for a person; empty if it drops nothing.

    Example:
        >>> SplitIndices(np.array([0, 2]), np.array([3]), np.array([1])).cut
        ''
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    cut: str = ""


def long_tailed_split(
    labels: NDArray[np.int64],
    *,
    cut: Cut,
    seed: int,
    validation_per_class: int,
    test_per_class: int,
) -> SplitIndices:
    """Hold out a balanced test and validation split, and cut the rest to a long tail.

    Each class is shuffled once; the first images are tested on, the next ones validated on, and the
    n_k after those are trained on. So for one seed all imbalance factors share the test and the
    validation split, and a larger factor trains on a subset.

    Args:
        labels: Class of every image, [N], values 0 .. K-1.
        cut: How many images each class keeps.
        seed: Seed of the shuffle.
        validation_per_class: Validation images per class; >= 0.
        test_per_class: Test images per class; >= 1.

    Returns:
        The positions of the three splits, sorted.

    Raises:
        ConfigError: If a class has too few images, or an argument is out of its range.

    Example:
        >>> labels = np.arange(30) % 3
        >>> split = long_tailed_split(
        ...     labels, cut=Cut(4), seed=0, validation_per_class=0, test_per_class=2
        ... )
        >>> np.bincount(labels[split.train]).tolist(), np.bincount(labels[split.test]).tolist()
        ([8, 4, 2], [2, 2, 2])
    """
    check("test_per_class", test_per_class, test_per_class >= 1, ">= 1")
    _check_validation(validation_per_class)
    held_out = test_per_class + validation_per_class
    sizes = _class_sizes(labels)
    if sizes.min() <= held_out:
        raise ConfigError(
            f"data: expected test_per_class + validation_per_class below {sizes.min()} (the images "
            f"of the smallest class, label {sizes.argmin()}), got {test_per_class} + "
            f"{validation_per_class}; lower --data.test_per_class and --data.validation_per_class, "
            "or remove the class."
        )
    counts = cut.counts(sizes - held_out)
    rng = np.random.default_rng(seed)
    train, validation, test = [], [], []
    for k, count in enumerate(counts):
        shuffled = rng.permutation(np.flatnonzero(labels == k))
        test.append(shuffled[:test_per_class])
        validation.append(shuffled[test_per_class:held_out])
        train.append(shuffled[held_out : held_out + count])
    kept, chosen, tested = (np.sort(np.concatenate(part)) for part in (train, validation, test))
    text = cut.sentence(len(labels), len(kept), len(chosen), len(tested))
    return SplitIndices(kept, chosen, tested, text)


def published_split(
    labels: NDArray[np.int64],
    *,
    cut: Cut,
    seed: int,
    validation_per_class: int,
    validation_from: ValidationSource,
) -> SplitIndices:
    """Cut the training part of a data set as Cao et al. do, and take out a validation split.

    Their code seeds numpy's legacy generator once with 0, goes through the classes in order,
    shuffles the positions of each and keeps the first n_k. With seed 0, and validation_per_class 0
    or validation_from "dropped", the training positions are theirs, in their order: class by class.

    Args:
        labels: Class of every image, [N], values 0 .. K-1.
        cut: How many images each class keeps.
        seed: Seed of the shuffle, in [0, 2^32).
        validation_per_class: Validation images per class; >= 0.
        validation_from: "dropped" takes them from the images after the first n_k of a class, as far
            as there are any; "held-out" from its first ones, before the cut.

    Returns:
        The positions of the training split, in their order, and of the validation split, sorted.

    Raises:
        ConfigError: If there are too few images, or an argument is out of its range.

    Example:
        >>> labels = np.arange(50_000) % 10
        >>> split = published_split(
        ...     labels, cut=Cut(100), seed=0, validation_per_class=0, validation_from="dropped"
        ... )
        >>> np.bincount(labels[split.train]).tolist()  # those of CIFAR-10-LT
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    _check_validation(validation_per_class)
    sources = get_args(ValidationSource)
    known = validation_from in sources
    check("validation_from", validation_from, known, f"out of {', '.join(sources)}")
    sizes = _class_sizes(labels)
    held_out = validation_per_class if validation_from == "held-out" else 0
    if sizes.min() <= held_out:
        raise ConfigError(
            f"data.validation_per_class: expected a value below {sizes.min()} (the images of the "
            f"smallest class, label {sizes.argmin()}), got {validation_per_class}; pass a smaller "
            "one, or 0 for no validation split."
        )
    counts = cut.counts(sizes - held_out)
    if validation_from == "dropped" and validation_per_class and counts == sizes.tolist():
        raise ConfigError(
            "data.validation_from: expected a long-tail cut that drops images to validate on, got "
            f"imbalance_type {cut.imbalance_type} with factor {cut.imbalance_factor}, which drops "
            "none; use --data.validation_from held-out, or --data.validation_per_class 0."
        )
    rng = np.random.RandomState(seed)
    train, validation = [], []
    for k, count in enumerate(counts):
        shuffled = np.flatnonzero(labels == k)
        rng.shuffle(shuffled)
        train.append(shuffled[held_out : held_out + count])
        first = 0 if validation_from == "held-out" else count
        validation.append(shuffled[first : first + validation_per_class])
    kept, chosen = np.concatenate(train), np.sort(np.concatenate(validation))
    text = cut.sentence(len(labels), len(kept), len(chosen))
    return SplitIndices(kept, chosen, np.empty(0, np.int64), text)


def _check_validation(validation_per_class: int) -> None:
    check("validation_per_class", validation_per_class, validation_per_class >= 0, ">= 0")


def _class_sizes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Images per class, int64 [K]."""
    return np.bincount(labels, minlength=int(labels.max()) + 1)
