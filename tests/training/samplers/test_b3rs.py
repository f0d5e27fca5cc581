"""B3RS: quotas of every batch, exposures of an epoch, and the samplers it contains as limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.long_tail import (
    cifar100_lt_counts,
    class_counts,
    epoch_positions,
    labels_of,
    sampler_of,
)
from training.errors import ConfigError

CIFAR = labels_of(cifar100_lt_counts())
SMALL_COUNTS = [90, 60, 40, 25, 15, 10, 6, 3, 1]  # 250 images
SMALL = labels_of(SMALL_COUNTS)


def _block_counts(labels: torch.Tensor, positions: torch.Tensor, sizes: list[int]) -> list[int]:
    ends = torch.tensor(sizes).cumsum(0)
    block = torch.bucketize(labels[positions], ends, right=True)
    return torch.bincount(block, minlength=len(sizes)).tolist()


@pytest.mark.parametrize(
    ("q", "quotas"),
    [
        (1.0, [78, 31, 12, 5, 2]),  # 78.5, 30.9, 12.1, 4.7, 1.8
        (0.5, [53, 33, 21, 13, 8]),  # 52.98, 33.22, 20.79, 12.97, 8.03
        (0.0, [26, 26, 26, 25, 25]),
    ],
)
def test_quotas_of_cifar100_lt(q: float, quotas: list[int]):
    sampler = sampler_of(CIFAR, "b3rs", batch_size=128, q=q)
    assert len(sampler) == 84
    for epoch in (1, 2):
        for batch in sampler.batches(epoch):
            assert _block_counts(CIFAR, batch.positions, [20] * 5) == quotas


@pytest.mark.parametrize("reading", ["quotas", "classes-images"])
@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("options", "quotas"),
    [
        ({"blocks": 3, "q": 1.0}, [15, 4, 1]),  # 190, 50, 10 images: 15.2, 4, 0.8
        ({"blocks": 3, "q": 1.0, "b_min": 3}, [13, 4, 3]),
        ({"blocks": 3, "q": 0.0, "block_weights": [1.0, 1.0, 2.0]}, [5, 5, 10]),
        ({"block_sizes": [1, 2, 6], "q": 0.0}, [7, 7, 6]),
        ({"blocks": 3, "q": 1.0, "block_weights": [1.0, 1.0, 1e-9], "b_min": 0}, [16, 4, 0]),
    ],
)
def test_quotas_are_exact_in_every_batch(reading: str, r: float, options: dict, quotas: list[int]):
    sampler = sampler_of(SMALL, "b3rs", reading=reading, r=r, **options)
    sizes = options.get("block_sizes", [3, 3, 3])
    for epoch in (1, 2, 3):
        for batch in sampler.batches(epoch):
            assert _block_counts(SMALL, batch.positions, sizes) == quotas


@pytest.mark.parametrize("reading", ["quotas", "classes-images"])
@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_the_exposure_follows_the_plan(reading: str, r: float):
    """Per block exactly, per class within what whole images allow."""
    sampler = sampler_of(SMALL, "b3rs", blocks=3, q=0.5, r=r, reading=reading, images_per_class=3)
    epochs = 25
    counts = class_counts(sampler, SMALL, range(1, epochs + 1)).double()
    batches = epochs * len(sampler)
    quotas = _block_counts(SMALL, epoch_positions(sampler, 1)[:20], [3, 3, 3])
    assert counts.reshape(3, 3).sum(1).tolist() == [batches * quota for quota in quotas]
    expected = sampler.class_frequencies() * batches * 20
    if reading == "quotas" and r == 1:
        # Whole passes, and one that is not finished: every image as often as the others, or once
        # more.
        times = torch.bincount(
            torch.cat([epoch_positions(sampler, e) for e in range(1, epochs + 1)]), minlength=250
        )
        for block in range(3):
            of_block = times[(SMALL // 3) == block]
            assert of_block.max() - of_block.min() <= 1
    elif reading == "quotas":
        assert (counts - expected).abs().max() < 2
    else:
        # Batches of a class are exact within 2; its images per batch are 3 +- 1, at random.
        assert (counts - expected).abs().max() < 6 + 4 * expected.sqrt().max()
    weights = torch.tensor(SMALL_COUNTS, dtype=torch.float64).reshape(3, 3) ** r
    if reading == "quotas":
        shares = weights / weights.sum(1, keepdim=True) * torch.tensor(quotas)[:, None] / 20
        assert torch.allclose(sampler.class_frequencies(), shares.reshape(-1))


def test_every_image_of_a_class_is_drawn_before_one_comes_again():
    sampler = sampler_of(SMALL, "b3rs", blocks=3, q=0.5, r=0.0)
    drawn = torch.cat([epoch_positions(sampler, epoch) for epoch in range(1, 12)])
    for k in range(9):
        of_class = drawn[SMALL[drawn] == k]
        passes = len(of_class) // SMALL_COUNTS[k]
        for turn in of_class[: passes * SMALL_COUNTS[k]].reshape(passes, -1):
            assert len(turn.unique()) == SMALL_COUNTS[k]


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
def test_classes_times_images(r: float):
    # Quotas 8, 6, 6 in blocks of 3 classes with K = 3: P = 3 (8 / 3 rounded), 2 and 2 classes.
    sampler = sampler_of(
        SMALL,
        "b3rs",
        blocks=3,
        q=0.0,
        r=r,
        block_weights=[8.0, 6.0, 6.0],
        reading="classes-images",
        images_per_class=3,
    )
    for epoch in (1, 2, 3):
        for batch in sampler.batches(epoch):
            counts = torch.bincount(SMALL[batch.positions], minlength=9).reshape(3, 3)
            assert sorted(counts[0].tolist()) == [2, 3, 3]
            assert sorted(counts[1].tolist()) == [0, 3, 3]
            assert sorted(counts[2].tolist()) == [0, 3, 3]
    # The block's classes of 25, 15 and 10 images are in a batch with probability 2 n^r / sum n^r,
    # at most 1.
    expected = {0.0: [2 / 3] * 3, 1.0: [1.0, 0.6, 0.4]}
    if r in expected:
        counts = class_counts(sampler, SMALL, range(1, 26))[3:6] / 3 / (25 * len(sampler))
        assert counts.tolist() == pytest.approx(expected[r], abs=0.01)


def test_q_and_r_one_is_stratified_instance_sampling():
    # 60, 30 and 10 images in batches of 10: quotas 6, 3, 1, so an epoch has every image once.
    labels = labels_of([40, 20, 18, 12, 6, 4])
    sampler = sampler_of(labels, "b3rs", batch_size=10, blocks=3, q=1.0, r=1.0)
    instance = sampler_of(labels, "instance", batch_size=10)
    for epoch in (1, 2):
        assert sorted(epoch_positions(sampler, epoch)) == sorted(epoch_positions(instance, epoch))
    assert torch.allclose(sampler.class_frequencies(), instance.class_frequencies())


def test_q_and_r_zero_with_equal_blocks_is_class_balanced():
    sampler = sampler_of(SMALL, "b3rs", batch_size=18, blocks=3, q=0.0, r=0.0)
    balanced = sampler_of(SMALL, "class-balanced", batch_size=18)
    assert torch.allclose(sampler.class_frequencies(), balanced.class_frequencies())
    for epochs in (range(1, 2), range(1, 10)):
        left, right = (class_counts(s, SMALL, epochs) for s in (sampler, balanced))
        assert (left - right).abs().max() <= 2
        assert left.max() - left.min() <= 2


def test_one_block_with_r_zero_has_the_class_balanced_distribution():
    """Rows per class in a batch: chi-square of B3RS against class-balanced, both sampled."""
    tables = []
    for name, options in (("b3rs", {"blocks": 1, "r": 0.0}), ("class-balanced", {})):
        sampler = sampler_of(SMALL, name, batch_size=18, **options)
        rows = [
            torch.bincount(SMALL[b.positions], minlength=9)
            for epoch in range(1, 31)
            for b in sampler.batches(epoch)
        ]
        # Class 0 alone: the counts of one batch depend on each other.
        found = torch.stack(rows)[:, 0].clamp(max=4)
        tables.append(torch.bincount(found, minlength=5).double())
    left, right = tables
    assert left.sum() == right.sum() == 390
    chi_square = ((left - right) ** 2 / (left + right)).sum()
    assert chi_square < 18.5  # 4 degrees of freedom, probability 0.001


@pytest.mark.parametrize("reading", ["quotas", "classes-images"])
def test_batches_of_one_epoch_are_random(reading: str):
    """A class of r < 1 falls on the batches of an epoch without a preferred place."""
    sampler = sampler_of(SMALL, "b3rs", blocks=3, q=0.0, r=0.5, reading=reading)
    batches = len(sampler)
    totals = np.zeros(batches)
    for epoch in range(1, 201):
        for batch in sampler.batches(epoch):
            totals[batch.index] += int((SMALL[batch.positions] == 4).any())
    expected = totals.mean()
    chi_square = ((totals - expected) ** 2 / (expected * (1 - expected / 200))).sum()
    assert chi_square < 31.3  # 11 degrees of freedom, probability 0.001
    assert batches == 12


def test_a_block_smaller_than_its_quota_goes_on_with_the_next_pass():
    labels = labels_of([30, 2])
    sampler = sampler_of(labels, "b3rs", batch_size=10, blocks=2, q=0.0)
    for batch in sampler.batches(1):
        times = torch.bincount(batch.positions[labels[batch.positions] == 1], minlength=32)
        assert sorted(times[labels == 1].tolist()) == [2, 3]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"blocks": 10}, "at most the 9 classes of the training data, got 10"),
        ({"block_sizes": [4, 4]}, r"add up to the 9 classes .* got \[4, 4\], which add up to 8"),
        ({"b_min": 5, "blocks": 5}, "batch_size / blocks = 4 rows, got 5 for 5 blocks"),
    ],
)
def test_options_that_do_not_fit_the_data(options: dict, text: str):
    with pytest.raises(ConfigError, match=text):
        sampler_of(SMALL, "b3rs", **options)
