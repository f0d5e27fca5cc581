"""Evaluation follows the running statistics, whoever changes them and however."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from fastwhiten import ChannelWhitening, evaluation
from tests.helpers.evaluations import EPS, C, batch, compare, expected


def fitted(seed: int = 0, **options: Any) -> ChannelWhitening:
    layer = ChannelWhitening(C, eps=EPS, dtype=torch.float64, **options)
    layer(batch(seed))
    return layer.eval()


def test_checkpoints_one_after_another() -> None:
    """Buffers that die give their ids, addresses and versions to the next."""
    layer, x = fitted(), batch(50)
    for seed in range(60):
        state = copy.deepcopy(fitted(seed).state_dict())
        compare(layer, functional_call(layer, state, (x,)), expected(layer, state, x))


@pytest.mark.parametrize("running", ["covariance", "matrix"])
@pytest.mark.parametrize("groups", [1, 2])
def test_vmap_over_states_leaves_the_layer_alone(running: str, groups: int) -> None:
    layer, x = fitted(running=running, groups=groups), batch(50)
    states = [fitted(seed, running=running, groups=groups).state_dict() for seed in range(20)]
    stacked = {name: torch.stack([s[name] for s in states]) for name in states[0]}
    y = torch.vmap(lambda s: functional_call(layer, s, (x,)))(stacked)
    for state, part in zip(states, y, strict=True):
        compare(layer, part, expected(layer, state, x))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer):
        compare(other, other(x), expected(layer, layer.state_dict(), x))


@pytest.mark.parametrize("through", [torch.func.grad, torch.func.jacrev, torch.vmap])
def test_transforms_leave_no_wrapped_matrix_behind(through: Any) -> None:
    layer, x = fitted(), batch(50)
    layer.running_cov = layer.running_cov * 2
    through(lambda t: layer(t.reshape(-1, C)).sum())(x)
    compare(layer, layer(x), expected(layer, layer.state_dict(), x))


def test_a_non_contiguous_covariance_and_parts_of_one_storage() -> None:
    layer, x = fitted(groups=2), batch(50)
    for cov in (layer.running_cov.mT, torch.stack([layer.running_cov, 3 * layer.running_cov], 3)):
        for part in cov.unbind(3) if cov.dim() == 4 else [cov]:
            for scale in (1.0, 2.0):
                layer.running_cov = part.mul_(scale)
                compare(layer, layer(x), expected(layer, layer.state_dict(), x))


def test_one_buffer_of_two_layers() -> None:
    zca, cholesky, x = fitted(), fitted(1, kind="cholesky"), batch(50)
    cholesky.running_cov = zca.running_cov
    for layer in (zca, cholesky, zca):
        compare(layer, layer(x), expected(layer, layer.state_dict(), x))


def test_the_matrix_dies_with_its_covariance() -> None:
    layer, x = fitted(), batch(1)
    for seed in range(40):
        fitted(seed)(x)
        functional_call(layer, copy.deepcopy(layer.state_dict()), (x,))
    layer(x)
    mine = layer.running_cov.untyped_storage()._cdata
    assert mine in {storage for storage, _ in evaluation._remembered}
    fitted(50)(x)
    alive = [e for e in evaluation._remembered.values() if not e.storage.expired()]
    assert len(evaluation._remembered) <= len(alive) + 1 <= 10


def test_trained_after_evaluation_in_inference_mode() -> None:
    """Also what was saved for a backward outside: the matrix, the running matrix."""
    for running in ("covariance", "matrix"):
        with torch.inference_mode():
            layer = fitted(running=running)
            layer(batch(1))
        x = batch(2).requires_grad_()
        layer(x).sum().backward()
        assert x.grad is not None
        before = layer.running_mean.clone()
        layer.train()(batch(3).requires_grad_()).sum().backward()
        assert not torch.equal(layer.running_mean, before)


def test_an_update_between_evaluation_and_backward() -> None:
    for running in ("covariance", "matrix"):
        layer, x = fitted(running=running), batch(2).requires_grad_()
        y = layer(x)
        jacobian = torch.func.jacrev(lambda t, layer=layer: layer(t).sum(0))(x.detach())
        layer.train()(batch(3))
        y.sum(0)[1].backward()
        torch.testing.assert_close(x.grad, jacobian[1])


@pytest.mark.parametrize("evaluates", ["model", "average"])
def test_averaged_model(evaluates: str) -> None:
    model = nn.Sequential(nn.Linear(C, C), ChannelWhitening(C, batch_weight=0.5)).double()
    average = AveragedModel(model)
    for seed in range(3):
        model.train()(batch(seed))
        (model if evaluates == "model" else average).eval()(batch(seed))
        average.update_parameters(model)
    model.eval(), average.eval()
    assert torch.equal(average(batch(9)), model(batch(9)))


def test_float64_inside_a_float32_layer_is_nowhere_outside() -> None:
    layer = ChannelWhitening(C, batch_weight=0.5, statistics_dtype=torch.float64)
    layer(batch(0).float())
    layer.eval()(batch(0).float())
    assert {t.dtype for t in layer.buffers()} == {torch.float32, torch.int64}
    layer.double(), layer.float(), layer.reset_running_stats()
    assert {t.dtype for t in layer.buffers()} == {torch.float32, torch.int64}


def test_never_fitted_is_said_once() -> None:
    layer = ChannelWhitening(C).eval()
    with pytest.warns(RuntimeWarning, match="before any training step"):
        layer(batch(0).float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(batch(0).float())
        layer.train()(batch(0).float())
        layer.eval()(batch(0).float())
        by_hand = ChannelWhitening(C)  # nothing counted, but something set
        by_hand.running_cov.mul_(2)
        by_hand.eval()(batch(0).float())
        torch.vmap(ChannelWhitening(C).eval())(batch(0).float().unsqueeze(0))
        ChannelWhitening(C, device="meta").eval()(batch(0).float().to("meta"))


@pytest.mark.parametrize("running", ["covariance", "matrix"])
def test_fewer_rows_than_channels_are_said_once_with_true_numbers(running: Any) -> None:
    rows, channels = 32, 256
    stream = torch.randn(80 * rows, channels)
    layer = ChannelWhitening(channels, running=running)
    with pytest.warns(RuntimeWarning, match="training on 32 rows") as caught:
        layer(stream[:rows])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in stream.split(rows):
            trained = layer(part).std()
        evaluated = layer.eval()(stream).std()
    text = str(caught[0].message)
    training, evaluation = re.search(
        r"about ([\d.]+) in training and of (.*) in eval", text
    ).groups()
    assert trained == pytest.approx(float(training), rel=0.03)
    number = float(re.search(r"\d+", evaluation).group())
    assert 0.7 * number < evaluated < (1.4 if running == "covariance" else 1.0) * number
    groups = int(re.search(r"groups=(\d+)", text).group(1))
    grouped = ChannelWhitening(channels, groups=groups, running=running)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in stream.split(rows):
            trained = grouped(part).std()
    assert trained == pytest.approx(1, rel=0.03)
    assert grouped.eval()(stream).std() == pytest.approx(
        1, rel=0.15 if running == "covariance" else 0.5
    )


@pytest.mark.parametrize(
    ("rows", "options"),
    [(9, {}), (8, {"batch_weight": 0.5}), (8, {"shrinkage": "oas"}), (8, {"groups": 2})],
)
def test_a_few_rows_that_are_enough_or_made_up_for(rows: int, options: dict[str, Any]) -> None:
    layer = ChannelWhitening(8, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.randn(rows, 8))
        layer(torch.randn(2, 8))  # the short last batch of an epoch
        ChannelWhitening(8, track_running_stats=False)(torch.randn(4, 8))


def test_settings_that_are_changed_later_count_in_both_modes() -> None:
    changed = ChannelWhitening(C, dtype=torch.float64, batch_weight=0.9)
    settings = {"eps": 0.3, "kind": "cholesky", "shrinkage": 0.2, "batch_weight": 0.4}
    truth = ChannelWhitening(C, dtype=torch.float64, **settings)
    for name, value in settings.items():
        setattr(changed, name, value)
    for _ in range(2):
        assert torch.equal(changed(batch(0)), truth(batch(0)))
    assert torch.equal(changed.eval()(batch(1)), truth.eval()(batch(1)))
    changed.eps = 0.5
    assert not torch.equal(changed(batch(1)), truth(batch(1)))
    with pytest.raises(ValueError, match="expected eps to be a finite number > 0"):
        changed.eps = 0.0


def test_a_captured_evaluation_takes_the_version_and_remembers_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = fitted(), batch(1)
    kept = layer(x)
    monkeypatch.setattr(evaluation, "_is_captured", lambda t: True)
    monkeypatch.setattr(evaluation, "_memcmp", None)
    assert torch.equal(layer(x), kept)
    layer.running_cov.mul_(2)
    before = dict(evaluation._remembered)
    compare(layer, layer(x), expected(layer, layer.state_dict(), x))
    assert dict(evaluation._remembered) == before
