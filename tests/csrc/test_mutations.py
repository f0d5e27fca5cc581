"""Every barrier and every shuffle of the eigensolvers is needed, and the checks see it missing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.csrc import mutations
from tests.csrc.eigensystems import assert_solved, solve, stack
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


def check(csrc: Path) -> None:
    """Raise what the checks of the eigensolvers find wrong."""
    for a, start in cases():
        for order in ("forward", "reversed"):
            # One block for all: a barrier between two matrices of a block matters, too.
            values, vectors, sweeps = solve(
                a,
                start=start,
                order=order,
                csrc=csrc,
                most_blocks=1,
                timeout=60.0,
                defines=("FLOAT_ONLY",),
            )
            assert (sweeps <= 14).all()
            good = a.isfinite().flatten(1).all(1)
            assert_solved(a[good], values[good], vectors[good])
            assert values[~good].isnan().all()
            assert vectors[~good].isnan().all()


def test_there_is_something_to_mutate_and_nothing_to_find() -> None:
    assert len(MUTATIONS) > 40
    check(ROOT / "csrc")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_missing_call_is_caught(mutation: mutations.Mutation, tmp_path: Path) -> None:
    with pytest.raises((EmulationError, AssertionError)):
        check(mutations.apply(mutation, tmp_path))
