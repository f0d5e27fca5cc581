"""Class-balanced batches, and images held out for a choice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training.config import TrainConfig
from training.data import build_dataset
from training.stage2.batches import ClassBalancedBatches
from training.stage2.split import choice_data

LABELS = torch.tensor([0] * 12 + [1] * 5 + [2] * 1)[torch.randperm(18)]


@pytest.mark.parametrize(
    ("images", "steps"), [(115_846, 226), (437_513, 854), (10_847, 21), (12_406, 24)]
)
def test_an_epoch_is_that_of_the_papers_code(images: int, steps: int):
    """ImageNet-LT, iNaturalist 2018, CIFAR-100-LT and CIFAR-10-LT, at batches of 512."""
    counts = torch.full((images,), 2).cumsum(0) // 2 % 10  # classes do not matter
    assert len(ClassBalancedBatches(counts, 512, seed=0)) == steps


def test_every_class_equally_often_and_its_images_in_turn():
    batches = ClassBalancedBatches(LABELS, batch_size=6, seed=0, images_per_class=2)
    assert len(batches) == 18 // 6
    positions = torch.cat([batch.positions for batch in batches.batches(1)])
    assert torch.bincount(LABELS[positions]).tolist() == [6, 6, 6]
    draws = torch.bincount(positions, minlength=18)
    assert draws[LABELS == 0].tolist().count(1) == 6  # 6 draws of 12 images: none twice
    assert sorted(draws[LABELS == 1].tolist()) == [1, 1, 1, 1, 2]  # 6 draws of 5, in turn
    for batch in batches.batches(1):  # a round of all classes, two images a turn
        assert sorted(LABELS[batch.positions[::2]].tolist()) == [0, 1, 2]
        assert torch.equal(LABELS[batch.positions[::2]], LABELS[batch.positions[1::2]])
        assert batch.kind == "balanced"


def test_the_plan_is_a_function_of_seed_and_epoch():
    def plan(seed: int, epoch: int, start: int = 0) -> list[list[int]]:
        batches = ClassBalancedBatches(LABELS, 5, seed).batches(epoch, start)
        return [batch.positions.tolist() for batch in batches]

    assert plan(0, 1) == plan(0, 1)
    assert plan(0, 1) != plan(1, 1)
    assert plan(0, 1) != plan(0, 2)
    assert plan(0, 1, start=3) == plan(0, 1)[3:]


@pytest.mark.parametrize("size", [1, 5, 7, 18, 100])
def test_length_is_what_is_yielded(size: int):
    batches = ClassBalancedBatches(LABELS, size, 0)
    found = list(batches.batches(1))
    assert len(found) == len(batches) == max(1, 18 // size)
    assert [batch.index for batch in found] == list(range(len(found)))


def test_the_validation_split_is_taken_where_there_is_one():
    data = build_dataset(TrainConfig(), 0)
    chosen = choice_data(data, 0.25, seed=1)
    assert chosen.name == "validation"
    assert chosen.choice is data.validation
    assert torch.equal(chosen.positions, torch.arange(len(data.train)))


def test_without_a_validation_split_training_images_of_every_class_are_held_out():
    data = build_dataset(TrainConfig(imbalance_factor=100.0), 0)  # the rarest class: one image
    empty = replace(
        data.validation,
        images=data.validation.images[:0],
        labels=data.validation.labels[:0],
        indices=data.validation.indices[:0],
    )
    data = replace(data, validation=empty)
    first, again, other = (choice_data(data, 0.25, seed) for seed in (1, 1, 2))
    assert first.name == "train-holdout"
    counts = data.class_counts
    expected = [min(max(1, int(0.25 * n)), n - 1) for n in counts.tolist()]
    held_out = torch.bincount(first.choice.labels, minlength=10)
    assert counts[-1] == 1
    assert held_out.tolist() == expected
    assert held_out[-1] == 0
    kept = data.train.indices[first.positions]
    both = torch.cat([kept, first.choice.indices])
    assert torch.equal(both.sort().values, data.train.indices.sort().values)  # a partition
    assert torch.equal(first.choice.indices, again.choice.indices)
    assert not torch.equal(first.choice.indices, other.choice.indices)
