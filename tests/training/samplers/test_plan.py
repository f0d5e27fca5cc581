"""What holds for the plan of every sampler."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch

from tests.helpers.long_tail import class_counts, epoch_positions, labels_of, sampler_of
from training.errors import ConfigError
from training.samplers import PlanCursor, check_world_size, rank_rows

LABELS = labels_of([60, 31, 17, 9, 5, 2])  # 124 images: 6 batches of 20, and 4 images left

SAMPLERS = {
    "instance": {"sampler": "instance"},
    "instance-all": {"sampler": "instance", "drop_last": False},
    "class-balanced": {"sampler": "class-balanced"},
    "class-balanced-all": {"sampler": "class-balanced", "drop_last": False},
    "sqrt": {"sampler": "sqrt"},
    "progressive": {"sampler": "progressive", "epochs": 4},
    "b3rs": {"sampler": "b3rs", "blocks": 3},
    "b3rs-r": {"sampler": "b3rs", "blocks": 3, "r": 0.4, "q": 0.0},
    "b3rs-classes": {"sampler": "b3rs", "blocks": 2, "reading": "classes-images", "r": 0.5},
    "bet": {"sampler": "b3rs", "blocks": 3, "bet_period": 4},
    "bet-late": {"sampler": "b3rs", "blocks": 3, "bet_period": 2, "bet_start_epoch": 3},
    "bet-random": {"sampler": "sqrt", "bet_period": 2, "bet_schedule": "random"},
    "bet-classes": {
        "sampler": "b3rs",
        "blocks": 2,
        "reading": "classes-images",
        "bet_period": 3,
    },
    "bet-infinite": {"sampler": "b3rs", "blocks": 3, "bet_period": 0},
}
EPOCHS = (1, 2, 3, 5)


@pytest.fixture(params=SAMPLERS, ids=list(SAMPLERS))
def options(request: pytest.FixtureRequest) -> dict:
    return SAMPLERS[request.param]


def _plan(sampler, epoch: int, start: int = 0) -> list[tuple]:
    return [(b.positions.tolist(), b.index, b.kind) for b in sampler.batches(epoch, start)]


def test_length_is_what_is_yielded(options: dict):
    sampler = sampler_of(LABELS, **options)
    everything = options.get("drop_last") is False
    assert len(sampler) == (7 if everything else 6)
    for epoch in EPOCHS:
        batches = list(sampler.batches(epoch))
        assert [b.index for b in batches] == list(range(len(sampler)))
        assert {b.kind for b in batches} <= set(sampler.kinds())
        assert min(len(b.positions) for b in batches) >= max(2, sampler.smallest_batch())
        for batch in batches:
            assert batch.positions.dtype == torch.int64
            assert 0 <= batch.positions.min() and batch.positions.max() < len(LABELS)


def test_the_plan_is_a_function_of_seed_and_epoch(options: dict):
    sampler = sampler_of(LABELS, **options)
    plans = {epoch: _plan(sampler, epoch) for epoch in EPOCHS}
    for epoch in reversed(EPOCHS):  # in another order, and from another object
        assert _plan(sampler, epoch) == plans[epoch]
        assert _plan(sampler_of(LABELS, **options), epoch) == plans[epoch]
        assert _plan(sampler_of(LABELS, seed=1, **options), epoch) != plans[epoch]
    assert all(plans[a] != plans[b] for a, b in pairwise(EPOCHS))


def test_an_epoch_resumes_at_every_batch(options: dict):
    for epoch in EPOCHS[1:3]:
        whole = _plan(sampler_of(LABELS, **options), epoch)
        for start in range(len(whole) + 1):
            assert _plan(sampler_of(LABELS, **options), epoch, start) == whole[start:]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_together_are_the_single_process_plan(options: dict, world_size: int):
    sampler = sampler_of(LABELS, **options)
    fits = sampler.smallest_batch() >= 2 * world_size
    with nullcontext() if world_size == 1 or fits else pytest.raises(ConfigError):
        check_world_size(sampler, world_size)
    # Every rank makes the plan on its own.
    ranks = [sampler_of(LABELS, **options).batches(2) for _ in range(world_size)]
    for batch, *parts in zip(sampler.batches(2), *ranks, strict=True):
        shares = [part.positions[rank_rows(r, world_size)] for r, part in enumerate(parts)]
        sizes = [len(share) for share in shares]
        assert sum(sizes) == len(batch.positions)
        assert min(sizes) >= (2 if fits else 1) and max(sizes) - min(sizes) <= 1
        assert {(part.index, part.kind) for part in parts} == {(batch.index, batch.kind)}
        for row, position in enumerate(batch.positions.tolist()):
            assert shares[row % world_size][row // world_size] == position


def test_the_long_run_follows_class_frequencies(options: dict):
    sampler = sampler_of(LABELS, **options)
    first = options.get("bet_start_epoch", 1)
    epochs = range(first, 5 if options["sampler"] == "progressive" else first + 40)
    for kind in (None, *sampler.kinds()):
        counts = class_counts(sampler, LABELS, epochs, kind)
        share = counts / counts.sum()
        expected = sampler.class_frequencies(kind)
        assert expected.sum().item() == pytest.approx(1)
        # The random schedule's share of balanced batches has a standard deviation of .03 here.
        tolerance = 0.04 if "random" in options.values() and kind is None else 0.012
        assert (share - expected).abs().max() < tolerance, kind


@pytest.mark.parametrize("steps", [0, 1, 5, 6, 7, 13])
def test_the_cursor_continues_where_the_state_was_taken(options: dict, steps: int):
    def run(cursor: PlanCursor, count: int) -> list:
        seen: list = []
        while True:
            for batch in cursor.batches():
                seen.append((cursor.epoch, batch.index, batch.positions.tolist()))
                cursor.advance(batch)
                if len(seen) == count:  # the last batch of an epoch does not end it
                    return seen
            cursor.next_epoch()

    def new() -> PlanCursor:
        return PlanCursor(sampler_of(LABELS, **options), LABELS)

    through, cursor = run(new(), 20), new()
    length = len(cursor.sampler)
    assert [step[:2] for step in through] == [(1 + n // length, n % length) for n in range(20)]
    head = run(cursor, steps) if steps else []
    assert cursor.steps == steps
    resumed = new()
    resumed.load_state_dict(cursor.state_dict())
    assert (resumed.epoch, resumed.index) == (cursor.epoch, cursor.index)
    assert head + run(resumed, 20 - steps) == through


def _refused(cursor: PlanCursor, state: dict) -> str:
    before = (cursor.epoch, cursor.index)
    with pytest.raises(ConfigError, match=r"^resume: expected") as error:
        cursor.load_state_dict(state)
    assert (cursor.epoch, cursor.index) == before
    return str(error.value)


def test_another_plan_is_refused_by_name():
    state = PlanCursor(sampler_of(LABELS, "b3rs", blocks=3, q=0.5), LABELS).state_dict()
    other = PlanCursor(sampler_of(LABELS, "b3rs", blocks=3, q=0.25, batch_size=10), LABELS)
    text = _refused(other, state)
    assert "batch_size: 20 there, 10 now" in text
    assert "sampler_options.q: 0.5 there, 0.25 now" in text
    assert "sampler_options.r" not in text
    text = _refused(PlanCursor(sampler_of(LABELS, "instance"), LABELS), state)
    assert "sampler: 'b3rs' there, 'instance' now" in text
    assert "drop_last: 'none' there, True now" in text


def test_other_labels_are_refused_though_the_batches_are_the_same():
    state = PlanCursor(sampler_of(LABELS, "instance"), LABELS).state_dict()
    changed = LABELS.clone()
    changed[[0, 1]] = torch.tensor([3, 2])
    assert not torch.equal(changed, LABELS)
    text = _refused(PlanCursor(sampler_of(changed, "instance"), changed), state)
    assert "(labels: '" in text and "first_epoch: '" not in text


def test_other_code_of_the_sampler_is_refused():
    state = PlanCursor(sampler_of(LABELS, "b3rs", blocks=3), LABELS).state_dict()
    sampler = sampler_of(LABELS, "b3rs", blocks=3)
    sampler.batches, batches = lambda epoch, start=0: batches(epoch + 1, start), sampler.batches
    text = _refused(PlanCursor(sampler, LABELS), state)
    assert "(first_epoch: '" in text and "labels: '" not in text


@pytest.mark.parametrize("place", [{"index": 7}, {"index": -1}, {"epoch": 0}])
def test_a_place_outside_the_plan_is_refused(place: dict):
    cursor = PlanCursor(sampler_of(LABELS, "b3rs", blocks=3), LABELS)
    state = cursor.state_dict()
    assert "at most 6 batches done" in _refused(cursor, {**state, **place})
    cursor.load_state_dict({**state, "index": 6})  # all are done, and the epoch is not over
    assert list(cursor.batches()) == [] and cursor.steps == 6


def test_a_rank_that_does_not_exist():
    for rank in (-1, 2):
        with pytest.raises(ValueError, match="0 <= rank < 2"):
            rank_rows(rank, 2)


def test_a_rank_with_too_few_rows_is_an_error():
    sampler = sampler_of(LABELS, "instance", drop_last=False)
    assert sampler.smallest_batch() == 4
    for fits in (1, 2):
        check_world_size(sampler, fits)
    with pytest.raises(ConfigError, match=r"2 rows for each of the 3 processes .* a batch of 4"):
        check_world_size(sampler, 3)
    check_world_size(sampler_of(LABELS, "instance"), 10)
    with pytest.raises(ConfigError, match="a batch of 20"):
        check_world_size(sampler_of(LABELS, "instance"), 11)


def test_batches_larger_than_the_data():
    with pytest.raises(ConfigError, match="at most the 124 images left to train on"):
        sampler_of(LABELS, "b3rs", batch_size=125, blocks=3)
    sampler = sampler_of(LABELS, "b3rs", batch_size=125, blocks=3, drop_last=False)
    assert [len(b.positions) for b in sampler.batches(1)] == [125]


def test_a_class_without_images_is_never_drawn():
    labels = LABELS[LABELS != 3]
    for name in ("class-balanced", "sqrt", "b3rs"):
        sampler = sampler_of(labels, name)
        assert sampler.class_frequencies()[3] == 0
        assert (labels[epoch_positions(sampler, 1)] != 3).all()
