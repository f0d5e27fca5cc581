"""Activation checkpointing gives the gradients, and the statistics, of a run without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastwhiten import ChannelWhitening, recomputation
from tests.helpers import spectra

C = 8
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "blended": {"batch_weight": 0.3},
    "blended, groups, affine, shrunk": {
        "batch_weight": 0.3,
        "groups": 2,
        "affine": True,
        "shrinkage": "oas",
    },
    "blended, cumulative": {"batch_weight": 0.5, "momentum": None, "kind": "cholesky"},
    "running matrix": {"running": "matrix"},
}


class Network(nn.Module):
    """Two layers in one checkpointed block, so that one's output is the other's input."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, C)
        self.block = nn.Sequential(
            ChannelWhitening(C, **options), nn.Linear(C, C), nn.Tanh(), nn.Linear(C, C),
            ChannelWhitening(C, **options), nn.Tanh(),
        )  # fmt: skip
        self.last = nn.Linear(C, 3)
        self.double()

    def forward(self, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        return self.last(run(self.block, self.first(x))).square().mean()


def plain(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


def checkpointed(reentrant: bool) -> Callable[..., Tensor]:
    return lambda block, x: checkpoint(block, x, use_reentrant=reentrant)


def train(model: Network, run: Callable[..., Tensor], passes: int) -> None:
    """Steps of as many forwards, then their backwards together or one by one, in turn."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(4):
        optimizer.zero_grad()
        batches = [spectra.random(20, 5, 10 * step + i) for i in range(passes)]
        if step == 3 and passes > 1:
            batches[1] = batches[0]  # the same batch, blended with other statistics
        losses = [model(x, run) for x in batches]
        if step % 2:
            sum(losses).backward()
        else:
            for loss in losses:
                loss.backward()
        optimizer.step()


def assert_equal(model: Network, truth: Network) -> None:
    for (name, t), expected in zip(
        model.state_dict().items(), truth.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(t, expected, rtol=0, atol=1e-11, msg=name)
    for p, expected in zip(model.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_checkpointed_training(name: str, passes: int, reentrant: bool) -> None:
    model, truth = Network(OPTIONS[name]), Network(OPTIONS[name])
    train(model, checkpointed(reentrant), passes)
    train(truth, plain, passes)
    assert_equal(model, truth)
    assert model.block[0].num_batches_tracked == 4 * passes, "moved once, by the first pass"


@pytest.mark.parametrize("reentrant", [True, False])
def test_maps_in_blocks_of_blocks(reentrant: bool) -> None:
    run = checkpointed(reentrant)
    results = []
    for used in (run, plain):
        torch.manual_seed(0)
        layer = ChannelWhitening(C, batch_weight=0.3, dtype=torch.float64)
        x = torch.randn(3, C, 4, 5, dtype=torch.float64, requires_grad=True)
        y = used(lambda t, used=used, layer=layer: used(layer, t.tanh()).tanh(), x)
        (y * torch.linspace(-1, 1, 5)).sum().backward()
        results.append((x.grad, layer.running_cov.clone()))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_graph_that_is_used_twice(reentrant: bool) -> None:
    layer = ChannelWhitening(C, batch_weight=0.3, dtype=torch.float64)
    x = spectra.random(20, C).requires_grad_()
    loss = checkpoint(layer, x, use_reentrant=reentrant)[:, 0].pow(3).sum()
    loss.backward(retain_graph=True)
    once, x.grad = x.grad, None
    loss.backward()
    torch.testing.assert_close(x.grad, once)


def test_nothing_is_kept_without_checkpointing() -> None:
    layer = ChannelWhitening(C, batch_weight=0.3)
    for seed in range(3):
        layer(spectra.random(20, C, seed).float().requires_grad_()).sum().backward()
    assert not layer._first_passes._kept
    checkpoint(layer, spectra.random(20, C).float().requires_grad_(), use_reentrant=False)
    assert len(layer._first_passes._kept) == 1
    assert not copy.deepcopy(layer)._first_passes._kept
    assert not layer._replicate_for_data_parallel()._first_passes._kept


@pytest.mark.slow
def test_a_compiled_checkpoint_is_right_or_refused() -> None:
    x = spectra.random(20, C)

    def loss(t: Tensor, layer: nn.Module, run: Callable[..., Tensor]) -> Tensor:
        return run(layer, t.tanh()).pow(3).sum()

    layer = ChannelWhitening(C, batch_weight=0.3, dtype=torch.float64)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="no activation checkpoint around a compiled layer"):
        compiled(x.clone().requires_grad_(), layer, checkpointed(False))
    torch._dynamo.reset()
    pairs = [(layer, plain), (ChannelWhitening(C, dtype=torch.float64), checkpointed(False))]
    for used, run in pairs:
        expected = copy.deepcopy(used)
        ours, truth = x.clone().requires_grad_(), x.clone().requires_grad_()
        compiled(ours, used, run).backward()
        loss(truth, expected, plain).backward()
        torch.testing.assert_close(ours.grad, truth.grad, rtol=0, atol=1e-11)
        assert used.num_batches_tracked == 1


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_compiled_layer_refuses_to_be_repeated(reentrant: bool) -> None:
    layer = torch.compile(ChannelWhitening(C, batch_weight=0.3), backend="aot_eager")
    x = spectra.random(20, C).float().requires_grad_()
    y = checkpoint(layer, x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="no activation checkpoint around a compiled layer"):
        y.sum().backward()


@pytest.mark.parametrize("forwards", [recomputation.MOST, recomputation.MOST + 1])
def test_more_first_passes_than_are_kept(forwards: int) -> None:
    """A repetition whose first pass is forgotten says so; the others are right."""
    layer, gradients = ChannelWhitening(C, batch_weight=0.3, dtype=torch.float64), []
    expected = copy.deepcopy(layer)
    inputs = [spectra.random(20, C, seed).requires_grad_() for seed in range(forwards)]
    waiting = [checkpoint(layer, x, use_reentrant=False)[:, 0].pow(3).sum() for x in inputs]
    for x, loss in zip(inputs, [expected(x)[:, 0].pow(3).sum() for x in inputs], strict=True):
        gradients += torch.autograd.grad(loss, x)
    kept = forwards - recomputation.MOST
    if kept:
        with pytest.raises(RuntimeError, match="expected at most 32 forwards"):
            waiting[0].backward()
    for x, loss, gradient in list(zip(inputs, waiting, gradients, strict=True))[kept:]:
        torch.testing.assert_close(torch.autograd.grad(loss, x)[0], gradient)


def test_batch_norm_moves_twice() -> None:
    """What the documentation says of nn.BatchNorm."""
    layer = nn.BatchNorm1d(C, dtype=torch.float64)
    checkpoint(layer, spectra.random(20, C).requires_grad_(), use_reentrant=False).sum().backward()
    assert layer.num_batches_tracked == 2
