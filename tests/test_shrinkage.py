"""Shrinkage intensities against their published formulas and against scikit-learn."""

import pytest
import torch
from sklearn import covariance as sklearn_covariance
from torch import Tensor

import fastwhiten
from fastwhiten import shrinkage
from fastwhiten.backends import reference
from tests.helpers import plain, spectra


def intensity(method: str, x: Tensor, weight: Tensor | None = None, groups: int = 1) -> Tensor:
    mean, s = reference.statistics(x, weight, groups, False)
    return shrinkage.feature_intensity(method, s, None, 1.0, x, mean, weight)


def sample_intensity(method: str, x: Tensor, weight: Tensor | None = None) -> Tensor:
    _, _, gram = reference.sample_statistics(x, weight, 1, False)
    return shrinkage.sample_intensity(method, gram, weight, x.shape[1])


def test_oas_by_hand() -> None:
    """S = diag(3, 1) of n = 4 rows: Chen et al. 2010, equation 23, with p = 2.

    tr S^2 = 10, (tr S)^2 = 16; numerator (1 - 2/2) 10 + 16 = 16; denominator (4 + 1 - 2/2)(10 - 8)
    = 8; the quotient 2 is capped at 1. With n = 19: 16 / (19 * 2) = 8 / 19.
    """
    trace, square = torch.tensor([4.0]).double(), torch.tensor([10.0]).double()
    assert shrinkage.oas(trace, square, 4.0, 2).item() == 1.0
    assert shrinkage.oas(trace, square, 19.0, 2).item() == pytest.approx(8 / 19, rel=1e-15)


def test_oas_by_hand_in_three_dimensions() -> None:
    """S = diag(4, 1, 1), n = 10: ((1/3) 18 + 36) / ((10 + 1/3)(18 - 12)) = 42 / 62."""
    trace, square = torch.tensor([6.0]).double(), torch.tensor([18.0]).double()
    assert shrinkage.oas(trace, square, 10.0, 3).item() == pytest.approx(42 / 62, rel=1e-15)


def test_ledoit_wolf_by_hand() -> None:
    """Rows (2,0), (-2,0), (0,1), (0,-1): S = diag(2, 1/2), mean |x|^4 = 8.5, tr S^2 = 4.25.

    Fluctuation 8.5 - 4.25 = 4.25 over n = 4; distance 4.25 - 6.25 / 2 = 1.125; 1.0625 / 1.125.
    """
    x = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]]).double()
    assert intensity("ledoit-wolf", x).item() == pytest.approx(1.0625 / 1.125, rel=1e-14)


@pytest.mark.parametrize("shape", [(200, 5), (30, 20), (10, 25), (4, 3)])
def test_ledoit_wolf_is_scikit_learns(shape: tuple[int, int]) -> None:
    x = spectra.random(*shape)
    _, expected = sklearn_covariance.ledoit_wolf(x.numpy())
    # Both are ratios of sums of M terms in float64; the differences of order one lose no digits.
    assert intensity("ledoit-wolf", x).item() == pytest.approx(expected, rel=1e-12)
    assert sample_intensity("ledoit-wolf", x).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(200, 5), (90, 20), (60, 25)])
def test_oas_is_scikit_learns_but_for_the_terms_it_drops(shape: tuple[int, int]) -> None:
    """scikit-learn documents that it leaves out 2/p; with these terms put back, all agree."""
    x = spectra.random(*shape)
    n, p = shape
    _, theirs = sklearn_covariance.oas(x.numpy())
    ours = intensity("oas", x).item()
    assert 0 < ours < 1 and 0 < theirs < 1
    s = x.T.cov(correction=0)
    square, trace = float((s @ s).trace()), float(s.trace())
    spread = square - trace**2 / p
    assert theirs * (n + 1) * spread == pytest.approx(square + trace**2, rel=1e-12)
    assert ours * (n + 1 - 2 / p) * spread == pytest.approx(
        (1 - 2 / p) * square + trace**2, rel=1e-12
    )
    assert sample_intensity("oas", x).item() == pytest.approx(ours, rel=1e-12)


@pytest.mark.parametrize("method", shrinkage.METHODS)
def test_shrunk_whitening_is_that_of_scikit_learns_covariance(method: str, backend: str) -> None:
    x = spectra.random(40, 6)
    rho = intensity(method, x).item()
    s = torch.from_numpy(
        sklearn_covariance.shrunk_covariance(x.T.cov(correction=0).numpy(), shrinkage=rho)
    )
    expected = (x - x.mean(0)) @ plain.whitening_matrix(s, "zca", 1e-3, "eigh")
    y = fastwhiten.whiten(x, shrinkage=method, backend=backend)
    torch.testing.assert_close(y, expected, rtol=0.0, atol=1e-12)  # condition number of 20


@pytest.mark.parametrize("method", shrinkage.METHODS)
def test_weights_count_by_their_effective_number(method: str) -> None:
    """Kish: m rows of equal weight among zeros are m rows; doubling all weights changes nothing."""
    x = spectra.random(30, 4)
    weight = torch.zeros(30, dtype=torch.float64)
    weight[:12] = 1 / 12
    rho = intensity(method, x, weight).item()
    assert rho == pytest.approx(intensity(method, x[:12]).item(), rel=1e-12)
    assert shrinkage.effective_rows(weight, 30).item() == pytest.approx(12.0, rel=1e-12)
    assert shrinkage.effective_rows(None, 30) == 30.0


@pytest.mark.parametrize("method", shrinkage.METHODS)
def test_intensity_is_independent_of_scale_and_rotation(method: str) -> None:
    x = spectra.random(30, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    rho = intensity(method, x).item()
    assert intensity(method, 1e3 * x @ rotation).item() == pytest.approx(rho, rel=1e-10)


@pytest.mark.parametrize("method", shrinkage.METHODS)
def test_intensity_per_group(method: str) -> None:
    x = torch.cat([spectra.random(30, 4), spectra.conditioned(30, 4, 1e3)], 1)
    both = intensity(method, x, groups=2)
    each = torch.cat([intensity(method, part.contiguous()) for part in x.chunk(2, 1)])
    torch.testing.assert_close(both, each, rtol=1e-12, atol=0.0)
    assert abs(both[0] - both[1]) > 1e-3


@pytest.mark.parametrize("method", shrinkage.METHODS)
def test_more_rows_shrink_less(method: str) -> None:
    rhos = [intensity(method, spectra.random(n, 8)).item() for n in (10, 100, 1000, 10000)]
    assert rhos == sorted(rhos, reverse=True) and rhos[-1] < 0.01


def test_white_data_are_shrunk_fully() -> None:
    """A covariance that is a multiple of the identity already: 0 / 0 is taken as 1."""
    assert intensity("oas", spectra.hadamard()).item() == 1.0
    assert intensity("ledoit-wolf", spectra.hadamard()).item() == 1.0
    assert intensity("oas", torch.zeros(8, 3)).item() == 1.0


@pytest.mark.parametrize("method", shrinkage.METHODS)
def test_blending_counts_only_the_fluctuation_of_the_batch(method: str) -> None:
    """With the running covariance equal to the batch's, beta = 1/2 acts as four times the rows."""
    x = spectra.random(40, 5)
    mean, s = reference.statistics(x, None, 1, False)
    rho = shrinkage.feature_intensity(method, s, s, 0.5, x, mean, None).item()
    four = x.repeat(4, 1)
    assert rho == pytest.approx(intensity(method, four).item(), rel=1e-12)
    assert 0 < rho < intensity(method, x).item()


def test_none_and_fixed() -> None:
    x = spectra.random(10, 4)
    mean, s = reference.statistics(x, None, 2, False)
    assert shrinkage.feature_intensity(None, s, None, 1.0, x, mean, None) is None
    fixed = shrinkage.feature_intensity(0.25, s, None, 1.0, x, mean, None)
    assert fixed.tolist() == [0.25, 0.25] and fixed.dtype == torch.float64
