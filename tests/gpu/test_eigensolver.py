"""The eigensolvers of the device on spectra that break others, with LAPACK's accuracy in float32.

Matrices and tolerances are those of the emulated kernels (``tests/csrc``).
"""

import pytest
import torch

import fastwhiten
from tests.backends.test_stages import check_eigensystem
from tests.csrc.eigensystems import assert_solved, stack
from tests.gpu.device import DEVICE

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
# a warp, a block with the two-sided and one with the one-sided method
SIZES = [1, 2, 3, 5, 8, 15, 16, 17, 32, 33, 48, 63, 64, 65, 96, 127, 128]


@DTYPES
@pytest.mark.parametrize("size", SIZES)
def test_every_spectrum(size: int, dtype: torch.dtype) -> None:
    a = stack(size, dtype)
    values, vectors = fastwhiten.symmetric_eigh(a.to(DEVICE), backend="native")
    assert_solved(a, values.cpu(), vectors.cpu())


@pytest.mark.interpret
@DTYPES
@pytest.mark.parametrize("size", [3, 16, 33, 64])
def test_every_spectrum_with_triton(size: int, dtype: torch.dtype) -> None:
    a = stack(size, dtype)
    a = a[:3] if DEVICE.type == "cpu" else a  # the interpreter takes a second a matrix
    values, vectors = fastwhiten.symmetric_eigh(a.to(DEVICE), backend="triton")
    check_eigensystem(a, values.cpu(), vectors.cpu())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [7, 40, 100])
def test_matrices_that_are_not_finite_are_nan_alone(size: int, bad: float) -> None:
    a = stack(size, torch.float32)[:3].to(DEVICE)
    clean = fastwhiten.symmetric_eigh(a, backend="native")
    a[1, size - 1, 0] = bad
    for value, good in zip(fastwhiten.symmetric_eigh(a, backend="native"), clean, strict=True):
        assert value[1].isnan().all()
        assert torch.equal(value[0], good[0]) and torch.equal(value[2], good[2])
