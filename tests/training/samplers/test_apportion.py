"""Largest remainders, blocks of classes, inclusion probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.long_tail import cifar100_lt_counts
from training.samplers.apportion import (
    contiguous_blocks,
    inclusion_probabilities,
    largest_remainder,
    sized_blocks,
)
from training.samplers.streams import CumulativePlan


@pytest.mark.parametrize("seed", range(30))
def test_largest_remainder_properties(seed: int):
    random = np.random.default_rng(seed)
    shares = random.lognormal(0, 2, random.integers(1, 12))
    total = int(random.integers(len(shares), 300))
    parts = largest_remainder(total, shares)
    exact = total * shares / shares.sum()
    assert parts.sum() == total
    assert (np.abs(parts - exact) < 1).all()
    bounded = largest_remainder(total, shares, minimum=1)
    assert (bounded.sum(), bounded.min() >= 1) == (total, True)
    limit = -(-total // len(shares))
    capped = largest_remainder(total, shares, maximum=limit)
    assert (capped.sum(), capped.max() <= limit) == (total, True)
    # The order of the parts is that of the shares.
    order = np.argsort(shares)
    for result in (parts, bounded, capped):
        assert (np.diff(result[order]) >= 0).all()


def test_largest_remainder_by_hand():
    # Exact 1.6, 1.4, 1.0 of 4: the unit that is left goes to the remainder .6.
    assert largest_remainder(4, np.array([1.6, 1.4, 1.0])).tolist() == [2, 1, 1]
    assert largest_remainder(3, np.ones(2)).tolist() == [2, 1]  # the first of equals
    assert largest_remainder(0, np.ones(2)).tolist() == [0, 0]
    assert largest_remainder(3, np.zeros(3)).tolist() == [1, 1, 1]


def test_blocks_of_cifar100_lt():
    counts = np.array(cifar100_lt_counts())
    assert counts.sum() == 10_847
    blocks = contiguous_blocks(counts, 5, "classes")
    assert [len(b) for b in blocks] == [20] * 5
    assert [int(counts[b].sum()) for b in blocks] == [6653, 2617, 1025, 399, 153]
    by_images = contiguous_blocks(counts, 5, "images")
    assert np.concatenate(by_images).tolist() == list(range(100))
    # No block is further from a fifth than half of its largest class at either end.
    for block in by_images:
        assert abs(counts[block].sum() - 10_847 / 5) <= counts[block].max()


@pytest.mark.parametrize("blocks", range(1, 7))
@pytest.mark.parametrize("counts", [[1000, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1000], [3] * 6])
def test_every_block_by_images_has_a_class(blocks: int, counts: list[int]):
    found = contiguous_blocks(np.array(counts), blocks, "images")
    assert len(found) == blocks
    assert min(len(b) for b in found) >= 1
    assert sorted(np.concatenate(found)) == list(range(6))


def test_blocks_are_sorted_and_skip_empty_classes():
    counts = np.array([4, 0, 9, 4, 7])
    assert [b.tolist() for b in sized_blocks(counts, [1, 3])] == [[2], [4, 0, 3]]


def test_inclusion_probabilities():
    shares = np.array([50.0, 30.0, 10.0, 6.0, 4.0])
    for chosen in range(1, 6):
        result = inclusion_probabilities(shares, chosen)
        assert result.sum() == pytest.approx(chosen)
        assert result.max() <= 1 + 1e-12
        free = result < 1
        assert np.ptp(result[free] / shares[free]) < 1e-12 if free.any() else chosen == 5
    assert inclusion_probabilities(shares, 1).tolist() == (shares / 100).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_cumulative_plan_stays_near_the_exact_sums(seed: int):
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.full(20, 0.3))  # many shares below one unit per epoch
    totals = random.integers(0, 15, 60)
    plan = CumulativePlan(lambda epoch: shares, lambda epoch: int(totals[epoch - 1]))
    done = np.zeros(20)
    for epoch in range(1, 61):
        counts = plan.counts(epoch)
        assert (counts.sum(), counts.min() >= 0) == (totals[epoch - 1], True)
        done += counts
        assert np.abs(done - totals[:epoch].sum() * shares).max() < 2
    assert np.array_equal(plan.counts(1), CumulativePlan(plan._shares, plan._total).counts(1))


def test_blocks_by_images_take_a_class_by_its_middle():
    """Of 120 images the second class has those from 40 to 78: more of them in the first half."""
    found = contiguous_blocks(np.array([22, 40, 20, 38]), 2, "images")
    assert [block.tolist() for block in found] == [[1, 3], [0, 2]]
