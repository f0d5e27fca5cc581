"""What ``whiten`` and its companions promise: identities that hold for every input."""

import copy

import pytest
import torch
from torch import Tensor

import fastwhiten
from fastwhiten.functional import batch_whiten, make_options
from tests.helpers import plain, spectra

KINDS = ("zca", "pca", "cholesky")


def centered_covariance(y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    rows = plain.to_rows(y)
    p = plain.probabilities(weight, y, y.dtype)
    return plain.covariance(rows, p)


@pytest.mark.parametrize("eps", [1e-8, 1e-3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_output_is_white(kind: str, eps: float, backend: str) -> None:
    """``W^T (S + eps I) W = I``, hence ``cov(Y) = I - eps W^T W``, exactly."""
    x = spectra.random(80, 9)
    y = fastwhiten.whiten(x, kind=kind, eps=eps, backend=backend)
    mean, covariance = centered_covariance(y)
    w = plain.whitening_matrix(centered_covariance(x)[1], kind, eps, "eigh")
    expected = torch.eye(9, dtype=torch.float64) - eps * w.T @ w
    # D = 9 roundings in float64 on eigenvalues between 0.05 and 1 (condition number 20).
    torch.testing.assert_close(covariance, expected, rtol=0.0, atol=1e-13)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0.0, atol=1e-13)
    if eps == 1e-8:
        assert (covariance - torch.eye(9)).abs().max() < 1e-6, "the identity up to eps / l"


@pytest.mark.parametrize("shape", [(50, 8), (8, 20)], ids=["feature side", "sample side"])
def test_three_routes_to_zca_agree(shape: tuple[int, int], backend: str) -> None:
    """Covariance, Gram matrix and singular values of the data: one result in float64."""
    x = spectra.random(*shape)
    by_svd = plain.whiten_by_svd(x, "zca", 1e-3)
    by_covariance = plain.whiten(x, eps=1e-3)
    ours = fastwhiten.whiten(x, eps=1e-3, backend=backend)
    # Eigenvalues from 4 to eps = 1e-3: a condition number of 4e3 times a few roundings of 1e-16.
    torch.testing.assert_close(ours, by_svd, rtol=0.0, atol=1e-11)
    torch.testing.assert_close(ours, by_covariance, rtol=0.0, atol=1e-11)


def test_pca_agrees_with_the_singular_vectors(backend: str) -> None:
    x = spectra.random(50, 8)
    ours = fastwhiten.whiten(x, kind="pca", backend=backend)
    # Eigenvectors turn by rounding over gap (about 0.02 here).
    torch.testing.assert_close(ours, plain.whiten_by_svd(x, "pca", 1e-3), rtol=0.0, atol=1e-11)


def test_zca_is_the_rotation_closest_to_the_input(backend: str) -> None:
    """ZCA's cross-covariance with its input is symmetric positive definite; PCA's is not."""
    x = spectra.random(60, 5)
    y = fastwhiten.whiten(x, backend=backend)
    cross = (x - x.mean(0)).T @ y / 60
    torch.testing.assert_close(cross, cross.T, rtol=0.0, atol=1e-13)  # a few float64 roundings
    assert torch.linalg.eigvalsh(cross).min() > 0


def test_pca_columns_are_ordered_and_signed(backend: str) -> None:
    """Ascending eigenvalues; the largest component of each eigenvector is positive."""
    x = spectra.conditioned(60, 6, 1e3)
    y = fastwhiten.whiten(x, kind="pca", eps=1e-9, backend=backend)
    vectors = (x - x.mean(0)).T @ y / 60  # columns: eigenvector times root of its eigenvalue
    assert (vectors.norm(dim=0).diff() > 0).all()
    assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_whole_numbers_repeat_rows(kind: str, backend: str) -> None:
    x = spectra.random(20, 5)
    times = torch.tensor([1, 2, 3, 1] * 5)
    weighted = fastwhiten.whiten(x, kind=kind, sample_weight=times.double(), backend=backend)
    repeated = fastwhiten.whiten(x.repeat_interleave(times, 0), kind=kind, backend=backend)
    first = times.cumsum(0) - times
    torch.testing.assert_close(weighted, repeated[first], rtol=0.0, atol=1e-12)  # 20x 1e-16 x cond


def test_weights_of_whole_numbers_repeat_rows_across_sides(backend: str) -> None:
    """Four weighted rows go to the sample side, the same rows repeated to the feature side."""
    x = spectra.random(4, 6)
    times = torch.tensor([1, 2, 3, 1])
    weighted = fastwhiten.whiten(x, sample_weight=times.double(), backend=backend)
    repeated = fastwhiten.whiten(x.repeat_interleave(times, 0), backend=backend)
    torch.testing.assert_close(weighted, repeated[[0, 1, 3, 6]], rtol=0.0, atol=1e-11)  # cond 1e3


@pytest.mark.parametrize("rows", [20, 6], ids=["feature side", "sample side"])
@pytest.mark.parametrize("kind", ["zca", "cholesky"])
def test_zero_weight_is_an_absent_row(kind: str, rows: int, backend: str) -> None:
    """Its output is still computed: the affine map that the other rows define, applied to it."""
    x = spectra.random(rows, 8)
    weight = torch.ones(rows, dtype=torch.float64)
    weight[[1, 4]] = 0.0
    keep = weight > 0
    y = fastwhiten.whiten(x, kind=kind, sample_weight=weight, backend=backend)
    without = fastwhiten.whiten(x[keep], kind=kind, backend=backend)
    # On the sample side a zero is raised to 1e-12 of the largest weight: the covariance changes by
    # 1e-12 of itself times the distance of that row squared, and eps = 1e-3 amplifies it.
    tolerance = 1e-7 if rows < 8 else 1e-11
    torch.testing.assert_close(y[keep], without, rtol=0.0, atol=tolerance)
    mean, covariance = centered_covariance(x[keep])
    expected = (x - mean) @ plain.whitening_matrix(covariance, kind, 1e-3, "eigh")
    assert expected[~keep].abs().min() > 1e-3
    torch.testing.assert_close(y, expected, rtol=0.0, atol=10 * tolerance)


@pytest.mark.parametrize("scale", [1e-30, 7.0, 1e30])
def test_scale_of_the_weights_does_not_matter(scale: float, backend: str) -> None:
    x = spectra.random(30, 4)
    weight = torch.rand(30, dtype=torch.float64) + 0.5
    one = fastwhiten.whiten(x, sample_weight=weight, backend=backend)
    other = fastwhiten.whiten(x, sample_weight=scale * weight, backend=backend)
    torch.testing.assert_close(one, other, rtol=0.0, atol=1e-12)  # the weights round differently


def test_weights_per_position(backend: str) -> None:
    """``[N, H, W]`` weights weigh positions; ``[N]`` weights weigh all positions of a sample."""
    x = plain.from_rows(spectra.random(4 * 30, 6), torch.empty(4, 6, 5, 6)).contiguous()
    weight = torch.rand(4, 5, 6, dtype=torch.float64)
    expected = plain.whiten(x, sample_weight=weight)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = fastwhiten.whiten(x.contiguous(memory_format=layout), sample_weight=weight,
                              backend=backend)  # fmt: skip
        torch.testing.assert_close(y, expected, rtol=0.0, atol=1e-12)
    per_sample = torch.rand(4, dtype=torch.float64)
    spread = per_sample.reshape(4, 1, 1).expand(4, 5, 6)
    y = fastwhiten.whiten(x, sample_weight=per_sample, backend=backend)
    assert torch.equal(y, fastwhiten.whiten(x, sample_weight=spread, backend=backend))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [40, 3], ids=["feature side", "sample side"])
def test_groups_are_separate_whitenings(kind: str, rows: int, backend: str) -> None:
    x = spectra.random(rows, 12)
    y = fastwhiten.whiten(x, kind=kind, groups=3, backend=backend)
    parts = [fastwhiten.whiten(p, kind=kind, backend=backend) for p in x.chunk(3, 1)]
    if kind == "pca" and rows < 4:  # bases of the null space are arbitrary; sizes are not
        y, parts = y.abs().sum(0), [p.abs().sum(0) for p in parts]
    # Same numbers, other strides in the matrix products. PCA's null directions: rounding/root(eps).
    torch.testing.assert_close(y, torch.cat(parts, -1), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_shrinkage_of_one_standardises(kind: str, backend: str) -> None:
    """With intensity 1 the covariance is its mean variance times the identity."""
    x = spectra.random(40, 6)
    mean, covariance = centered_covariance(x)
    expected = (x - mean) / (covariance.trace() / 6 + 1e-3).sqrt()
    y = fastwhiten.whiten(x, kind=kind, shrinkage=1.0, backend=backend)
    if kind == "pca":  # all directions tied: any rotation
        y, expected = y @ y.T, expected @ expected.T
    torch.testing.assert_close(y, expected, rtol=0.0, atol=1e-12)


def test_shrinkage_zero_is_none(backend: str) -> None:
    x = spectra.random(40, 6)
    torch.testing.assert_close(
        fastwhiten.whiten(x, shrinkage=0.0, backend=backend),
        fastwhiten.whiten(x, backend=backend),
        rtol=0.0,
        atol=1e-13,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_batch_statistics(dtype: torch.dtype, backend: str) -> None:
    x = spectra.random(50, 6).to(dtype)
    weight = torch.rand(50)
    mean, covariance = fastwhiten.batch_statistics(
        x, groups=2, sample_weight=weight, backend=backend
    )
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert mean.dtype == covariance.dtype == expected and covariance.shape == (2, 3, 3)
    p = plain.probabilities(weight, x, torch.float64)
    tolerance = 50 * torch.finfo(expected).eps  # 50 terms of order one
    for part, square in zip(x.double().chunk(2, 1), covariance, strict=True):
        torch.testing.assert_close(
            square.double(), plain.covariance(part, p)[1], rtol=0.0, atol=tolerance
        )
    torch.testing.assert_close(mean.double(), p @ x.double(), rtol=0.0, atol=tolerance)
    double = fastwhiten.batch_statistics(x, statistics_dtype=torch.float64, backend=backend)
    assert double[0].dtype == double[1].dtype == torch.float64


def test_batch_statistics_of_one_row(backend: str) -> None:
    mean, covariance = fastwhiten.batch_statistics(torch.tensor([[1.0, 2.0]]), backend=backend)
    assert mean.tolist() == [1.0, 2.0] and covariance.tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (2, 3, 4, 4), (0, 4, 4)])
def test_symmetric_eigh_and_whitening_matrix_take_any_batch(
    shape: tuple[int, ...], backend: str
) -> None:
    a = torch.randn(shape, dtype=torch.float64)
    a = a @ a.mT + torch.eye(4)
    eigenvalues, vectors = fastwhiten.symmetric_eigh(a, backend=backend)
    assert eigenvalues.shape == shape[:-1] and vectors.shape == shape
    rebuilt = vectors @ torch.diag_embed(eigenvalues) @ vectors.mT
    torch.testing.assert_close(rebuilt, a, rtol=1e-12, atol=1e-12)  # backward error, D = 4
    for kind in KINDS:
        w = fastwhiten.whitening_matrix(a, kind=kind, eps=0.5, backend=backend)
        white = w.mT @ (a + 0.5 * torch.eye(4)) @ w
        identity = torch.eye(4, dtype=torch.float64).expand(shape)
        torch.testing.assert_close(white, identity, rtol=0.0, atol=1e-12)


def test_whitening_matrix_is_what_whiten_uses(backend: str) -> None:
    x = spectra.random(40, 6)
    mean, covariance = fastwhiten.batch_statistics(x, groups=2, backend=backend)
    for kind in KINDS:
        w = fastwhiten.whitening_matrix(covariance, kind=kind, backend=backend)
        by_hand = torch.cat([(x - mean).chunk(2, 1)[g] @ w[g] for g in range(2)], 1)
        y = fastwhiten.whiten(x, kind=kind, groups=2, backend=backend)
        torch.testing.assert_close(y, by_hand, rtol=0.0, atol=1e-12)  # condition number 20


def test_half_precision_statistics_are_float32(backend: str) -> None:
    """Sums of 4096 values near 300 overflow float16 at 65504 and lose all digits of bfloat16."""
    for dtype in (torch.float16, torch.bfloat16):
        x = (300 + 30 * spectra.random(4096, 3)).to(dtype)
        y = fastwhiten.whiten(x, backend=backend)
        _, covariance = centered_covariance(y.double())
        # Rounding the output to bfloat16 (2^-9 relative) moves its covariance by less than 1e-2.
        torch.testing.assert_close(
            covariance, torch.eye(3, dtype=torch.float64), rtol=0.0, atol=1e-2
        )


def test_statistics_dtype_float64_improves_float32_input(backend: str) -> None:
    x = spectra.conditioned(200, 8, 1e7).float()
    truth = plain.whiten(x.double(), eps=1e-9)
    errors = [
        (fastwhiten.whiten(x, eps=1e-9, statistics_dtype=t, backend=backend) - truth).norm()
        for t in (None, torch.float64)
    ]
    assert errors[1] < 1e-5 * truth.norm() and errors[1] < errors[0] / 100


def test_inputs_are_not_written_to(backend: str) -> None:
    for rows in (20, 4):
        x, weight = spectra.random(rows, 6).float(), torch.rand(rows)
        before = copy.deepcopy((x, weight))
        leaf = x.requires_grad_()
        fastwhiten.whiten(leaf, sample_weight=weight, backend=backend).square().sum().backward()
        assert torch.equal(x, before[0]) and torch.equal(weight, before[1])


def test_batch_weight_blends_covariances(backend: str) -> None:
    """By hand, on the engine of the layer: ``beta S_batch + (1 - beta) S_running``."""
    x, running = spectra.random(30, 4), 2 * torch.eye(4, dtype=torch.float64).unsqueeze(0)
    settings = make_options("test", "zca", 1, 1e-3, None, None, backend, 0.25)
    result = batch_whiten(x, settings, running_covariance=running)
    mean, covariance = centered_covariance(x)
    w = plain.whitening_matrix(0.25 * covariance + 1.5 * torch.eye(4), "zca", 1e-3, "eigh")
    torch.testing.assert_close(result.y, (x - mean) @ w, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(result.covariance, covariance.unsqueeze(0), rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("shrinkage", [None, "oas", 0.3])
@pytest.mark.parametrize("need", ["covariance", "matrix"])
def test_sample_side_covariance_and_matrix(need: str, shrinkage, backend: str) -> None:
    """What the running statistics need on the sample side equals the feature side's."""
    x = spectra.random(5, 14)
    settings = make_options("test", "zca", 2, 1e-3, shrinkage, None, backend)
    result = batch_whiten(x, settings, need=need)
    for g, part in enumerate(x.chunk(2, 1)):
        p = plain.probabilities(None, part, torch.float64)
        mean, covariance = plain.covariance(part, p)
        if need == "covariance":
            expected, value = covariance, result.covariance[g]
        else:
            shift, s = 1e-3, covariance
            if shrinkage is not None:
                rho = plain.intensity(shrinkage, s, s, part - mean, p)
                shift, s = 1e-3 + rho * s.trace() / 7, (1 - rho) * s
            expected, value = plain.whitening_matrix(s, "zca", shift, "eigh"), result.matrix[g]
        # W reaches eps^-1/2 = 32; float64 rounds it by 1e-16 times the condition 1e3.
        torch.testing.assert_close(value, expected, rtol=0.0, atol=1e-11)
