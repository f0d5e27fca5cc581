"""Every barrier and every shuffle of the eigensolvers is needed, and the checks see it missing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.csrc import mutations
from tests.csrc.eigensystems import K, assert_solved, solve, stack
from tests.csrc.emulation import ROOT, EmulationError

pytestmark = [pytest.mark.emulated, pytest.mark.slow]

FILES = [
    *sorted(f"cuda/{p.name}" for p in (ROOT / "csrc/cuda").glob("jacobi*.cuh")),
    "cuda/eigh.cuh",
]
MUTATIONS = list(mutations.find(FILES))


def cases() -> list[tuple[Tensor, Tensor | None]]:
    """Return what reaches every line: all kernels, cold and warm, definite and not, NaN."""
    found: list[tuple[Tensor, Tensor | None]] = []
    for size in (3, 13, 24, 40, 68):
        a = stack(size, torch.float32)[:3]  # a covariance, an indefinite and a singular matrix
        start = torch.linalg.qr(torch.randn(3, size, size))[0]
        poisoned = a.clone()
        poisoned[1, size - 1, size - 1] = float("nan")
        found += [(a, None), (a, start), (poisoned, start)]
        start = start.clone()
        start[0, size - 1, 0] = float("inf")
        found.append((a, start))
    return found


def solve_and_check(
    a: Tensor, csrc: Path, k: float = K, most_sweeps: int = 14, **given: object
) -> None:
    for order in ("forward", "reversed"):
        # One block for all: a barrier between two matrices of a block matters, too.
        only = ("FLOAT_ONLY" if a.dtype == torch.float32 else "DOUBLE_ONLY",)
        values, vectors, sweeps = solve(
            a, order=order, csrc=csrc, most_blocks=1, timeout=60.0, defines=only, **given
        )
        assert (sweeps <= most_sweeps).all()
        good = a.isfinite().flatten(1).all(1)
        assert_solved(a[good], values[good], vectors[good], k)
        assert values[~good].isnan().all()
        assert vectors[~good].isnan().all()


def check(csrc: Path) -> None:
    """Raise what the checks of the eigensolvers find wrong."""
    for a, start in cases():
        solve_and_check(a, csrc, start=start)
    # Its own eigenvectors are a start that leaves nothing to do but to find that out.
    for size in (13, 24, 68):
        a = stack(size, torch.float32)[:1]
        solve_and_check(a, csrc, most_sweeps=2, start=torch.linalg.eigh(a)[1])
    # An eigenvector whose largest components are equal in size, bit for bit, and opposite in sign.
    tie = torch.tensor([[-4.0, -2.0, 2.0], [-2.0, 2.0, 2.0], [2.0, 2.0, -4.0]])
    solve_and_check(tie.unsqueeze(0), csrc)
    # No room for a second array: the shift of an indefinite matrix is Gershgorin's bound.
    solve_and_check(stack(68, torch.float32)[:3], csrc, k=40.0, shared_limit=30 << 10)
    # In double the vectors of such a matrix turn in global memory.
    a = stack(65, torch.float64)[:3]
    start = torch.linalg.qr(torch.randn(3, 65, 65, dtype=torch.float64))[0]
    for given in (None, start):
        solve_and_check(a, csrc, start=given, shared_limit=48 << 10)


def test_there_is_something_to_mutate_and_nothing_to_find() -> None:
    assert len(MUTATIONS) > 40
    check(ROOT / "csrc")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_missing_call_is_caught(mutation: mutations.Mutation, tmp_path: Path) -> None:
    with pytest.raises((EmulationError, AssertionError)):
        check(mutations.apply(mutation, tmp_path))
