"""Long-tail counts, splits, samplers and augmentation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from training.config import DataConfig, TrainConfig
from training.data import build_dataset
from training.data.augment import random_shift
from training.data.base import channel_statistics
from training.data.label_noise import add_label_noise
from training.data.longtail import Cut, exponential_counts, long_tailed_split
from training.errors import ConfigError
from training.reproducibility import Seeds, derive_seed, generator, resolve_seeds
from training.samplers import InstanceSampler, batch_bounds


def test_counts_by_hand():
    # 16 * 16^(-k/4) = 16, 8, 4, 2, 1
    assert exponential_counts(16, 5, 16) == [16, 8, 4, 2, 1]
    assert exponential_counts(7, 3, 1) == [7, 7, 7]


@pytest.mark.parametrize(
    ("n_max", "classes", "factor", "total"),
    [
        # Totals of the published CIFAR splits of Cao et al.
        (5000, 10, 100, 12406),
        (500, 100, 100, 10847),
        (500, 100, 50, 12608),
        (500, 100, 10, 19573),
    ],
)
def test_totals_of_published_splits(n_max: int, classes: int, factor: float, total: int):
    assert sum(exponential_counts(n_max, classes, factor)) == total


def test_too_strong_an_imbalance_says_what_is_possible():
    with pytest.raises(ConfigError, match=r"expected at most 10 .*got 11"):
        exponential_counts(10, 3, 11)


def test_digits_splits_are_disjoint_balanced_and_without_duplicates():
    data = build_dataset(TrainConfig(imbalance_factor=50), split_seed=0)
    parts = [split.indices.tolist() for split in (data.train, data.validation, data.test)]
    every = [index for part in parts for index in part]
    assert len(every) == len(set(every))
    # n_max = 174 (images of the rarest digit) - 40 - 10; 124 * 50^(-k/9), rounded down
    assert data.class_counts.tolist() == [124, 80, 51, 33, 21, 14, 9, 5, 3, 2]
    assert torch.bincount(data.validation.labels).tolist() == [10] * 10
    assert torch.bincount(data.test.labels).tolist() == [40] * 10
    images = data.normalise(data.train.images)
    assert abs(images.mean().item()) < 1e-5
    assert abs(images.std().item() - 1) < 1e-3


def test_a_larger_imbalance_factor_trains_on_a_subset_of_the_same_split():
    mild = build_dataset(TrainConfig(imbalance_factor=10), split_seed=4)
    strong = build_dataset(TrainConfig(imbalance_factor=100), split_seed=4)
    assert torch.equal(mild.test.indices, strong.test.indices)
    assert torch.equal(mild.validation.indices, strong.validation.indices)
    assert set(strong.train.indices.tolist()) < set(mild.train.indices.tolist())
    other = build_dataset(TrainConfig(imbalance_factor=10), split_seed=5)
    assert not torch.equal(mild.test.indices, other.test.indices)


def test_wrong_labels_have_the_frequencies_of_the_classes_and_only_in_training():
    labels = torch.arange(3).repeat_interleave(torch.tensor([60_000, 30_000, 10_000]))
    noisy = add_label_noise(labels, 0.3, seed=0)
    moved = torch.zeros(3, 3)
    moved.index_put_((labels, noisy), torch.tensor(1.0), accumulate=True)
    moved /= moved.sum(1, keepdim=True)
    expected = [[0.7, 0.225, 0.075], [0.3 * 6 / 7, 0.7, 0.3 / 7], [0.2, 0.1, 0.7]]
    torch.testing.assert_close(moved, torch.tensor(expected), atol=0.01, rtol=0)
    # One image of class 1: it stays, whatever is drawn.
    rare = torch.tensor([0] * 50 + [1])
    assert all(1 in add_label_noise(rare, 0.9, seed) for seed in range(20))
    clean, dirty = (build_dataset(TrainConfig(data=DataConfig(label_noise=n)), 0) for n in (0, 0.2))
    assert 0 < (clean.train.labels != dirty.train.labels).sum() < 0.35 * len(clean.train)
    for name in ("validation", "test"):
        assert torch.equal(clean.split(name).labels, dirty.split(name).labels)


def test_too_few_images_for_the_splits():
    labels = np.repeat(np.arange(2), [5, 8])
    with pytest.raises(ConfigError, match=r"below 5 .*got 3 \+ 2"):
        long_tailed_split(labels, cut=Cut(1), seed=0, validation_per_class=2, test_per_class=3)


def test_constant_channel_is_not_divided_by_zero():
    mean, std = channel_statistics(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8))
    assert (mean.tolist(), std.tolist()) == ([7.0], [1.0])


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("num_samples", range(2, 30))
def test_no_batch_has_a_single_row(num_samples: int, drop_last: bool):
    bounds = batch_bounds(num_samples, 4, drop_last)
    sizes = [stop - start for start, stop in bounds]
    assert min(sizes) >= 2
    assert max(sizes) <= 5
    assert bounds[0][0] == 0
    assert all(left[1] == right[0] for left, right in pairwise(bounds))
    if drop_last and num_samples >= 4:
        assert set(sizes) == {4}
    if not drop_last:
        assert bounds[-1][1] == num_samples


def test_sampler_yields_each_image_once_and_depends_on_the_epoch():
    sampler = InstanceSampler(10, 4, seed=0, drop_last=False)
    first, again, second = ([b.positions for b in sampler.batches(e)] for e in (1, 1, 2))
    assert len(first) == len(sampler) == 3
    assert sorted(torch.cat(first).tolist()) == list(range(10))
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_a_batch_larger_than_the_data_is_an_error_with_drop_last():
    with pytest.raises(ConfigError, match="at most the 10 images left to train on"):
        InstanceSampler(10, 11, seed=0, drop_last=True)
    assert len(InstanceSampler(10, 11, seed=0, drop_last=False)) == 1


def test_shift_moves_every_image_by_its_own_offset():
    images = torch.zeros(200, 2, 5, 5, dtype=torch.uint8)
    images[:, 0, 2, 2] = 9
    images[:, 1, 2, 2] = 4
    shifted = random_shift(images, 1, torch.Generator().manual_seed(0))
    assert shifted.dtype == torch.uint8
    assert shifted.flatten(2).sum(2).tolist() == [[9, 4]] * 200  # nothing is lost or doubled
    places = {tuple(place.tolist()) for place in (shifted[:, 0] == 9).nonzero()[:, 1:]}
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}
    # Both channels of an image move together.
    assert torch.equal(shifted[:, 0] == 9, shifted[:, 1] == 4)


def test_shift_fills_with_zeros():
    shifted = random_shift(torch.ones(50, 1, 3, 3), 1, torch.Generator().manual_seed(0))
    assert set(shifted.sum((1, 2, 3)).tolist()) == {9.0, 6.0, 4.0}
    assert torch.equal(random_shift(shifted, 0, torch.Generator()), shifted)


def test_seeds_are_separate_and_overridable():
    config = TrainConfig(seed=1)
    seeds = resolve_seeds(config.seed, config.seeds)
    assert len({seeds.split, seeds.sampler, seeds.augmentation, seeds.initialisation}) == 4
    config.seeds.sampler = 7
    changed = resolve_seeds(config.seed, config.seeds)
    assert changed == Seeds(seeds.split, 7, seeds.augmentation, seeds.initialisation)
    assert resolve_seeds(2, config.seeds).split != seeds.split


def test_derived_seeds_are_stable():
    # A change here would change the splits and weights of every run that was ever made.
    assert derive_seed(0, 0) == 2968811710
    assert generator("cpu", 0, 1).initial_seed() == derive_seed(0, 1)
