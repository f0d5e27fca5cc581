"""Diagnostics against hand-computed values, numpy, autograd and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from training.evaluation import batches, features, gradients, hessian
from training.evaluation.hessian import hessian_condition


def _features(rows: int = 60, size: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return noise @ mix + 0.5


def test_covariance_and_correlation_are_numpys():
    x = _features()
    np.testing.assert_allclose(
        features.covariance_matrix(x), np.cov(x.numpy().T, bias=True), rtol=1e-12
    )
    r = features.correlation_matrix(x)
    np.testing.assert_allclose(r, np.corrcoef(x.numpy().T), atol=1e-13)
    upper = np.abs(r.numpy())[np.triu_indices(5, 1)]
    assert features.mean_abs_off_diagonal(r) == pytest.approx(upper.mean(), rel=1e-12)


def test_singular_values_squared_are_the_covariances_eigenvalues():
    x = _features()
    eigenvalues = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
    np.testing.assert_allclose(features.singular_values(x).square(), eigenvalues, rtol=1e-10)


def test_entropies_of_known_spectra():
    assert features.spectral_entropy(torch.tensor([0.5, 0.25, 0.25])) == pytest.approx(
        1.5 * math.log(2)
    )
    assert features.spectral_entropy(torch.tensor([7.0, 0.0])) == 0
    assert features.effective_rank(torch.full((6,), 3.0)) == pytest.approx(6)
    assert math.isnan(features.spectral_entropy(torch.zeros(3)))


def test_gaussian_entropy_is_that_of_torchs_distribution():
    covariance = features.covariance_matrix(_features())
    expected = torch.distributions.MultivariateNormal(
        torch.zeros(5, dtype=torch.float64), covariance
    ).entropy()
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert features.gaussian_entropy(eigenvalues) == pytest.approx(expected.item(), rel=1e-12)
    # Scale: twice the features, four times the variance, log 2 per dimension more.
    assert features.gaussian_entropy(4 * eigenvalues) == pytest.approx(
        expected.item() + 5 * math.log(2), rel=1e-12
    )
    assert features.gaussian_entropy(torch.tensor([1.0, 0.0])) == -math.inf


def test_condition_of_the_second_moment_is_numpys():
    x = _features()
    expected = np.linalg.cond((x.T @ x / len(x)).numpy())
    assert features.second_moment_condition(x) == pytest.approx(expected, rel=1e-9)
    assert features.second_moment_condition(x[:4]) == math.inf  # 4 rows, 5 dimensions
    assert features.second_moment_condition(torch.eye(3)) == pytest.approx(1)


def test_hessian_is_autograds():
    x = _features(20, 3)
    weight = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(20) % 4

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(x @ flat.view(4, 3).T, labels)

    expected = torch.autograd.functional.hessian(loss, weight.flatten())
    torch.testing.assert_close(hessian.classifier_hessian(x, x @ weight.T), expected)


@pytest.mark.parametrize("rank", [5, 3])
def test_hessian_condition_is_that_of_the_spectrum_that_is_not_zero(rank: int):
    x = _features() * torch.tensor([1.0] * rank + [0.0] * (5 - rank), dtype=torch.float64)
    logits = x @ torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    eigenvalues = torch.linalg.eigvalsh(hessian.classifier_hessian(x, logits))
    nonzero = eigenvalues[
        -(4 - 1) * rank :
    ]  # K D - D - (K - 1)(D - rank) are not in the null space
    assert eigenvalues[: -(4 - 1) * rank].abs().max() < 1e-14 * eigenvalues[-1]
    expected = (nonzero[-1] / nonzero[0]).item()
    assert hessian_condition(x, logits) == pytest.approx(expected, rel=1e-7)
    # The same by Lanczos, which sees products with vectors alone.
    assert hessian_condition(x, logits, exact_size=0) == pytest.approx(expected, rel=1e-5)


def test_lanczos_agrees_on_an_ill_conditioned_problem():
    scale = torch.logspace(0, -3, 12, dtype=torch.float64)
    x = torch.randn(300, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = x * scale + 1.0
    logits = 3 * torch.randn(
        300, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    exact = hessian_condition(x, logits)
    assert exact > 1e6
    assert hessian_condition(x, logits, exact_size=0) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("exact_size", [0, 1000])
def test_certain_predictions_have_no_curvature(exact_size: int):
    x = _features()
    logits = torch.zeros(60, 3, dtype=torch.float64)
    logits[:, 0] = 1e4
    assert hessian_condition(x, logits, exact_size) == math.inf
    assert math.isnan(hessian_condition(torch.zeros(9, 5), torch.zeros(9, 3), exact_size))


def test_covariance_fluctuation_by_hand_and_without_scale():
    # M = diag(2, 1); deviations diag(-1, 0) and diag(1, 0): spread 1, ||M|| = sqrt(5).
    covariances = [torch.diag(torch.tensor([1.0, 1.0])), torch.diag(torch.tensor([3.0, 1.0]))]
    assert batches.covariance_fluctuation(covariances) == pytest.approx(1 / math.sqrt(5))
    scaled = [100 * c for c in covariances]
    assert batches.covariance_fluctuation(scaled) == pytest.approx(1 / math.sqrt(5))


def test_distance_to_a_reference_in_groups_ignores_what_is_between_groups():
    covariance = torch.tensor([[2.0, 9.0], [9.0, 1.0]])
    grouped = torch.ones(2, 1, 1)
    assert batches.relative_distance([covariance], grouped) == pytest.approx(1 / math.sqrt(2))
    whole = batches.relative_distance([covariance], torch.eye(2))
    assert whole == pytest.approx(math.sqrt(1 + 2 * 81) / math.sqrt(2))


def test_batches_of_positions():
    x = _features()
    places = [torch.arange(10), torch.tensor([3, 3, 59])]
    first, second = batches.batch_covariances(x, places)
    np.testing.assert_allclose(first, np.cov(x[:10].numpy().T, bias=True), rtol=1e-12)
    np.testing.assert_allclose(second, np.cov(x[[3, 3, 59]].numpy().T, bias=True), rtol=1e-9)
    labels = torch.arange(60) // 6
    assert batches.mean_distinct_classes(labels, places) == 2.0  # {0, 1} and {0, 9}


def test_class_gradients_are_the_closed_form():
    x = _features(12, 3)
    classifier = nn.Linear(3, 4).double()
    labels = torch.arange(12) % 4
    found = gradients.class_gradients(classifier, functional.cross_entropy, x, labels)
    with torch.no_grad():
        p = classifier(x).softmax(1)
        expected = (p - functional.one_hot(labels, 4)).T @ x / 12
    torch.testing.assert_close(found, expected)
    assert classifier.weight.grad is None


def test_cosine_and_norms_by_hand():
    rows = torch.tensor([[3.0, 4.0], [4.0, 3.0], [-3.0, -4.0]])
    # |cos|: 24/25, 1, 24/25.
    assert gradients.mean_abs_cosine(rows) == pytest.approx((0.96 + 1 + 0.96) / 3)
    assert math.isnan(gradients.mean_abs_cosine(torch.zeros(3, 2)))
    with_zero = torch.cat([rows, torch.zeros(1, 2)])  # has no direction, so it does not count
    assert gradients.mean_abs_cosine(with_zero) == pytest.approx((0.96 + 1 + 0.96) / 3)
    assert gradients.weight_norms(rows).tolist() == [5.0, 5.0, 5.0]
