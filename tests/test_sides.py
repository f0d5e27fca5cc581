"""The three sides give one result; which of them serves which shape."""

import pytest
import torch

import fastwhiten
from fastwhiten import sides
from fastwhiten.functional import make_options

# Both sides in float64 on well-conditioned input: rounding only, a few hundred ulp.
TOLERANCE = {"rtol": 1e-10, "atol": 1e-11}


@pytest.fixture
def everything_wide(monkeypatch):
    """Send every ZCA batch with enough rows into the eigenbasis."""
    monkeypatch.setattr(sides, "EIGENBASIS_SIZE", 1)
    monkeypatch.setattr(sides, "EIGENBASIS_ROWS_PER_CHANNEL", 1e9)


def _side(shape, groups=1, kind="zca", batch_weight=1.0, backend="native"):
    options = make_options("test", kind, groups, 1e-3, None, None, backend, batch_weight)
    return sides.choose(torch.empty(shape, device="meta"), options)


@pytest.mark.parametrize(
    ("shape", "settings", "expected"),
    [
        ((128, 64), {}, "feature"),
        ((63, 64), {}, "sample"),
        ((64, 64), {}, "sample"),
        ((63, 64), {"groups": 2}, "feature"),
        ((63, 64), {"kind": "pca"}, "feature"),
        ((63, 64), {"kind": "cholesky"}, "feature"),
        ((63, 64), {"batch_weight": 0.5}, "feature"),
        ((512, 512), {}, "sample"),
        ((513, 512), {}, "eigenbasis"),
        ((511, 512), {"batch_weight": 0.5}, "eigenbasis"),
        ((513, 512), {"backend": "reference"}, "feature"),
        ((512, 512), {"groups": 8}, "feature"),
        ((1279, 512), {}, "eigenbasis"),
        ((1280, 512), {}, "feature"),
        ((2, 512, 7, 7), {}, "sample"),
    ],
)
def test_the_side_is_chosen_by_shape(shape, settings, expected):
    assert _side(shape, **settings) == expected


@pytest.mark.parametrize("shape", [(24, 6), (3, 6, 8), (2, 6, 3, 4)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shrinkage", [None, "oas", 0.3])
def test_eigenbasis_equals_feature_side(everything_wide, shape, groups, weighted, shrinkage):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.rand(shape[0], generator=generator, dtype=torch.float64) if weighted else None
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    results = []
    for backend in ("native", "reference"):
        leaf = x.clone().requires_grad_()
        y = fastwhiten.whiten(
            leaf, groups=groups, sample_weight=weight, shrinkage=shrinkage, backend=backend
        )
        y.backward(grad)
        results.append((y.detach(), leaf.grad))
    assert _side(shape, groups) == "eigenbasis"
    torch.testing.assert_close(results[0], results[1], **TOLERANCE)


def test_eigenbasis_derivatives(everything_wide):
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(9, dtype=torch.float64)

    def whiten(t):
        return fastwhiten.whiten(t, eps=0.1, sample_weight=weight, shrinkage=0.2, backend="native")

    assert torch.autograd.gradcheck(whiten, (x,))
    assert torch.autograd.gradgradcheck(whiten, (x,))


def test_eigenbasis_under_vmap(everything_wide):
    x = torch.randn(3, 9, 4, dtype=torch.float64)

    def gradient(t):
        return torch.func.grad(lambda u: fastwhiten.whiten(u, backend="native").pow(3).sum())(t)

    expected = torch.stack([gradient(t) for t in x])
    torch.testing.assert_close(torch.func.vmap(gradient)(x), expected, **TOLERANCE)


@pytest.mark.parametrize("running", ["covariance", "matrix"])
def test_eigenbasis_in_the_module(everything_wide, running):
    layers = [
        fastwhiten.ChannelWhitening(
            6,
            groups=2,
            affine=True,
            running=running,
            batch_weight=0.4 if running == "covariance" else 1.0,
            backend=backend,
            dtype=torch.float64,
        )
        for backend in ("native", "reference")
    ]
    x = torch.randn(16, 6, dtype=torch.float64)
    found = []
    for layer in layers:
        for _ in range(2):  # the second batch blends with statistics of the first
            leaf = x.clone().requires_grad_()
            layer(leaf).pow(3).sum().backward()
        found.append([leaf.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, **TOLERANCE)


def test_eigenbasis_with_non_finite_input():
    x = torch.randn(300, 256)
    x[3, 5] = float("nan")
    assert fastwhiten.whiten(x, backend="native").isnan().all()
