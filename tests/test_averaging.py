"""``update_statistics`` against the averages of a plain float64 computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

import fastwhiten
from fastwhiten import ChannelWhitening
from tests.helpers import plain, spectra


def covariances(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    p = plain.probabilities(None, x, x.dtype)
    pairs = [plain.covariance(part, p) for part in plain.to_rows(x).chunk(groups, 1)]
    return torch.cat([m for m, _ in pairs]), torch.stack([s for _, s in pairs])


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 6),
        ChannelWhitening(6, groups=2, momentum=0.3),
        nn.BatchNorm1d(6, momentum=0.2),
        nn.Dropout(),
        nn.Sequential(nn.Linear(6, 4), ChannelWhitening(4, running="matrix", momentum=None)),
    ).double()


BATCHES = [spectra.random(30, 5, seed) for seed in range(4)]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 0), lambda x: [x]])
def test_statistics_are_the_averages_over_the_batches(wrap: Any) -> None:
    model = make()
    model[3].p = 0.0
    model(spectra.random(30, 5, 9))  # forgotten
    fastwhiten.update_statistics(model, [wrap(x) for x in BATCHES], device="cpu")
    inside = [model[0](x).detach() for x in BATCHES]
    first = [covariances(x, 2) for x in inside]
    close = torch.testing.assert_close
    close(model[1].running_mean, torch.stack([m for m, _ in first]).mean(0))
    close(model[1].running_cov, torch.stack([s for _, s in first]).mean(0))
    inside = [plain.whiten(x, groups=2) for x in inside]
    close(model[2].running_var, torch.stack([x.var(0) for x in inside]).mean(0))
    inside = [(x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in inside]
    last = [covariances(model[4][0](x).detach(), 1)[1][0] for x in inside]
    matrices = [plain.whitening_matrix(s, "zca", 1e-3, "eigh") for s in last]
    close(model[4][1].running_matrix[0], torch.stack(matrices).mean(0))
    assert model[1].num_batches_tracked == model[4][1].num_batches_tracked == 4


def test_an_averaged_model_evaluates_with_them() -> None:
    """What update_bn leaves as the identity, in silence."""
    alone = ChannelWhitening(5, dtype=torch.float64)
    update_bn(BATCHES, alone)
    assert alone.num_batches_tracked == 0
    average = AveragedModel(make()).eval()
    fastwhiten.update_statistics(average, BATCHES)
    assert not average.training
    rows = average.module[0](torch.cat(BATCHES))
    white = average.module[1](rows)
    for part in white.detach().chunk(2, 1):
        covariance = (part - part.mean(0)).T @ (part - part.mean(0)) / len(part)
        assert (covariance - torch.eye(3)).norm() < 0.5  # batches differ in their means


def test_modes_and_momenta_are_restored_after_an_error_too() -> None:
    model = make()
    model.train()
    model[3].eval(), model[4].eval()
    modes = [m.training for m in model.modules()]
    for batches in (BATCHES, [BATCHES[0], torch.zeros(3, 7).double()]):
        try:
            fastwhiten.update_statistics(model, batches)
        except RuntimeError:
            assert batches is not BATCHES
        assert [m.training for m in model.modules()] == modes
        assert (model[1].momentum, model[2].momentum, model[4][1].momentum) == (0.3, 0.2, None)


def test_nothing_to_update_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected a model with ChannelWhitening or BatchNorm"):
        fastwhiten.update_statistics(nn.Linear(2, 2), BATCHES)
    with pytest.raises(ValueError, match="that track running statistics, got ChannelWhitening"):
        fastwhiten.update_statistics(ChannelWhitening(2, track_running_stats=False), BATCHES)
    model = make()
    model(BATCHES[0])
    before = model[1].running_cov.clone()
    with pytest.raises(ValueError, match="at least one batch, got none"):
        fastwhiten.update_statistics(model, [])
    assert torch.equal(model[1].running_cov, before)


def test_nothing_is_kept_of_the_passes() -> None:
    layer = ChannelWhitening(5, batch_weight=0.5, dtype=torch.float64)
    fastwhiten.update_statistics(layer, BATCHES)
    assert not layer._first_passes._kept
