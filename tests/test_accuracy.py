"""Forward and gradient errors of ``whiten`` against float64, by the rule of the design.

The yardstick is plain PyTorch in the same dtype (:mod:`tests.helpers.plain`), the truth is the same
in float64, for the gradient of ZCA by a route without eigenvectors.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastwhiten
from fastwhiten.functional import batch_whiten, make_options
from tests.helpers import plain, spectra
from tests.helpers.reference_error import assert_close_to_fp64, relative_error

KINDS = ("zca", "pca", "cholesky")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Two correct algorithms round differently: over the cases here the ratio of their errors was seen
# between 0.2 and 3 (both are a handful of random-like rounding errors). A wrong formula is off by
# 1e3 and more.
K = 4.0
WHY_K = "different but equally good order of rounding"

# name: (shape, groups, memory layout), with the reason where the name does not give it
SHAPES = {
    "odd": ((37, 5), 1, "contiguous"),  # no multiple of any vector width
    "one channel": ((19, 1), 1, "contiguous"),  # D = 1: standardisation
    "two rows": ((2, 1), 1, "contiguous"),  # the fewest rows
    "square": ((16, 16), 1, "contiguous"),  # N = D: singular after centring
    "fewer rows": ((6, 11), 1, "contiguous"),  # N < D: the sample side for ZCA
    "wide": ((130, 67), 1, "contiguous"),  # past every tile size
    "groups": ((65, 24), 3, "contiguous"),
    "groups of one": ((20, 6), 6, "contiguous"),
    "groups, fewer rows": ((5, 24), 3, "contiguous"),  # D = 8 > N = 5
    "sequence": ((9, 6, 7), 2, "contiguous"),
    "map": ((4, 6, 5, 3), 1, "contiguous"),
    "map, groups": ((3, 12, 7, 5), 4, "contiguous"),
    "channels last": ((4, 6, 5, 3), 1, "channels_last"),
    "channels last, groups": ((3, 12, 7, 5), 4, "channels_last"),
    "map, fewer rows": ((2, 12, 2, 2), 1, "contiguous"),  # M = 8 < 12, planes to the sample side
    "volume": ((2, 4, 3, 2, 3), 1, "contiguous"),
    "sliced": ((40, 7), 1, "sliced"),  # every second column of a larger tensor
    "transposed": ((40, 7), 1, "transposed"),
}


def make_input(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> torch.Tensor:
    rows = torch.Size(shape).numel() // shape[1]
    x = plain.from_rows(spectra.random(rows, shape[1]), torch.empty(shape)).to(dtype).contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return x.repeat_interleave(2, 1)[:, ::2]
    if layout == "transposed":
        return x.T.contiguous().T
    return x


Pair = tuple[torch.Tensor, torch.Tensor]
_expected: dict[Any, tuple[torch.Tensor, Pair, Pair]] = {}


def expected(
    key: Any, x: torch.Tensor, route: str, options: dict[str, Any]
) -> tuple[torch.Tensor, Pair, Pair]:
    """Return ``(gradient of the output, truth, yardstick)``; computed once for all backends."""
    if key not in _expected:
        grad = torch.randn(x.shape, dtype=torch.float64, generator=spectra.generator(9)).to(x.dtype)
        wide, wide_grad = x.double(), grad.double()
        truth = plain.value_and_grad(plain.whiten, wide, wide_grad, route="iteration", **options)
        weight = options.pop("sample_weight", None)
        # The yardstick takes the rows in reverse order: in float64 it would otherwise be the truth
        # itself, bit for bit, with an error of zero.
        yardstick = plain.value_and_grad(
            plain.whiten,
            x.flip(0),
            grad.flip(0),
            route=route,
            sample_weight=None if weight is None else weight.flip(0),
            **options,
        )
        _expected[key] = (grad, truth, (yardstick[0].flip(0), yardstick[1].flip(0)))
    return _expected[key]


def check(
    key: Any,
    ours: Any,
    x: torch.Tensor,
    route: str = "eigh",
    scale: float = 1.0,
    **options: Any,
) -> None:
    """Compare value and gradient of ``ours(x)`` with plain whitening with ``options``.

    ``key`` names the case (input and options, without the backend).
    """
    grad, truth, yardstick = expected(key, x, route, options)
    y, dx = plain.value_and_grad(ours, x, grad)
    assert y.dtype == x.dtype and dx.dtype == x.dtype
    assert_close_to_fp64(y, truth[0], yardstick[0], K, "forward: " + WHY_K, scale)
    assert_close_to_fp64(dx, truth[1], yardstick[1], K, "gradient: " + WHY_K, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_dtypes(name: str, kind: str, dtype: torch.dtype, backend: str) -> None:
    shape, groups, layout = SHAPES[name]
    x = make_input(shape, layout, dtype)
    rows, size = x.numel() // shape[1], shape[1] // groups
    # Two rows are whitened to +-1 whatever they are, so that the gradient is a difference of equal
    # terms, unless eps has a part in it.
    eps = 1.0 if name == "two rows" else 1e-3
    if kind == "pca" and rows <= size:
        check_spectrum_of_singular_pca(x, groups, eps, backend)
        return
    check(
        ("shapes", name, kind, dtype),
        lambda t: fastwhiten.whiten(t, kind=kind, groups=groups, eps=eps, backend=backend),
        x,
        kind=kind,
        groups=groups,
        eps=eps,
    )


def check_spectrum_of_singular_pca(x: torch.Tensor, groups: int, eps: float, backend: str) -> None:
    """Check what PCA defines for a singular covariance: the spectrum of the output's covariance.

    The null space is one tied block, in which no basis is better than another and through which
    plain PyTorch has no gradient.
    """
    y = fastwhiten.whiten(x, kind="pca", groups=groups, eps=eps, backend=backend).double()
    pairs = zip(
        plain.to_rows(x.double()).chunk(groups, 1), plain.to_rows(y).chunk(groups, 1), strict=True
    )
    for before, after in pairs:
        eigenvalues = torch.linalg.eigvalsh(before.T.cov(correction=0)).clamp(min=0.0)
        spectrum = torch.linalg.eigvalsh(after.T @ after / after.shape[0])
        accumulated = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
        # l / (l + eps) has slope at most 1 / eps; the error of l is D roundings of the largest l.
        tolerance = before.shape[1] * accumulated * float(eigenvalues.max()) / eps
        tolerance += 8 * torch.finfo(x.dtype).eps  # of the output, squared and added up
        torch.testing.assert_close(
            spectrum, eigenvalues / (eigenvalues + eps), rtol=0.0, atol=tolerance
        )


# Every test that takes options_of has these axes.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "kind": KINDS,
    "eps": (1e-8, 1e-3, 1.0),
    "weights": ("none", "zeros"),  # the second are all different, and every fourth is zero
    "shrinkage": (None, "oas", "ledoit-wolf", 0.3),
    "affine": (False, True),
    "batch_weight": (1.0, 0.3),
}


def options_of(**only: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Parametrise a test with the fixture ``option``, a tuple of one value of every axis."""

    def decorate(test: Any) -> Any:
        for axis, values in {**OPTIONS, **only}.items():
            test = pytest.mark.parametrize(axis, values)(test)
        return test

    return decorate


@pytest.fixture
def option(
    kind: str, eps: float, weights: str, shrinkage: Any, affine: bool, batch_weight: float
) -> tuple[Any, ...]:
    return kind, eps, weights, shrinkage, affine, batch_weight


def make_weight(name: str, rows: int) -> torch.Tensor | None:
    if name == "none":
        return None
    weight = torch.rand(rows, generator=spectra.generator(5)) + 0.1
    weight[::4] = 0.0
    return weight


def run_options(
    shape: tuple[int, int], groups: int, option: tuple[Any, ...], dtype: torch.dtype, backend: str
) -> None:
    kind, eps, weights, shrinkage, affine, batch_weight = option
    x = spectra.random(*shape).to(dtype)
    size = shape[1] // groups
    gamma = torch.linspace(0.5, 2.0, shape[1]).to(dtype) if affine else None
    beta = torch.linspace(-1.0, 1.0, shape[1]).to(dtype) if affine else None
    running = None
    if batch_weight != 1.0:
        other = spectra.random(100, shape[1], seed=3)
        running = torch.stack([part.T.cov() for part in other.chunk(groups, 1)]).to(dtype)
        assert running.shape == (groups, size, size)
    weight = make_weight(weights, shape[0])
    settings = make_options("test", kind, groups, eps, shrinkage, None, backend, batch_weight)
    check(
        ("options", shape, option, dtype),
        lambda t: batch_whiten(t, settings, weight, gamma, beta, running).y,
        x,
        kind=kind,
        groups=groups,
        eps=eps,
        sample_weight=weight,
        shrinkage=shrinkage,
        gamma=gamma,
        beta=beta,
        running=running,
        batch_weight=batch_weight,
    )


@options_of()
def test_every_combination_of_options(option: tuple[Any, ...], backend: str) -> None:
    # 24 rows against D = 3: 18 rows with a positive weight are still enough for full rank.
    run_options((24, 6), 2, option, torch.float32, backend)


@options_of(kind=("zca",), batch_weight=(1.0,))
def test_every_combination_of_options_on_the_sample_side(
    option: tuple[Any, ...], backend: str
) -> None:
    run_options((5, 14), 2, option, torch.float32, backend)


CONDITIONS = (1.0, 1e2, 1e4, 1e6, 1e8)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float64", "statistics_dtype=float64"])
def test_condition_numbers_in_double_precision(
    kind: str, condition: float, precision: str, backend: str
) -> None:
    if condition == 1.0 and kind == "pca":
        kind = "zca"  # all eigenvalues tied: PCA's own test is below
    x = spectra.conditioned(96, 9, condition)
    double = precision == "float64"
    x = x if double else x.float()
    grad = torch.randn(x.shape, dtype=torch.float64).to(x.dtype)
    ours = plain.value_and_grad(
        fastwhiten.whiten, x, grad, kind=kind, eps=1e-9, backend=backend,
        statistics_dtype=None if double else torch.float64,
    )  # fmt: skip
    truth = plain.value_and_grad(
        plain.whiten, x.double(), grad.double(), kind=kind, eps=1e-9, route="iteration"
    )
    route = "iteration" if condition == 1.0 else "eigh"
    same = plain.value_and_grad(
        plain.whiten, x, grad, kind=kind, eps=1e-9, route=route, dtype=torch.float64
    )
    for value, ref, yardstick in zip(ours, truth, same, strict=True):
        # An error of the covariance of one epsilon moves its smallest eigenvalue by condition
        # times that; the truth is a float64 result too, so that much is not known about it.
        uncertain = min(condition, 1e9) if double else 1.0
        assert_close_to_fp64(value, ref, yardstick, K, WHY_K, scale=uncertain)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_condition_numbers_in_float32(kind: str, condition: float, backend: str) -> None:
    x = spectra.conditioned(96, 9, condition).float()
    check(
        ("condition", condition, kind),
        lambda t: fastwhiten.whiten(t, kind=kind, eps=1e-6, backend=backend),
        x,
        kind=kind,
        eps=1e-6,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", ["zca", "cholesky"])
@pytest.mark.parametrize("name", spectra.DEGENERATE)
def test_degenerate_spectra(name: str, kind: str, dtype: torch.dtype, backend: str) -> None:
    x = spectra.DEGENERATE[name]().to(dtype)
    # In float64 the truth itself is uncertain by the condition number (eigenvalues from about 1
    # to eps = 1e-3), and the yardstick, which goes the same way, does not show it.
    singular = name in ("duplicated", "constant")
    scale = 1e3 if singular and dtype == torch.float64 else 1.0
    # A constant column makes no tie, and the iteration keeps it apart to the last bit. Our kernels
    # have to be as good; the reference can be no better than the library's eigensolver.
    route = "eigh" if name == "constant" and backend == "reference" else "iteration"
    check(
        ("degenerate", name, kind, dtype, route),
        lambda t: fastwhiten.whiten(t, kind=kind, backend=backend),
        x,
        route=route,
        scale=scale,
        kind=kind,
    )


@pytest.mark.parametrize("name", ["white", "tied", "hadamard"])
def test_autograd_through_eigh_fails_where_we_do_not(name: str, backend: str) -> None:
    """The inputs above are hard: eigenvector gradients in float32 are wrong on them."""
    x = spectra.DEGENERATE[name]().float()
    grad = torch.randn(x.shape)
    truth = plain.value_and_grad(plain.whiten, x.double(), grad.double(), route="iteration")[1]
    through_eigh = plain.value_and_grad(plain.whiten, x, grad, route="eigh")[1]
    ours = plain.value_and_grad(fastwhiten.whiten, x, grad, backend=backend)[1]
    assert relative_error(through_eigh, truth) > 1e-2
    assert relative_error(ours, truth) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [64, 6], ids=["feature side", "sample side"])
def test_mean_far_larger_than_deviation(kind: str, rows: int, backend: str) -> None:
    x = spectra.large_mean(rows, 8).float()
    if kind == "pca" and rows < 8:
        y = fastwhiten.whiten(x, kind=kind, backend=backend)
        assert torch.isfinite(y).all() and y.double().mean(0).abs().max() < 0.1
        return
    check(
        ("mean", rows, kind),
        lambda t: fastwhiten.whiten(t, kind=kind, backend=backend),
        x,
        kind=kind,
    )


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("kind", KINDS)
def test_scale_of_the_input(kind: str, scale: float, backend: str) -> None:
    """Tiny and huge inputs, eps along with them: no absolute threshold hides in the kernels."""
    x = (scale * spectra.random(48, 7)).float()
    eps = 1e-3 * scale**2
    check(
        ("scale", scale, kind),
        lambda t: fastwhiten.whiten(t, kind=kind, eps=eps, backend=backend),
        x,
        kind=kind,
        eps=eps,
    )


@pytest.mark.parametrize("scale", [30.0, 300.0, 3e3, 1e5, 1e10])
@pytest.mark.parametrize("kind", ["zca", "pca", "cholesky"])
def test_ways_out_for_features_of_large_scale(kind: str, scale: float, backend: str) -> None:
    """Two equal channels: the smallest eigenvalue is eps alone, and lost in a float32 covariance.

    What the docstring of ``whiten`` advises: float64 statistics, or an eps above the rounding.
    """
    x = torch.randn(64, 8)
    x[:, 1] = x[:, 0]
    x = scale * x
    largest = float(torch.linalg.eigvalsh(x.double().T @ x.double() / 64)[-1])
    for eps, options in (
        (max(1e-3, 1e-14 * largest), {"statistics_dtype": torch.float64}),
        (1e-6 * largest, {}),
    ):
        y = fastwhiten.whiten(x, kind=kind, eps=eps, backend=backend, **options)
        assert y.isfinite().all()
        rows = y.double() - y.double().mean(0)
        error = rows.T @ rows / 64
        if kind != "zca":  # the direction without variance is a channel of zeros
            error = error.diagonal().sort().values[1:] - 1
        else:
            error = torch.linalg.eigvalsh(error)[1:] - 1
        # eps is at most 1e-6 of an eigenvalue; those here are above 0.1 of the largest.
        assert error.abs().max() < 1e-3
