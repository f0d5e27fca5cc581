"""Losses against hand-computed cases, finite differences and each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from tests.helpers.long_tail import labels_of, sampler_of
from training.config import TrainConfig
from training.config.loss import LOSS_OPTIONS
from training.errors import ConfigError
from training.losses import (
    LDAM,
    ClassBalanced,
    CrossEntropy,
    Focal,
    LogitAdjusted,
    build_loss,
    effective_weights,
    evaluation_loss,
)
from training.losses.build import drw_epoch

COUNTS = torch.tensor([16, 1])
LOG3 = math.log(3)


def _loss(name: str, **options: object) -> torch.nn.Module:
    config = TrainConfig(loss=name)
    for option, value in options.items():
        setattr(config.loss_options, option, value)
    return build_loss(config, COUNTS)


def _value(loss: torch.nn.Module, logits: list[list[float]], labels: list[int], *kind) -> float:
    return loss(torch.tensor(logits), torch.tensor(labels), *kind).item()


def test_cross_entropy_by_hand():
    # Probabilities 1/4, 3/4.
    value = _value(_loss("ce"), [[0.0, LOG3], [0.0, LOG3]], [0, 1])
    assert value == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_by_hand(gamma: float):
    # p = 1/4 and 3/4: (3/4)^gamma log 4 and (1/4)^gamma log 4/3.
    value = _value(_loss("focal", gamma=gamma), [[0.0, LOG3], [0.0, LOG3]], [0, 1])
    assert value == pytest.approx(
        (0.75**gamma * math.log(4) + 0.25**gamma * math.log(4 / 3)) / 2, rel=1e-6
    )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_of_a_certain_row_is_zero_with_a_zero_gradient(gamma: float):
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)  # p = 1 in float32
    loss = Focal(gamma)(logits, torch.tensor([0]))
    loss.backward()
    assert (loss.item(), logits.grad.tolist()) == (0.0, [[0.0, 0.0]])


def test_effective_weights_by_hand():
    # beta = 1/2, counts 3 and 1: effective numbers 7/4 and 1, inverse 4/7 and 1, of mean 11/14.
    assert effective_weights(torch.tensor([3, 1]), 0.5).tolist() == pytest.approx([8 / 11, 14 / 11])
    assert effective_weights(torch.tensor([3, 1]), 0.0).tolist() == [1.0, 1.0]
    # Towards beta = 1 they are inverse to the counts.
    weights = effective_weights(torch.tensor([500, 5]), 1 - 1e-9)
    assert (weights[1] / weights[0]).item() == pytest.approx(100, rel=1e-3)


def test_effective_weights_of_cifar10_lt():
    # Cao et al.'s code in numpy: (1 - b) / (1 - b^n), divided by the sum, times 10.
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    per_class = [(1 - 0.9999) / (1 - 0.9999**n) for n in counts]
    expected = [w / sum(per_class) * 10 for w in per_class]
    assert effective_weights(torch.tensor(counts), 0.9999).tolist() == pytest.approx(expected)


def test_class_balanced_by_hand():
    # beta = 1/2, counts 16 and 1: weights in the ratio 1 : (2 - 2^-15) to within 1e-4.
    ratio = 2 - 2**-15
    value = _value(_loss("cb", beta=0.5), [[0.0, LOG3], [0.0, LOG3]], [0, 1])
    expected = (math.log(4) + ratio * math.log(4 / 3)) / (1 + ratio)
    assert value == pytest.approx(expected, rel=1e-6)


def test_ldam_by_hand():
    # Margins 1/4 and 1/2 of the cosine, s = 2: logits (1, 0) with label 0 become (1/2, 0).
    loss = _loss("ldam", s=2.0)
    assert loss.margins.tolist() == pytest.approx([0.5, 1.0])
    assert _value(loss, [[1.0, 0.0]], [0]) == pytest.approx(math.log(1 + math.exp(-0.5)))
    assert _value(loss, [[1.0, 0.0]], [1]) == pytest.approx(math.log(1 + math.exp(2.0)))


def test_ldam_margins_of_cifar10_lt():
    counts = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
    margins = LDAM(counts, max_m=0.5, s=30.0).margins / 30
    assert margins[-1].item() == pytest.approx(0.5)
    assert margins[0].item() == pytest.approx(0.5 / 100**0.25)


def test_ldam_drw_weights_from_the_epoch_on():
    loss = _loss("ldam-drw", s=2.0, beta=0.5, drw_epoch=3)
    plain = _loss("ldam", s=2.0)
    logits, labels = [[1.0, 0.0], [1.0, 0.0]], [0, 1]
    before = _value(plain, logits, labels)
    rows = [_value(plain, [row], [label]) for row, label in zip(logits, labels, strict=True)]
    ratio = 2 - 2**-15
    after = (rows[0] + ratio * rows[1]) / (1 + ratio)
    for epoch, expected in ((1, before), (2, before), (3, after), (4, after), (2, before)):
        loss.set_epoch(epoch)
        assert _value(loss, logits, labels) == pytest.approx(expected, rel=1e-6)
    plain.set_epoch(4)
    assert _value(plain, logits, labels) == before


def test_drw_begins_after_four_fifths():
    assert [drw_epoch(epochs) for epochs in (200, 100, 10, 4, 1)] == [161, 81, 9, 4, 1]
    config = TrainConfig(loss="ldam-drw")
    config.optim.epochs = 50
    assert build_loss(config, COUNTS).drw_epoch == 41


def test_logit_adjustment_by_hand():
    # Counts 3 and 1: priors 3/4 and 1/4. Logits (0, log 3) become (log 3/4, log 3 + log 1/4): both
    # classes have probability 1/2, so the loss is log 2 whatever the label.
    loss = LogitAdjusted(torch.tensor([3, 1]), tau=1.0)
    assert _value(loss, [[0.0, LOG3]] * 2, [0, 1]) == pytest.approx(math.log(2), abs=1e-6)
    # tau = 2: exp of the adjustment is 9/16 and 1/16, so label 1 has probability 1/10.
    loss = LogitAdjusted(torch.tensor([3, 1]), tau=2.0)
    assert _value(loss, [[0.0, 0.0]], [1]) == pytest.approx(math.log(10), abs=1e-6)


def test_balanced_softmax_adds_the_log_counts():
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1] * 4)
    expected = functional.cross_entropy(logits + COUNTS.log(), labels)
    assert torch.allclose(_loss("balanced-softmax")(logits, labels), expected)
    assert torch.allclose(_loss("logit-adjusted", tau=1.0)(logits, labels), expected)


LABELS = labels_of([12, 6, 2])  # 20 images
CLASS_COUNTS = torch.tensor([12, 6, 2])


def _adjusted(prior: str, **options: object) -> torch.nn.Module:
    config = TrainConfig(loss="balanced-softmax")
    config.loss_options.prior = prior
    return build_loss(config, CLASS_COUNTS, sampler_of(LABELS, batch_size=10, **options))


def test_priors_by_hand():
    # Ordinary batches: (.6, .3, .1). Balanced: 1/3 each. Every second one is balanced.
    bet = {"sampler": "class-balanced", "bet_period": 2}
    dataset = torch.tensor([0.6, 0.3, 0.1]).log()
    effective = ((torch.tensor([0.6, 0.3, 0.1]) + 1 / 3) / 2).log()
    equal = torch.full((3,), 1 / 3).log()
    for prior, ordinary, balanced in (
        ("dataset", dataset, dataset),
        ("effective", effective, effective),
        ("batch", dataset, equal),
    ):
        loss = _adjusted(prior, **bet)
        for kind, adjustment in (("ordinary", ordinary), ("balanced", balanced)):
            for label in range(3):
                found = _value(loss, [[0.0] * 3], [label], kind)
                assert found == pytest.approx(-adjustment[label].item(), abs=1e-6)


def test_priors_without_bet():
    for prior in ("effective", "batch"):
        loss = _adjusted(prior, sampler="instance")
        assert torch.allclose(loss.adjustment, torch.tensor([0.6, 0.3, 0.1]).log())
        loss = _adjusted(prior, sampler="class-balanced")
        equal = torch.full((3,), 1 / 3).log()
        assert torch.allclose(loss.adjustment, equal)
        assert torch.allclose(loss.balanced_adjustment, equal)
    config = TrainConfig(loss="balanced-softmax")
    config.loss_options.prior = "effective"
    with pytest.raises(ValueError, match="expected a sampler"):
        build_loss(config, CLASS_COUNTS)


def test_a_prior_of_zero_is_an_error():
    counts = torch.tensor([3, 0, 1])
    for name in ("cb", "ldam", "balanced-softmax", "logit-adjusted"):
        with pytest.raises(ConfigError, match=r"got none of the classes \[1\]"):
            build_loss(TrainConfig(loss=name), counts)
    for name in ("ce", "focal"):
        build_loss(TrainConfig(loss=name), counts)
    config = TrainConfig(loss="logit-adjusted", sampler="b3rs")
    config.loss_options.prior = "effective"
    never = sampler_of(LABELS, "b3rs", batch_size=10, blocks=2, b_min=0, block_weights=[1.0, 1e-9])
    with pytest.raises(ConfigError, match=r"^prior: .* got none of the classes \[2\]"):
        build_loss(config, CLASS_COUNTS, never)


@pytest.mark.parametrize("name", list(LOSS_OPTIONS))
@pytest.mark.parametrize("kind", ["ordinary", "balanced"])
def test_gradients_by_finite_differences(name: str, kind: str):
    config = TrainConfig(loss=name, sampler="class-balanced", bet_period=2)
    if name == "balanced-softmax":
        config.loss_options.prior = "batch"
    sampler = sampler_of(LABELS, "class-balanced", batch_size=10, bet_period=2)
    loss = build_loss(config, CLASS_COUNTS, sampler).double()
    loss.set_epoch(100)
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    assert torch.autograd.gradcheck(
        lambda x: loss(x, labels, kind), logits.requires_grad_(True), atol=1e-7
    )


@pytest.mark.parametrize("name", list(LOSS_OPTIONS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(name: str, dtype: torch.dtype):
    loss = _loss(name)
    loss.set_epoch(100)
    logits = 5 * torch.randn(64, 2, generator=torch.Generator().manual_seed(2))
    labels = torch.randint(2, (64,), generator=torch.Generator().manual_seed(3))
    half = logits.to(dtype).requires_grad_(True)
    value = loss(half, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(half.detach().float(), labels))
    value.backward()
    assert half.grad.dtype == dtype
    assert evaluation_loss(half, labels).dtype == torch.float32


@pytest.mark.parametrize("name", list(LOSS_OPTIONS))
def test_shards_recombine_to_the_loss_of_the_whole_batch(name: str):
    """Each part's mean, weighted with its denominator, is the global mean (see the docstring)."""
    loss = _loss(name).double()
    loss.set_epoch(100)
    logits = torch.randn(11, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0])
    parts = [slice(rank, None, 3) for rank in range(3)]
    denominators = [loss.denominator(labels[part]) for part in parts]
    combined = sum(
        loss(logits[part], labels[part]) * denominator
        for part, denominator in zip(parts, denominators, strict=True)
    ) / sum(denominators)
    assert torch.allclose(combined, loss(logits, labels), rtol=1e-7)


@pytest.mark.parametrize("name", list(LOSS_OPTIONS))
def test_buffers_move_with_the_module(name: str):
    loss = _loss(name).to("meta")
    assert not list(loss.parameters())
    assert all(buffer.device.type == "meta" for buffer in loss.buffers())
    named = {"ce": 0, "focal": 0, "cb": 1, "ldam": 1, "ldam-drw": 2}
    assert len(list(loss.buffers())) == named.get(name, 2)


def test_every_name_builds_its_class():
    classes = {
        "ce": CrossEntropy,
        "focal": Focal,
        "cb": ClassBalanced,
        "ldam": LDAM,
        "ldam-drw": LDAM,
        "balanced-softmax": LogitAdjusted,
        "logit-adjusted": LogitAdjusted,
    }
    for name, cls in classes.items():
        assert type(_loss(name)) is cls
    assert _loss("balanced-softmax").adjustment[1].item() == pytest.approx(math.log(1 / 17))
    assert _loss("logit-adjusted", tau=0.5).adjustment[1].item() == pytest.approx(
        0.5 * math.log(1 / 17)
    )
    assert torch.equal(
        _loss("logit-adjusted", tau=0.0)(torch.eye(2), torch.tensor([0, 1])),
        _loss("ce")(torch.eye(2), torch.tensor([0, 1])),
    )
