"""The kernels around the library's eigensolver and Cholesky factorisation, emulated.

The library's own part is PyTorch's, here on the CPU; cuSOLVER's is in test_cusolver.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastwhiten.backends import reference
from tests.csrc.emulation import run
from tests.helpers import spectra

pytestmark = pytest.mark.emulated

EVERY = pytest.mark.parametrize(
    ("order", "sanitize"), [("forward", False), ("reversed", True)], ids=["plain", "sanitized"]
)
SIZE, BATCH = 37, 3


def covariances() -> Tensor:
    """Three of them, the second with a NaN below the diagonal."""
    a = reference.statistics(spectra.random(200, SIZE * BATCH), None, BATCH, False)[1]
    a[1, SIZE - 1, 0] = float("nan")
    return a


@EVERY
def test_eigensystems_from_the_library(order: str, sanitize: bool) -> None:
    a = covariances()
    options = {"order": order, "sanitize": sanitize, "batch": BATCH, "width": SIZE}
    above = a + torch.full_like(a, float("inf")).triu(1)  # only the lower triangle is read
    guarded = run("library", kernel=0, a=above, **options)
    assert guarded["finite"].tolist() == [1, 0, 1]
    lower = guarded["guarded"].reshape(a.shape).tril()
    assert torch.equal(lower[::2], a[::2].tril())
    assert torch.equal(lower[1], torch.eye(SIZE, dtype=a.dtype))
    values, vectors = torch.linalg.eigh(lower)
    signs = torch.where(
        torch.arange(SIZE) % 2 == 0, 1.0, -1.0
    )  # some are wrong, whatever they were
    out = run(
        "library",
        kernel=1,
        a=(vectors * signs).mT.contiguous(),
        values=values,
        finite=guarded["finite"],
        **options,
    )
    expected = reference.eigh(a)
    torch.testing.assert_close(out["out_values"].reshape(BATCH, SIZE), expected[0], equal_nan=True)
    torch.testing.assert_close(out["vectors"].reshape(a.shape), expected[1], equal_nan=True)


def test_the_first_of_equal_components_is_positive() -> None:
    vectors = torch.tensor([[-0.5, 0.5, -0.5, 0.5], [0.5, -0.5, -0.5, 0.5]]).repeat(1, 9)
    a = torch.zeros(1, 36, 36)
    a[0, :2] = vectors  # two columns, as they lie in memory
    out = run(
        "library",
        kernel=1,
        a=a,
        values=torch.zeros(36),
        finite=torch.ones(1, dtype=torch.int32),
        batch=1,
        width=36,
    )
    result = out["vectors"].reshape(36, 36).T
    assert torch.equal(result[0], -vectors[0]) and torch.equal(result[1], vectors[1])


@EVERY
@pytest.mark.parametrize("shrunk", [False, True])
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_cholesky_factors_from_the_library(
    columns: bool, shrunk: bool, order: str, sanitize: bool
) -> None:
    a = covariances()
    a = (a + a.mT) / 2
    a[2] = -torch.eye(SIZE)  # not positive definite
    rho = torch.tensor([0.1, 0.2, 0.3], dtype=a.dtype) if shrunk else None
    options = {"order": order, "sanitize": sanitize, "batch": BATCH, "width": SIZE}
    out = run("library", kernel=2, a=a, rho=rho, eps=1e-3, **options)
    shifted, identity = (out[name].reshape(a.shape) for name in ("shifted", "identity"))
    lower, info = torch.linalg.cholesky_ex(shifted)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    strides = {"stride_batch": SIZE**2, "stride_row": SIZE, "stride_column": 1}
    if columns:  # as a library may leave them: one after another
        inverse, strides["stride_row"], strides["stride_column"] = inverse.mT, 1, SIZE
    ours = run("library", kernel=3, a=inverse, info=info.int(), **strides, **options)["matrix"]
    expected = reference.factor(a, None, rho, 1.0, 1e-3, reference.CHOLESKY)[2]
    assert ours.reshape(a.shape)[1:].isnan().all() and expected[1:].isnan().any()
    torch.testing.assert_close(ours.reshape(a.shape)[0], expected[0], rtol=1e-9, atol=1e-10)
