"""The kernels as nvcc compiles them, on a machine that runs their instructions one by one.

What the emulator cannot know is decided by nvcc: which products and sums are fused, and how
divisions and roots are made. So the accuracy tests run again on the compiled code.
"""

from __future__ import annotations

import os

import build_cuda
import pytest
import torch

from tests.csrc import compiled, eigensystems, emulated_stages, test_eigh, test_small, test_stages

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(build_cuda.find_toolkit(os.environ) is None, reason="there is no nvcc"),
]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigensystems, "run", compiled.run)
    monkeypatch.setattr(emulated_stages, "run", compiled.run)


@DTYPES
@pytest.mark.parametrize("size", [2, 5, 16, 17, 33])
def test_eigensystems(size: int, dtype: torch.dtype) -> None:
    test_eigh.test_every_spectrum(size, dtype)


@DTYPES
def test_one_sided_eigensystems(dtype: torch.dtype) -> None:
    a = eigensystems.stack(66, dtype)[:8:2]
    eigensystems.assert_solved(a, *eigensystems.solve(a)[:2])


@pytest.mark.parametrize("kind", [*test_small.KINDS, "cholesky"])
@pytest.mark.parametrize("name", test_small.SHAPES)
def test_passes_in_one_launch(name: str, kind: str) -> None:
    if kind in test_small.KINDS:
        test_small.test_forward_in_one_launch(name, kind, True, torch.float32)
    test_small.test_backward_in_one_launch(name, kind, True, torch.float32)
