"""Every barrier and every shuffle of the eigensolvers is needed, and the checks see it missing."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.csrc import mutations
from tests.csrc.eigensystems import assert_solved, opposite_components, solve, stack
from tests.csrc.emulation import ROOT, Probe
from tests.helpers.spectra import generator

pytestmark = [pytest.mark.emulated, pytest.mark.full]

FILES = [
    *sorted(f"cuda/{p.name}" for p in (ROOT / "csrc/cuda").glob("jacobi*.cuh")),
    "cuda/eigh.cuh",
]
MUTATIONS = list(mutations.find(FILES))


def rotations(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    noise = torch.randn(3, size, size, dtype=torch.float64, generator=generator(size))
    return torch.linalg.qr(noise.to(dtype))[0]


def problems() -> Iterator[tuple[Tensor, dict[str, object]]]:
    """Yield what reaches every line: all kernels, cold and warm, definite and not, NaN."""
    for size in (3, 13, 24, 40, 68):
        a = stack(size, torch.float32)[:3]  # a covariance, an indefinite and a singular matrix
        start = rotations(size)
        poisoned = a.clone()
        poisoned[1, size - 1, size - 1] = float("nan")
        broken = start.clone()
        broken[0, size - 1, 0] = float("inf")
        yield a, {}
        yield a, {"start": start}
        yield poisoned, {"start": start}
        yield a, {"start": broken}
    # Its own eigenvectors are a start that leaves nothing to do but to find that out.
    for size in (13, 24, 68):
        a = stack(size, torch.float32)[:1]
        yield a, {"most_sweeps": 2, "start": torch.linalg.eigh(a)[1]}
    for a in opposite_components().values():
        yield a, {}


def check(
    a: Tensor, order: str, given: dict[str, object], probe: Probe, most_sweeps: int = 14
) -> None:
    """Raise what is wrong with the eigensystems of ``a``."""
    values, vectors, sweeps = solve(a, order=order, probe=probe, **given)
    assert (sweeps <= most_sweeps).all()
    good = a.isfinite().flatten(1).all(1)
    assert_solved(a[good], values[good], vectors[good])
    assert values[~good].isnan().all()
    assert vectors[~good].isnan().all()


def checks() -> Iterator[mutations.Check]:
    for a, options in problems():
        given = dict(options)
        limits = {name: given.pop(name) for name in ("most_sweeps",) if name in given}
        for order in ("forward", "reversed"):
            yield functools.partial(check, a, order, given, **limits)


CHECKS = mutations.Checks(checks())


def test_there_is_something_to_mutate_and_nothing_to_find() -> None:
    assert len(MUTATIONS) >= 48
    assert CHECKS.reached


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_missing_call_is_caught(mutation: mutations.Mutation) -> None:
    CHECKS.assert_catch(mutation)
