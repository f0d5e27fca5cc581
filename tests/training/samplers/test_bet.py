"""Batch Embedded Training: which batches are balanced, and what both streams go through."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.long_tail import epoch_positions, labels_of, sampler_of
from training.config import TrainConfig
from training.errors import ConfigError
from training.samplers import Schedule, build_sampler

LABELS = labels_of([60, 31, 17, 9, 5, 2])  # 6 batches of 20
B3RS = {"sampler": "b3rs", "blocks": 3}


def _kinds(sampler, epochs: range) -> str:
    return "".join(b.kind[0] for epoch in epochs for b in sampler.batches(epoch))


def test_one_balanced_batch_after_every_t_minus_one_ordinary_ones():
    # Counted over the run: the epoch of 6 batches does not restart a period of 4.
    sampler = sampler_of(LABELS, **B3RS, bet_period=4)
    assert _kinds(sampler, range(1, 5)) == "ooobooobooobooobooobooob"
    late = sampler_of(LABELS, **B3RS, bet_period=4, bet_start_epoch=2)
    assert _kinds(late, range(1, 5)) == "oooooo" + "ooobooobooobooobooob"[:18]
    # A period longer than an epoch.
    assert _kinds(sampler_of(LABELS, **B3RS, bet_period=9), range(1, 4)) == "oooooooob" * 2


def test_period_one_is_the_sampler_alone():
    pure, one = (sampler_of(LABELS, **B3RS, bet_period=period) for period in (None, 1))
    for epoch in (1, 2, 7):
        assert torch.equal(epoch_positions(pure, epoch), epoch_positions(one, epoch))
        assert {b.kind for b in one.batches(epoch)} == {"balanced"}
    assert one.kinds() == ("balanced",)


@pytest.mark.parametrize("drop_last", [True, False])
def test_period_infinity_is_instance_sampling(drop_last: bool):
    infinite = sampler_of(LABELS, **B3RS, bet_period=0, drop_last=drop_last)
    instance = sampler_of(LABELS, "instance", drop_last=drop_last)
    assert len(infinite) == len(instance)
    for epoch in (1, 2, 7):
        assert torch.equal(epoch_positions(infinite, epoch), epoch_positions(instance, epoch))


def test_embedded_batches_are_the_samplers_own_one_after_another():
    """The k-th balanced batch of a run is the k-th batch of the sampler's queues."""
    embedded = sampler_of(LABELS, **B3RS, bet_period=4)
    pure = sampler_of(LABELS, **B3RS)
    few = torch.cat([epoch_positions(embedded, epoch, "balanced") for epoch in range(1, 9)])
    many = torch.cat([epoch_positions(pure, epoch) for epoch in (1, 2)])
    assert torch.equal(few, many)  # 8 * 6 / 4 batches


def test_ordinary_batches_go_through_all_images_in_passes():
    sampler = sampler_of(LABELS, **B3RS, bet_period=3)
    drawn = torch.cat([epoch_positions(sampler, epoch, "ordinary") for epoch in range(1, 12)])
    passes = len(drawn) // 124
    assert passes == 7
    turns = drawn[: passes * 124].reshape(passes, 124)
    assert all(len(turn.unique()) == 124 for turn in turns)
    assert not torch.equal(turns[0], turns[1])


def test_random_schedule_has_the_stated_share():
    schedule = Schedule(batches=50, period=4, random=True, seed=0)
    kinds = torch.cat([torch.from_numpy(schedule.balanced(epoch)) for epoch in range(1, 81)])
    # 4000 draws with probability 1 / 4: standard deviation 27.4; 3.3 of them is 0.001.
    assert abs(int(kinds.sum()) - 1000) < 90
    # Independent: pairs of neighbours that are both balanced, 250 +- 3.3 * 16.
    assert abs(int((kinds[1:] & kinds[:-1]).sum()) - 250) < 53
    other = Schedule(batches=50, period=4, random=True, seed=1)
    assert (other.balanced(1) != schedule.balanced(1)).any()
    assert Schedule(batches=50, period=1, random=True, seed=0).balanced(1).all()


def test_other_samplers_can_be_embedded():
    sampler = sampler_of(LABELS, "class-balanced", bet_period=2)
    expected = torch.tensor([60, 31, 17, 9, 5, 2]) / 124 / 2 + 1 / 12
    assert torch.allclose(sampler.class_frequencies(), expected.double(), atol=1e-7)
    counts = torch.bincount(LABELS[epoch_positions(sampler, 1, "balanced")])
    assert counts.tolist() == [10] * 6


def test_statistics_of_balanced_batches_alone_need_one():
    config = TrainConfig(sampler="b3rs", bet_period=13, statistics_batches="balanced")
    config.data.batch_size = 20
    config.optim.epochs = 2
    with pytest.raises(ConfigError, match="a run of 12 batches that has no balanced one"):
        build_sampler(config, LABELS, seed=0)
    config.bet_period = 12
    build_sampler(config, LABELS, seed=0)
