"""The CUDA kernels, emulated with products and sums fused as nvcc fuses them.

By default nvcc makes one rounding of ``a * b + c``, wherever it likes. An algorithm that is
accurate with two roundings need not be with one: ``a * d - b * c`` of equal products is then not
zero. So the accuracy tests run again in a build that fuses all it can; which of two products of a
sum goes into the fused operation is the compiler's choice, and may differ from nvcc's.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.csrc import eigensystems, emulated_stages, emulation, test_eigh, test_small, test_spectra

pytestmark = pytest.mark.emulated

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])


@cache
def processor_flags() -> frozenset[str]:
    """Return what the first processor says it can do; nothing where it is no x86."""
    found = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return frozenset(next((line for line in found if line.startswith("flags")), "").split())


def run_contracted(driver: str, **arguments: object) -> dict[str, Tensor]:
    """Run a driver in the build that fuses, whichever was asked for."""
    return emulation.run(driver, **{**arguments, "sanitize": "contracted"})


@pytest.fixture(autouse=True)
def _contracted(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"fma", "avx2"} - processor_flags()
    if missing:
        pytest.skip(f"this processor has no {' and no '.join(sorted(missing))} to fuse with")
    monkeypatch.setattr(eigensystems, "run", run_contracted)
    monkeypatch.setattr(emulated_stages, "run", run_contracted)


def test_the_build_fuses() -> None:
    """Else the tests below repeat others: some bit has to differ."""
    a = eigensystems.stack(24, torch.float32)[:1]
    fused = eigensystems.solve(a)[1]
    apart = emulation.run("eigh", a=a, B=1, D=24)["vectors"].reshape(a.shape)
    assert not torch.equal(fused, apart)
    torch.testing.assert_close(fused, apart, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("size", [2, 5, 16, 17, 50])
def test_eigensystems(size: int, dtype: torch.dtype) -> None:
    """By one warp, and by a block."""
    test_eigh.test_every_spectrum(size, dtype)


def test_eigensystems_in_one_array() -> None:
    a = eigensystems.stack(66, torch.float32)[:8:2]  # covariance, rank-deficient, tied, 1e4
    eigensystems.assert_solved(a, *eigensystems.solve(a)[:2])


@pytest.mark.parametrize("size", [16, 64])
def test_whitening_matrices(size: int) -> None:
    test_eigh.test_whitening_matrices_are_as_good_as_lapacks(size)


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True], ids=["plain", "every option"])
@pytest.mark.parametrize("kind", [*test_small.KINDS, "cholesky"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("headline", marks=pytest.mark.full),
        *(n for n in test_small.SHAPES if n != "headline"),
    ],
)
def test_passes_in_one_launch(name: str, kind: str, every: bool) -> None:
    if kind in test_small.KINDS:
        test_small.test_forward_in_one_launch(name, kind, every, torch.float32)
    test_small.test_backward_in_one_launch(name, kind, every, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["warp", "block"])
@pytest.mark.parametrize("kind", test_spectra.KINDS)
@pytest.mark.parametrize("name", test_spectra.SPECTRA)
def test_spectra_of_whole_passes(name: str, kind: str, size: str) -> None:
    test_spectra.test_spectra(name, kind, size, torch.float32)
