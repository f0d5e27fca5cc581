"""The forward in one launch with every kind and every shrinkage, emulated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastwhiten.backends import reference
from tests.csrc.emulated_stages import EmulatedStages
from tests.csrc.test_small import DEFICIENT, SCALE, Counted, K, batch, forward, options, wide
from tests.helpers import spectra
from tests.helpers.reference_error import assert_close_to_fp64

pytestmark = pytest.mark.emulated

KINDS = {"zca": reference.ZCA, "pca": reference.PCA, "cholesky": reference.CHOLESKY}
METHODS = {
    "none": reference.NO_SHRINKAGE,
    "fixed": reference.FIXED,
    "oas": reference.OAS,
    "ledoit-wolf": reference.LEDOIT_WOLF,
}
WHY = "another order of sums; an intensity is a quotient of differences of sums of squares"
BASIS, RHO = 4, 6


def assert_forward(
    x: Tensor, groups: int, o: dict[str, object], kind: int, method: int, skip: tuple[int, ...] = ()
) -> tuple[Tensor, ...]:
    """Compare every output but the basis (its signs and spaces have their own test)."""
    stages = Counted()
    ours = forward(stages, x, groups, o, kind, method)
    assert stages.launches == [1]
    truth = forward(reference, x.double(), groups, wide(o), kind, method)
    plain = forward(reference, x, groups, o, kind, method)
    for at, value in enumerate(ours):
        assert value.shape == truth[at].shape
        if at == RHO and value.numel() > 0 and truth[at].max() < 1e-12:
            # Two rows of equal weight: the mean of |xc|^4 is |S|^2, and both sums are rounded.
            assert value.max() <= 64 * torch.finfo(value.dtype).eps
            continue
        if value.numel() > 0 and at != BASIS and at not in skip:
            # In float64 the truth's own intensity is of differences that are as rounded.
            scale = SCALE[x.dtype] * (4 if at == RHO else 1)
            assert_close_to_fp64(value, truth[at], plain[at], K, WHY, scale=scale)
    return ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize("every", [False, True], ids=["plain", "every option"])
@pytest.mark.parametrize("method", ["oas", "ledoit-wolf"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["odd, groups", "two rows", "planes"])
def test_estimated_shrinkage(
    name: str, kind: str, method: str, every: bool, dtype: torch.dtype
) -> None:
    x, groups = batch(name)
    # PCA's null space has no basis of its own.
    skip = (0, 5) if kind == "pca" and name in DEFICIENT else ()
    o = options(x, groups, every, dtype)
    assert_forward(x.to(dtype), groups, o, KINDS[kind], METHODS[method], skip)


@pytest.mark.parametrize("every", [False, True], ids=["plain", "every option"])
@pytest.mark.parametrize("method", ["none", "fixed"])
@pytest.mark.parametrize("name", ["headline", "odd, groups", "two rows", "planes"])
def test_cholesky(name: str, method: str, every: bool) -> None:
    x, groups = batch(name)
    o = options(x, groups, every, torch.float32)
    matrix = assert_forward(x.float(), groups, o, reference.CHOLESKY, METHODS[method])[5]
    assert torch.equal(matrix, matrix.triu())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("channels", "groups"), [(3, 3), (24, 6), (32, 2), (15, 1)])
def test_cholesky_of_narrow_groups(channels: int, groups: int, method: str) -> None:
    x = spectra.random(40, channels)
    o = options(x, groups, True, torch.float32)
    assert_forward(x.float(), groups, o, reference.CHOLESKY, METHODS[method])


def test_backward_of_narrow_groups() -> None:
    """No eigensolver: the backward of zca takes one launch, too."""
    x, groups = spectra.random(40, 24).float(), 6
    grad, o = spectra.random(40, 24, 5).float(), options(x, 6, True, torch.float32)
    _, mean, _, *factors, rho = forward(reference, x, groups, o, reference.ZCA)
    rest = (mean, *factors, o["gamma"], rho, o["p"])
    stages = Counted()
    ours = stages.whiten_backward(grad, x, *rest, o["weight"], reference.ZCA)
    assert stages.launches == [1]
    double = [v.double() for v in (grad, x, *rest)]
    truth = reference.whiten_backward(*double, o["weight"], reference.ZCA)
    plain = reference.whiten_backward(grad, x, *rest, o["weight"], reference.ZCA)
    for value, ref, yardstick in zip(ours, truth, plain, strict=True):
        assert_close_to_fp64(value, ref, yardstick, K, WHY, scale=SCALE[torch.float32])


@pytest.mark.parametrize("kind", ["zca", "cholesky"])
@pytest.mark.parametrize("method", ["oas", "ledoit-wolf"])
@pytest.mark.parametrize(
    "x",
    [
        spectra.random(512, 64),
        spectra.conditioned(128, 20, 1e6),
        spectra.duplicated(64, 20),
        spectra.constant_column(64, 20),
        spectra.tied(64, 20),
    ],
    ids=["most rows", "conditioned", "duplicated", "constant column", "tied"],
)
def test_spectra(x: Tensor, method: str, kind: str) -> None:
    x = x + torch.linspace(-1, 1, x.shape[1])  # means that are zero have no relative error
    o = options(x, 1, False, torch.float32)
    assert_forward(x.float(), 1, o, KINDS[kind], METHODS[method])


@pytest.mark.parametrize("method", ["oas", "ledoit-wolf"])
def test_a_large_mean_costs_no_digits_of_the_intensity(method: str) -> None:
    x = spectra.large_mean(128, 40).float()
    o = options(x, 1, False, torch.float32)
    ours = forward(EmulatedStages(), x, 1, o, reference.CHOLESKY, METHODS[method])
    truth = forward(reference, x.double(), 1, o, reference.CHOLESKY, METHODS[method])
    plain = forward(reference, x, 1, o, reference.CHOLESKY, METHODS[method])
    for at in (0, 2, 5, RHO):
        assert_close_to_fp64(ours[at], truth[at], plain[at], K, WHY, scale=8.0)


@pytest.mark.parametrize("kind", ["zca", "cholesky"])
@pytest.mark.parametrize("method", ["oas", "ledoit-wolf"])
@pytest.mark.parametrize(
    "x", [spectra.hadamard(64, 20), torch.full((1, 20), 3.0)], ids=["white", "one row"]
)
def test_a_multiple_of_the_identity_is_shrunk_fully(x: Tensor, method: str, kind: str) -> None:
    """0 / 0 is 1; S = (trace / D + eps) I, with trace = D (a Hadamard matrix) or 0 (one row)."""
    o = options(x, 1, False, torch.float32)
    y, mean, covariance, _, _, matrix, rho = forward(
        EmulatedStages(), x.float(), 1, o, KINDS[kind], METHODS[method]
    )
    assert rho.tolist() == [1.0]
    size = 1.0 if len(x) > 1 else 0.0
    torch.testing.assert_close(covariance[0], size * torch.eye(20))
    expected = (size + 1e-3) ** -0.5 * torch.eye(20)
    torch.testing.assert_close(matrix[0], expected, rtol=4e-7, atol=1e-6)
    torch.testing.assert_close(y, (x.float() - mean) @ expected, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_group(bad: float, method: str) -> None:
    x, groups = batch("odd, groups")
    x, o = x.float(), options(x, groups, False, torch.float32)
    clean = forward(EmulatedStages(), x, groups, o, reference.CHOLESKY, METHODS[method])
    x[3, 40] = bad  # group 1 of 3
    found = forward(EmulatedStages(), x, groups, o, reference.CHOLESKY, METHODS[method])
    y, before = (reference.to_groups(v[0], groups, torch.float32) for v in (found, clean))
    assert y[1].isnan().all() and found[5][1].isnan().all()
    assert torch.equal(y[::2], before[::2])
    assert torch.equal(found[5][::2], clean[5][::2])
    assert torch.equal(found[RHO][::2], clean[RHO][::2])


def test_what_is_not_positive_definite_is_nan_alone() -> None:
    x = spectra.random(70, 60)
    x[:, :20] = 1.0  # group 0: S = eps I, with an eps below zero; the others' spectra lie above it
    matrix = EmulatedStages().whiten_forward(
        x, None, None, None, None, 3, 1.0, -1e-3, reference.CHOLESKY, False, 0, 0.0
    )[5]
    assert matrix[0].isnan().all()
    assert matrix[1:].isfinite().all()
