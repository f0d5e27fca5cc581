"""Shuffled queues: random access to draws without replacement."""

from __future__ import annotations

import numpy as np
import pytest

from training.samplers.streams import ShuffledQueues, hash_words, shuffled


def test_hash_is_splitmix64():
    # First outputs of splitmix64 with state 0, as Vigna's reference program prints them.
    assert hash_words(0, np.array([0])).item() == 0xE220A8397B1DCDAF
    golden = 0x9E3779B97F4A7C15
    assert hash_words(golden, np.array([0])).item() == 0x6E789E6AA1B965F4
    assert hash_words(2 * golden % 2**64, np.array([0])).item() == 0x06C45D188009454F


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_every_pass_has_every_member_once(size: int):
    members = np.random.default_rng(size).permutation(1000)[:size]
    queues = ShuffledQueues([np.array([2000]), members], seed=3)
    drawn = queues.draw(np.ones(5 * size, dtype=np.int64), np.arange(5 * size))
    for turn in drawn.reshape(5, size):
        assert sorted(turn) == sorted(members)
    if size == 100:
        assert len({tuple(turn) for turn in drawn.reshape(5, size)}) == 5  # reshuffled


def test_draws_in_any_order_are_the_same():
    queues = ShuffledQueues([np.arange(4), np.arange(10, 17), np.arange(20, 21)], seed=1)
    queue = np.repeat([0, 1, 2], 40)
    number = np.tile(np.arange(40), 3)
    drawn = queues.draw(queue, number)
    order = np.random.default_rng(0).permutation(120)
    assert np.array_equal(queues.draw(queue[order], number[order]), drawn[order])
    single = [queues.draw(queue[i : i + 1], number[i : i + 1])[0] for i in range(0, 120, 7)]
    assert single == drawn[::7].tolist()


def test_queues_and_seeds_are_independent():
    queues = ShuffledQueues([np.arange(50), np.arange(50, 100)], seed=1)
    zeros, numbers = np.zeros(50, dtype=np.int64), np.arange(50)
    first = queues.draw(zeros, numbers)
    assert not np.array_equal(queues.draw(zeros + 1, numbers) - 50, first)
    other = ShuffledQueues([np.arange(50), np.arange(50, 100)], seed=2)
    assert not np.array_equal(other.draw(zeros, numbers), first)


def test_permutations_are_uniform():
    # 24 permutations of 4 elements over 4800 passes: chi-square with 23 degrees of freedom exceeds
    # 49.7 with probability 0.001.
    queues = ShuffledQueues([np.arange(4)], seed=0)
    numbers = np.arange(4 * 4800)
    drawn = queues.draw(np.zeros_like(numbers), numbers).reshape(-1, 4)
    counts = np.unique(drawn @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7


def test_shuffled_is_a_permutation_of_its_seed():
    assert sorted(shuffled(9, 5, 1, 2)) == list(range(9))
    assert not np.array_equal(shuffled(9, 5, 1, 2), shuffled(9, 5, 2, 1))
    assert shuffled(0, 5, 1).tolist() == []
