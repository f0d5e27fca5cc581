"""The eigensolvers of the device on spectra that break others, with LAPACK's accuracy in float32.

Matrices and tolerances are those of the emulated kernels (``tests/csrc``).
"""

import pytest
import torch

import fastwhiten
from tests.backends.test_stages import check_eigensystem
from tests.csrc.eigensystems import assert_solved, stack
from tests.gpu.device import DEVICE, DRY_RUN, graphed, library_waits

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
# a warp; a block with arrays of 32, 64 and 128 rows, the last in float alone
SIZES = [1, 2, 3, 5, 8, 15, 16, 17, 32, 33, 48, 63, 64]
LARGE = [65, 96, 127, 128]


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        *((n, t) for n in SIZES for t in (torch.float32, torch.float64)),
        *((n, torch.float32) for n in LARGE),
    ],
)
def test_every_spectrum(size: int, dtype: torch.dtype) -> None:
    a = stack(size, dtype)
    values, vectors = fastwhiten.symmetric_eigh(a.to(DEVICE), backend="native")
    assert_solved(a, values.cpu(), vectors.cpu())


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (96, torch.float64),
        *((n, t) for n in (129, 200, 520) for t in (torch.float32, torch.float64)),
    ],
)
def test_every_spectrum_with_the_library(size: int, dtype: torch.dtype) -> None:
    """The errors are cuSOLVER's own: a factor more than LAPACK's is no fault of ours."""
    a = stack(size, dtype)
    a = a + torch.full_like(a, float("inf")).triu(1)  # only the lower triangle is read
    values, vectors = fastwhiten.symmetric_eigh(a.to(DEVICE), backend="native")
    assert_solved(a.tril() + a.tril(-1).mT, values.cpu(), vectors.cpu(), k=10.0)


@pytest.mark.parametrize("size", [160, 512])
def test_wide_matrices_in_a_graph(size: int) -> None:
    """The library's solver in a graph: a replay on new numbers gives what eager gives."""
    if not DRY_RUN and library_waits():
        pytest.skip("torch.linalg.eigh waits for the device")
    first, second = (stack(size, torch.float32, seed)[:8].to(DEVICE) for seed in (0, 20))
    a, values, vectors = first.clone(), torch.empty_like(first[:, 0]), torch.empty_like(first)

    def step() -> None:
        found = fastwhiten.symmetric_eigh(a, backend="native")
        values.copy_(found[0])
        vectors.copy_(found[1])

    replay = graphed(step)
    for new in (second, first):
        a.copy_(new)
        replay()
        expected = fastwhiten.symmetric_eigh(new, backend="native")
        assert torch.equal(values, expected[0]) and torch.equal(vectors, expected[1])


@pytest.mark.interpret
@DTYPES
@pytest.mark.parametrize("size", [3, 16, 33, 64])
def test_every_spectrum_with_triton(size: int, dtype: torch.dtype) -> None:
    a = stack(size, dtype)
    a = a[:3] if DEVICE.type == "cpu" else a  # the interpreter takes a second a matrix
    values, vectors = fastwhiten.symmetric_eigh(a.to(DEVICE), backend="triton")
    check_eigensystem(a, values.cpu(), vectors.cpu())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [7, 40, 100, 160])
def test_matrices_that_are_not_finite_are_nan_alone(size: int, bad: float) -> None:
    a = stack(size, torch.float32)[:3].to(DEVICE)
    clean = fastwhiten.symmetric_eigh(a, backend="native")
    a[1, size - 1, 0] = bad
    for value, good in zip(fastwhiten.symmetric_eigh(a, backend="native"), clean, strict=True):
        assert value[1].isnan().all()
        assert torch.equal(value[0], good[0]) and torch.equal(value[2], good[2])
