"""The specification itself: its small pieces on numbers worked out by hand."""

import math

import pytest
import torch

from fastwhiten.backends import reference
from tests.helpers import spectra


def test_accumulation_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert reference.accumulation_dtype(dtype) == torch.float32
        assert reference.accumulation_dtype(dtype, True) == torch.float64
    assert reference.accumulation_dtype(torch.float64) == torch.float64


def test_statistics_by_hand() -> None:
    """Rows (0, 1), (2, 5), (4, 0) with weights 1/2, 1/4, 1/4."""
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 0.0]])
    mean, covariance = reference.statistics(x, torch.tensor([0.5, 0.25, 0.25]), 1, False)
    assert mean.tolist() == [1.5, 1.75]
    # var x = 0.5 * 2.25 + 0.25 * 0.25 + 0.25 * 6.25; cov = sum p x y - 1.5 * 1.75.
    assert covariance.tolist() == [[[2.75, -0.125], [-0.125, 3.6875]]]


def test_groups_are_blocks_of_neighbouring_channels() -> None:
    x = torch.arange(12.0).reshape(2, 6)
    grouped = reference.to_groups(x, 3, torch.float32)
    assert grouped.tolist() == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]
    assert torch.equal(reference.from_groups(grouped, x), x)
    planes = torch.arange(24.0).reshape(2, 4, 3)
    back = reference.from_groups(reference.to_groups(planes, 2, torch.float64), planes)
    assert torch.equal(back, planes) and back.dtype == torch.float32
    assert reference.to_groups(planes, 2, torch.float32)[1, 4].tolist() == [19.0, 22.0]


def test_factor_by_hand() -> None:
    """S = [[2, 1], [1, 2]] + 1 I has eigenvalues 2 and 4, vectors (1, -1) and (1, 1)."""
    s = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]).double()
    eigenvalues, basis, zca = reference.factor(s, None, None, 1.0, 1.0, reference.ZCA)
    torch.testing.assert_close(eigenvalues, torch.tensor([[2.0, 4.0]]).double())
    a, b = 1 / math.sqrt(2), 1 / math.sqrt(4)
    expected = torch.tensor([[[(b + a) / 2, (b - a) / 2], [(b - a) / 2, (b + a) / 2]]]).double()
    torch.testing.assert_close(zca, expected)
    pca = reference.factor(s, None, None, 1.0, 1.0, reference.PCA)[2]
    torch.testing.assert_close(pca, basis * torch.tensor([a, b]).double())
    # L = [[sqrt 3, 0], [1 / sqrt 3, sqrt(8 / 3)]]
    lower = torch.tensor([[3**0.5, 0.0], [3**-0.5, (8 / 3) ** 0.5]]).double()
    cholesky = reference.factor(s, None, None, 1.0, 1.0, reference.CHOLESKY)[2]
    torch.testing.assert_close(cholesky[0], torch.linalg.inv(lower).T)


def test_eigenvectors_of_a_tie_in_magnitude() -> None:
    """Components (1, -1) / sqrt 2: the first of the largest ones is positive."""
    a = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]).double()
    vectors = reference.eigh(a)[1][0]
    largest = vectors.abs().max(0).values
    torch.testing.assert_close(largest, torch.full((2,), 0.5**0.5).double())
    pivot = vectors.abs().argmax(0)
    assert (vectors.gather(0, pivot.unsqueeze(0)) > 0).all()


def test_mixing_weights_by_hand() -> None:
    eigenvalues = torch.tensor([[1.0, 4.0, 9.0]]).double()  # s = 1, 2, 3
    zca = reference.mixing_weights(eigenvalues, reference.ZCA, 3)[0]
    torch.testing.assert_close(zca[0], torch.tensor([1 / 2, 1 / 3, 1 / 4]).double())
    torch.testing.assert_close(zca + zca.T, torch.ones(3, 3).double())
    pca = reference.mixing_weights(eigenvalues, reference.PCA, 3)[0]
    torch.testing.assert_close(pca[0], torch.tensor([1 / 2, -1 / 3, -1 / 8]).double())
    torch.testing.assert_close(pca + pca.T, torch.ones(3, 3).double())
    triangle = reference.mixing_weights(eigenvalues, reference.CHOLESKY, 3)
    assert triangle.tolist() == [[0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tie_tolerance_is_where_the_policy_changes(dtype: torch.dtype) -> None:
    tolerance = reference.tie_tolerance(4, dtype)
    assert tolerance == 64 * 4 * torch.finfo(dtype).eps
    for factor, tied in ((0.5, True), (2.0, False)):
        pair = torch.tensor([[1.0, 1.0 + factor * tolerance, 5.0, 7.0]], dtype=dtype)
        weight = reference.mixing_weights(pair, reference.PCA, 4)[0, 0, 1]
        assert (weight == 0.5) == tied
        assert tied or weight.abs() > 0.1 / tolerance


def test_statistics_survive_a_mean_that_rounding_spoils() -> None:
    """A first mean of 16 million plus 0 or 1 is off by rounding; the second pass takes it back."""
    x = 2.0**24 + torch.tensor([[0.0], [2.0], [4.0], [2.0]])
    mean, covariance = reference.statistics(x, None, 1, False)
    assert mean.item() == 2.0**24 + 2 and covariance.item() == 2.0


def test_every_stage_runs_in_its_own_dtype() -> None:
    """No float64 sneaks into float32 (or the other way round) through a Python scalar."""
    for dtype in (torch.float32, torch.float64):
        x = spectra.random(12, 4).to(dtype)
        mean, s = reference.statistics(x, None, 2, False)
        rho = torch.full((2,), 0.1, dtype=dtype)
        for kind in (reference.ZCA, reference.PCA, reference.CHOLESKY):
            factors = reference.factor(s, s, rho, 0.5, 0.1, kind)
            inner = reference.backward_matrix(s, *factors, None, rho, 0.5, kind)
            assert all(t.dtype == dtype for t in (mean, s, *factors, *inner))
