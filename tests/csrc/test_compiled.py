"""The eigensolvers and small passes as nvcc compiles them, instruction by instruction.

What the emulator cannot know is nvcc's choice: which products and sums are fused, and how divisions
and roots are made. So the accuracy tests run again on the compiled code.
"""

from __future__ import annotations

import os

import build_cuda
import pytest
import torch

from tests.csrc import compiled, eigensystems, emulated_stages, test_eigh, test_small

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(build_cuda.find_toolkit(os.environ) is None, reason="there is no nvcc"),
]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigensystems, "run", compiled.run)
    monkeypatch.setattr(emulated_stages, "run", compiled.run)


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("size", [2, 5, 16, 17, 33])
def test_eigensystems(size: int, dtype: torch.dtype) -> None:
    """By one warp in registers, and two-sided by a block."""
    test_eigh.test_every_spectrum(size, dtype)


@pytest.mark.slow
@DTYPES
def test_one_sided_eigensystems(dtype: torch.dtype) -> None:
    size = 66 if dtype == torch.float32 else 50
    a = eigensystems.stack(size, dtype)[:8:2]  # covariance, rank-deficient, tied, condition 1e4
    eigensystems.assert_solved(a, *eigensystems.solve(a)[:2])


@pytest.mark.full
@pytest.mark.parametrize("every", [False, True], ids=["plain", "every option"])
@pytest.mark.parametrize("kind", [*test_small.KINDS, "cholesky"])
@pytest.mark.parametrize("name", test_small.SHAPES)
def test_passes_in_one_launch(name: str, kind: str, every: bool) -> None:
    if kind in test_small.KINDS:
        test_small.test_forward_in_one_launch(name, kind, every, torch.float32)
    test_small.test_backward_in_one_launch(name, kind, every, torch.float32)


def test_what_comes_of_a_launch() -> None:
    """Loops run as often as the numbers ask for: a diagonal matrix needs no rotation."""

    def report(a: torch.Tensor) -> compiled.Report:
        launches: list[compiled.Report] = []
        compiled.run("eigh", launches=launches, a=a, B=1, D=40)
        (found,) = launches
        assert "eigh" in found.kernel
        return found

    random = report(eigensystems.stack(40, torch.float32)[:1])
    diagonal = report(torch.diag(torch.arange(1.0, 41.0)).unsqueeze(0))
    assert random.numbers["cycles"] > 2 * diagonal.numbers["cycles"]
    assert random.numbers["issued"] > 2 * diagonal.numbers["issued"]
    # A scheduler issues no more than one instruction a cycle, and none that no line accounts for.
    assert random.numbers["issued"] <= 4 * random.numbers["cycles"]
    assert sum(counts[0] for counts in random.lines.values()) == random.numbers["issued"]
    assert random.rounds
