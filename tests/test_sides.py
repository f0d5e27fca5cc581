"""The two sides give one result; which of them serves which shape."""

import pytest
import torch

import fastwhiten
from fastwhiten import sides
from fastwhiten.functional import make_options

# Both sides in float64 on well-conditioned input: rounding only, a few hundred ulp.
TOLERANCE = {"rtol": 1e-10, "atol": 1e-11}


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
        ((513, 512), {}, "feature"),
        ((511, 512), {"batch_weight": 0.5}, "feature"),
        ((512, 512), {"groups": 8}, "feature"),
        ((2, 512, 7, 7), {}, "sample"),
    ],
)
def test_the_side_is_chosen_by_shape(shape, settings, expected):
    assert _side(shape, **settings) == expected


@pytest.mark.parametrize("shape", [(40, 64), (64, 64), (200, 300), (300, 300)])
def test_both_sides_give_one_result(monkeypatch, shape, backend):
    x, grad = torch.randn(2, *shape, dtype=torch.float64)
    results = []
    for side in ("sample", "feature"):
        monkeypatch.setattr(sides, "choose", lambda x, options, side=side: side)
        leaf = x.clone().requires_grad_()
        y = fastwhiten.whiten(leaf, backend=backend)
        y.backward(grad)
        results.append((y.detach(), leaf.grad))
    torch.testing.assert_close(*results, **TOLERANCE)


def test_a_wide_group_with_non_finite_input():
    x = torch.randn(300, 256)
    x[3, 5] = float("nan")
    assert fastwhiten.whiten(x, backend="native").isnan().all()
