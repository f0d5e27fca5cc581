"""Channels in another dimension than 1: what moving them there and back gives, without the copy."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import fastwhiten
from fastwhiten import ChannelWhitening
from fastwhiten.layout import as_rows_or_planes, channels_back, channels_second
from tests.helpers import plain, spectra

C = 4


def tokens(channel_dim: int = -1, *others: int) -> Tensor:
    """Float64 ``[5, 7, C]``, or ``C`` among other dimensions, contiguous."""
    others = others or (5, 7)
    rows = spectra.random(torch.Size(others).numel(), C)
    return rows.reshape(*others, C).movedim(-1, channel_dim).contiguous()


@pytest.mark.parametrize(
    ("channel_dim", "others", "view"),
    [(-1, (5, 7), (35, C)), (-1, (5, 1), (5, C)), (-1, (6,), (6, C)), (3, (2, 3, 4), (24, C))],
)
def test_contiguous_tokens_are_rows(
    channel_dim: int, others: tuple[int, ...], view: tuple[int, ...], backend: str
) -> None:
    x = tokens(channel_dim, *others)
    rows = as_rows_or_planes(channels_second(x, channel_dim))
    assert rows.shape == view and rows.data_ptr() == x.data_ptr()
    y, dx = plain.value_and_grad(
        fastwhiten.whiten, x, torch.randn_like(x), channel_dim=channel_dim, backend=backend
    )
    assert y.is_contiguous() and dx.is_contiguous()


@pytest.mark.parametrize("channel_dim", [-1, 2, 0, -2])
@pytest.mark.parametrize("weighted", ["rows alike", "samples", "positions"])
@pytest.mark.parametrize("others", [(5, 7), (3, 1)], ids=["feature side", "sample side"])
def test_value_gradient_and_statistics(
    channel_dim: int, weighted: str, others: tuple[int, int], backend: str
) -> None:
    x, weight = tokens(channel_dim, *others), None
    if weighted != "rows alike":
        weight = torch.rand(others[: 1 if weighted == "samples" else 2], dtype=torch.float64)
        weight[..., 4:] = 0.0  # padding
    grad, second = torch.randn_like(x), x.movedim(channel_dim, 1)
    expected = plain.value_and_grad(
        plain.whiten, second, grad.movedim(channel_dim, 1), sample_weight=weight, route="iteration"
    )
    ours = plain.value_and_grad(
        fastwhiten.whiten, x, grad, channel_dim=channel_dim, sample_weight=weight, backend=backend
    )
    for a, b in zip(ours, expected, strict=True):
        # Inverse roots of numbers down to eps = 1e-3, in float64.
        torch.testing.assert_close(a.movedim(channel_dim, 1), b, rtol=1e-9, atol=1e-9)
    mean, covariance = fastwhiten.batch_statistics(
        x, channel_dim=channel_dim, sample_weight=weight, backend=backend
    )
    p = plain.probabilities(weight, second, torch.float64)
    expected = plain.covariance(plain.to_rows(second), p)
    torch.testing.assert_close((mean, covariance[0]), expected, rtol=0.0, atol=1e-12)


LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "affine, blended": {"affine": True, "batch_weight": 0.5, "groups": 2},
    "matrix": {"running": "matrix", "kind": "cholesky"},
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("channel_dim", [-1, 0])
def test_layer(name: str, channel_dim: int, backend: str) -> None:
    factory = {"dtype": torch.float64, "backend": backend, **LAYERS[name]}
    layer = ChannelWhitening(C, channel_dim=channel_dim, **factory)
    second = ChannelWhitening(C, **factory)
    x, weight = tokens(channel_dim), torch.rand(5, 7, dtype=torch.float64)
    for training in (True, False):
        layer.train(training), second.train(training)
        for w in (None, weight):
            y = layer(x, w)
            expected = second(x.movedim(channel_dim, 1).contiguous(), w)
            torch.testing.assert_close(y.movedim(channel_dim, 1), expected, rtol=0.0, atol=1e-11)
    torch.testing.assert_close(layer.state_dict(), second.state_dict(), rtol=0.0, atol=1e-11)
    torch.testing.assert_close(layer.inverse(y), x, rtol=0.0, atol=1e-11)
    second.load_state_dict(layer.state_dict())
    assert f"channel_dim={channel_dim}" in repr(layer) and "channel_dim" not in repr(second)


@pytest.mark.parametrize("backend", ["reference", "native"])  # interpreted it takes a minute
def test_second_derivatives_and_vmap(backend: str) -> None:
    def whiten(t: Tensor) -> Tensor:
        return fastwhiten.whiten(t, channel_dim=-1, eps=0.1, backend=backend)

    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(whiten, (x,), atol=1e-4)
    several = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    expected = torch.stack([whiten(t) for t in several])
    torch.testing.assert_close(torch.vmap(whiten)(several), expected, rtol=0.0, atol=1e-11)
    assert torch.func.jacrev(whiten)(x.detach()).shape == (2, 4, 3, 2, 4, 3)


@pytest.mark.slow
def test_compiled_and_exported_for_any_length(backend: str) -> None:
    layer = ChannelWhitening(C, channel_dim=-1, dtype=torch.float64, backend=backend)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (7, 9):
        x = tokens(-1, 5, length)
        expected = fastwhiten.whiten(x, channel_dim=-1, backend=backend)
        torch.testing.assert_close(compiled(x), expected, rtol=0.0, atol=1e-11)
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}
    program = torch.export.export(layer.eval(), (x,), dynamic_shapes=(sizes,))
    for others in ((5, 9), (1, 2), (3, 1)):
        x = tokens(-1, *others)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=0.0, atol=1e-11)


def test_a_layer_pickled_before_there_was_the_option() -> None:
    layer = ChannelWhitening(C)
    del layer.__dict__["channel_dim"]
    old = pickle.loads(pickle.dumps(layer))
    assert repr(old) == repr(ChannelWhitening(C))
    x = torch.randn(20, C)
    assert torch.equal(old(x), ChannelWhitening(C)(x))


def test_back_undoes_second() -> None:
    for channel_dim in (-1, 0, 1, 2):
        x = tokens(channel_dim)
        assert torch.equal(channels_back(channels_second(x, channel_dim), channel_dim), x)
