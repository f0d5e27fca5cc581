"""Class-balanced, square-root and progressive sampling."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.long_tail import class_counts, epoch_positions, labels_of, sampler_of
from training.samplers.streams import occurrence

COUNTS = [100, 36, 16, 4]  # 156 images; square roots 10, 6, 4, 2
LABELS = labels_of(COUNTS)


def test_class_balanced_counts_by_hand():
    sampler = sampler_of(LABELS, "class-balanced", batch_size=22)  # 7 batches, 154 rows
    assert sorted(class_counts(sampler, LABELS, range(1, 2)).tolist()) == [38, 38, 39, 39]
    assert class_counts(sampler, LABELS, range(1, 3)).tolist() == [77] * 4


def test_square_root_counts_by_hand():
    sampler = sampler_of(LABELS, "sqrt", batch_size=22)
    assert class_counts(sampler, LABELS, range(1, 2)).tolist() == [70, 42, 28, 14]


def test_progressive_moves_linearly_by_hand():
    sampler = sampler_of(LABELS, "progressive", batch_size=39, epochs=5)  # 4 batches, 156 rows
    for epoch, t in enumerate([0.0, 0.25, 0.5, 0.75, 1.0], start=1):
        counts = class_counts(sampler, LABELS, range(epoch, epoch + 1))
        expected = (1 - t) * torch.tensor(COUNTS) + t * 39
        assert (counts - expected).abs().max() <= 1  # and the sum over epochs is nearer
    assert class_counts(sampler, LABELS, range(1, 2)).tolist() == COUNTS
    assert class_counts(sampler, LABELS, range(6, 7)).tolist() == [39] * 4  # beyond the plan
    alone = sampler_of(LABELS, "progressive", batch_size=39, epochs=1)
    assert class_counts(alone, LABELS, range(1, 2)).tolist() == COUNTS


@pytest.mark.parametrize("name", ["class-balanced", "sqrt"])
def test_images_of_a_class_come_in_passes_over_epochs(name: str):
    sampler = sampler_of(LABELS, name, batch_size=22)
    drawn = torch.cat([epoch_positions(sampler, epoch) for epoch in range(1, 6)])
    of_class = drawn[LABELS[drawn] == 3]
    for turn in of_class[: len(of_class) // 4 * 4].reshape(-1, 4):
        assert len(turn.unique()) == 4
    times = torch.bincount(drawn, minlength=156)
    for k in range(4):
        assert times[LABELS == k].max() - times[LABELS == k].min() <= 1


def test_rows_are_spread_like_independent_draws():
    """The number of rows of a class in a batch is hypergeometric: a deck cut into hands."""
    sampler = sampler_of(LABELS, "class-balanced", batch_size=22)
    found = torch.tensor(
        [
            int((LABELS[b.positions] == 2).sum())
            for epoch in range(1, 101)
            for b in sampler.batches(epoch)
        ]
    )
    deck, hand, cards = 154, 22, 38.5

    def probability(n: int) -> float:
        def term(cards: int) -> float:
            ways = math.comb(cards, n) * math.comb(deck - cards, hand - n)
            return ways / math.comb(deck, hand)

        return (term(int(cards)) + term(int(cards) + 1)) / 2  # 38 and 39 in turn

    bins = [range(0, 3), range(3, 5), range(5, 6), range(6, 8), range(8, 23)]
    expected = torch.tensor([700 * sum(probability(n) for n in b) for b in bins])
    observed = torch.tensor([sum(int((found == n).sum()) for n in b) for b in bins])
    assert ((observed - expected) ** 2 / expected).sum() < 18.5  # 4 degrees of freedom, 0.001


def test_occurrence_against_a_loop():
    values = torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(0)).numpy()
    expected = [int((values[:i] == v).sum()) for i, v in enumerate(values)]
    assert occurrence(values).tolist() == expected
