"""Long-tail counts and splits, against an independent form of the published procedure."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.longtail import Cut, long_tailed_split, published_split, step_counts
from training.errors import ConfigError


def balanced_labels(per_class: int, classes: int) -> np.ndarray:
    """Labels in random order, as in the files."""
    return np.random.default_rng(7).permutation(np.repeat(np.arange(classes), per_class))


def reference_positions(labels: np.ndarray, factor: float, kind: str) -> np.ndarray:
    """What Cao et al. describe, with numpy's global generator as their code uses it."""
    classes = np.unique(labels)
    n_max = len(labels) / len(classes)
    if kind == "exp":
        sizes = [int(n_max * factor ** (-(k / (len(classes) - 1)))) for k in classes]
    else:
        half = len(classes) // 2
        sizes = [int(n_max)] * half + [int(n_max / factor)] * half
    state = np.random.get_state()
    np.random.seed(0)
    kept = []
    for k, size in zip(classes, sizes, strict=True):
        positions = np.where(labels == k)[0]
        np.random.shuffle(positions)
        kept.append(positions[:size])
    np.random.set_state(state)
    return np.concatenate(kept)


def split(labels: np.ndarray, factor: float, validation: int = 0, source: str = "dropped", **cut):
    return published_split(
        labels,
        cut=Cut(factor, **cut),
        seed=0,
        validation_per_class=validation,
        validation_from=source,
    )


@pytest.mark.parametrize(
    ("per_class", "classes", "factor", "total"),
    [
        # Totals of the published CIFAR-10-LT and CIFAR-100-LT, and of Fashion-MNIST-LT by the rule.
        (5000, 10, 10, 20431),
        (5000, 10, 50, 13996),
        (5000, 10, 100, 12406),
        (5000, 10, 200, 11203),
        (500, 100, 10, 19573),
        (500, 100, 50, 12608),
        (500, 100, 100, 10847),
        (500, 100, 200, 9502),
        (6000, 10, 10, 24516),
        (6000, 10, 50, 16796),
        (6000, 10, 100, 14886),
        (6000, 10, 200, 13444),
    ],
)
def test_published_splits_to_the_last_image(per_class, classes, factor, total):
    labels = balanced_labels(per_class, classes)
    expected = reference_positions(labels, factor, "exp")
    for validation in (0, 5):
        indices = split(labels, factor, validation)
        assert np.array_equal(indices.train, expected)
        assert len(indices.train) == len(set(indices.train.tolist())) == total
        assert not set(indices.train.tolist()) & set(indices.validation.tolist())


@pytest.mark.parametrize("factor", [10, 100])
def test_step_imbalance_is_the_published_one(factor):
    labels = balanced_labels(500, 100)
    indices = split(labels, factor, imbalance_type="step")
    assert np.array_equal(indices.train, reference_positions(labels, factor, "step"))
    assert np.bincount(labels[indices.train]).tolist() == [500] * 50 + [500 // factor] * 50


def test_the_global_generator_is_left_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    split(balanced_labels(10, 4), 2)
    assert np.array_equal(before, np.random.get_state()[1])


def test_validation_from_dropped_images():
    labels = balanced_labels(100, 5)
    indices = split(labels, 100, 20)
    # 100 * 100^(-k / 4) = 100, 31, 10, 3, 1: the first class drops nothing.
    assert np.bincount(labels[indices.train]).tolist() == [100, 31, 10, 3, 1]
    assert np.bincount(labels[indices.validation], minlength=5).tolist() == [0, 20, 20, 20, 20]


def test_validation_held_out_is_balanced_and_shared_by_all_factors():
    labels = balanced_labels(100, 5)
    mild, strong = (split(labels, factor, 20, "held-out") for factor in (2, 80))
    assert np.array_equal(mild.validation, strong.validation)
    assert np.bincount(labels[mild.validation]).tolist() == [20] * 5
    assert set(strong.train) < set(mild.train)
    assert np.bincount(labels[strong.train]).max() == 80
    assert not set(mild.train) & set(mild.validation)


def test_a_cut_that_drops_nothing_has_no_images_to_validate_on():
    with pytest.raises(ConfigError, match=r"held-out, or --data\.validation_per_class 0"):
        split(balanced_labels(10, 4), 1, 2)
    assert len(split(balanced_labels(10, 4), 1, 0).train) == 40


def test_too_few_images_to_hold_out():
    with pytest.raises(ConfigError, match=r"below 10 .*got 10"):
        split(balanced_labels(10, 4), 1, 10, "held-out")


def test_class_order_permutes_the_counts_and_nothing_else():
    available = np.full(10, 100)
    plain = Cut(50).counts(available)
    orders = [Cut(50, class_order_seed=seed).counts(available) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != plain
    assert sorted(orders[0], reverse=True) == plain
    labels = balanced_labels(100, 10)
    shuffled = split(labels, 50, class_order_seed=0)
    assert np.bincount(labels[shuffled.train]).tolist() == orders[0]


def test_natural_keeps_everything_that_is_not_held_out():
    labels = np.repeat(np.arange(3), [9, 4, 6])
    indices = split(labels, 50, 2, "held-out", imbalance_type="natural")
    assert np.bincount(labels[indices.train]).tolist() == [7, 2, 4]
    assert sorted([*indices.train, *indices.validation]) == list(range(19))


def test_step_with_an_odd_number_of_classes():
    assert step_counts(8, 5, 4) == [8, 8, 2, 2, 2]
    with pytest.raises(ConfigError, match="expected at most 8"):
        step_counts(8, 4, 9)


def test_held_out_test_split_with_step_and_class_order():
    labels = balanced_labels(30, 4)
    indices = long_tailed_split(
        labels,
        cut=Cut(5, "step", class_order_seed=3),
        seed=1,
        validation_per_class=0,
        test_per_class=5,
    )
    assert np.bincount(labels[indices.test]).tolist() == [5] * 4
    assert sorted(np.bincount(labels[indices.train]).tolist()) == [5, 5, 25, 25]
    assert len(indices.validation) == 0
