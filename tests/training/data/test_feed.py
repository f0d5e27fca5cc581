"""The resident feed: shares of ranks, starts in the middle of an epoch, evaluation batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.config import TrainConfig
from training.data import build_dataset, build_feed, evaluation_batches
from training.data.augment import random_shift
from training.data.feed import ResidentFeed
from training.reproducibility import generator
from training.samplers import InstanceSampler


@pytest.fixture(scope="module")
def dataset():
    return build_dataset(TrainConfig(), split_seed=0)


@pytest.fixture(scope="module")
def sampler(dataset) -> InstanceSampler:
    return InstanceSampler(len(dataset.train), 50, seed=0, drop_last=False)


@pytest.mark.parametrize("augment", [None, "crop-flip", "randaugment"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_together_have_what_one_process_has(dataset, sampler, augment, world_size):
    augment = augment or dataset.options.augment
    options = replace(dataset.options, augment=augment, cutout=3)
    dataset = replace(dataset, options=options)
    whole = build_feed(dataset, 9).examples(sampler.batches(2), 2)
    shares = [
        build_feed(dataset, 9, rank, world_size).examples(sampler.batches(2), 2)
        for rank in range(world_size)
    ]
    count = 0
    for expected, *parts in zip(whole, *shares, strict=True):
        images, labels = torch.empty_like(expected.images), torch.empty_like(expected.labels)
        for rank, part in enumerate(parts):
            images[rank::world_size] = part.images
            labels[rank::world_size] = part.labels
            assert torch.equal(part.batch.positions, expected.batch.positions)
        assert torch.equal(images, expected.images)
        assert torch.equal(labels, expected.labels)
        assert torch.equal(labels, dataset.train.labels[expected.batch.positions])
        count += 1
    assert count == len(sampler)


def test_digits_are_augmented_as_ever(dataset, sampler):
    """The bits of runs from before there were other augmentations."""
    feed = build_feed(dataset, 9)
    assert isinstance(feed, ResidentFeed)
    for examples in feed.examples(sampler.batches(1), 1):
        images = dataset.train.images[examples.batch.positions]
        shifted = random_shift(images, 1, generator("cpu", 9, 1, examples.batch.index))
        assert torch.equal(examples.images, dataset.normalise(shifted))


def test_a_plan_may_start_in_the_middle(dataset, sampler):
    feed = build_feed(dataset, 9)
    whole = list(feed.examples(sampler.batches(1), 1))
    rest = list(feed.examples(sampler.batches(1, start=3), 1))
    assert len(rest) == len(whole) - 3 > 0
    for expected, got in zip(whole[3:], rest, strict=True):
        assert torch.equal(expected.images, got.images)


@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_evaluation_batches_have_every_image_once(dataset, world_size):
    found = np.zeros(len(dataset.test), dtype=int)
    for rank in range(world_size):
        batches = list(evaluation_batches(dataset, dataset.test, 64, rank, world_size))
        positions = torch.arange(rank, len(dataset.test), world_size)
        assert [len(labels) for _, labels in batches[:-1]] == [64] * (len(batches) - 1)
        images = torch.cat([images for images, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        assert torch.equal(images, dataset.normalise(dataset.test.images[positions]))
        assert torch.equal(labels, dataset.test.labels[positions])
        found[positions.numpy()] += 1
    assert (found == 1).all()


def test_evaluation_batches_take_a_split_too(dataset):
    part = dataset.train.take(torch.tensor([5, 3]))
    ((_, labels),) = evaluation_batches(dataset, part, 64)
    assert torch.equal(labels, dataset.train.labels[[5, 3]])
    # More processes than images: nothing is yielded, nothing is padded.
    assert list(evaluation_batches(dataset, part, 64, rank=2, world_size=3)) == []


def test_no_validation_split():
    config = TrainConfig()
    config.data.validation_per_class = 0
    data = build_dataset(config, split_seed=0)
    assert not data.has_validation
    assert len(data.validation) == 0
    assert list(evaluation_batches(data, data.validation, 8)) == []
    assert data.imbalance_factor == data.class_counts.max() / data.class_counts.min()
