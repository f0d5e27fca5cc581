"""Every barrier and every shuffle of the stages is needed, and the checks see it missing."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastwhiten.backends import reference
from tests.csrc import mutations
from tests.csrc.emulated_stages import EmulatedStages
from tests.csrc.emulation import ROOT, EmulationError
from tests.helpers import spectra

pytestmark = [pytest.mark.emulated, pytest.mark.slow]

NAMES = "tiles statistics apply backward_reduce backward_matrix reduce intensity sample cholesky"
FILES = [f"cuda/{name}.cuh" for name in NAMES.split()]
# Kernels around the library's Cholesky factorisation, which is not emulated.
LIBRARY = (
    (ROOT / "csrc/cuda/cholesky.cuh").read_text().split("struct ShiftArguments")[0].count("\n")
)
MUTATIONS = [m for m in mutations.find(FILES) if m.file != "cuda/cholesky.cuh" or m.line < LIBRARY]


def rows(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return spectra.random(*shape, seed).float()


@functools.cache
def expected(stage: str, arguments: tuple) -> tuple[Tensor, ...]:
    doubled = [
        a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments
    ]
    if stage == "sample_apply":
        doubled[-1] = torch.float64
    results = getattr(reference, stage)(*doubled)
    return (results,) if isinstance(results, Tensor) else results


def cases() -> list[tuple[str, tuple]]:
    """Return stages with arguments that reach every line: several slabs, tiles, chunks, groups."""
    found: list[tuple[str, tuple]] = []
    for shape, groups in (((150, 80), 1), ((150, 24), 3)):
        x, grad = rows(shape), rows(shape, 5)
        size = shape[1] // groups
        mean, covariance = reference.statistics(x, None, groups, False)
        matrix = torch.randn(groups, size, size)
        found += [
            ("statistics", (x, None, groups, False)),
            ("apply", (x, mean, matrix, None, None)),
            ("backward_reduce", (x, grad, mean, groups)),
            ("backward_apply", (x, grad, mean, mean, matrix, covariance, None, None)),
            ("intensity", (x, mean, covariance, None, None, 1.0, reference.LEDOIT_WOLF, 0.0)),
        ]
    covariance = reference.statistics(rows((90, 40)), None, 2, False)[1]
    rho = torch.tensor([0.2, 0.4])
    found.append(("factor", (covariance, None, rho, 1.0, 1e-2, reference.CHOLESKY)))
    factors = reference.factor(covariance, None, rho, 1.0, 1e-2, reference.ZCA)
    cross = torch.randn(2, 20, 20)
    found.append(("backward_matrix", (cross, *factors, None, rho, 1.0, reference.ZCA)))
    found.append(("sample_statistics", (rows((20, 70)), None, 1, False)))
    return found


def check(csrc: Path) -> None:
    """Raise what is wrong with the stages."""
    torch.manual_seed(0)
    for stage, arguments in cases():
        for order in ("forward", "reversed"):
            stages = EmulatedStages(order, csrc=csrc, defines=("FLOAT_ONLY",))
            ours = getattr(stages, stage)(*arguments)
            ours = (ours,) if isinstance(ours, Tensor) else ours
            for value, truth in zip(ours, expected(stage, arguments), strict=True):
                # Conditions of 100 and a few hundred terms: 1e-7 becomes 1e-5, a fault is larger.
                torch.testing.assert_close(value.double(), truth.double(), rtol=1e-3, atol=1e-4)
    broken = torch.eye(20).repeat(3, 1, 1)
    broken[0, 19, 19] = float("nan")
    broken[1, 3, 3] = -5.0
    stages = EmulatedStages(csrc=csrc, defines=("FLOAT_ONLY",))
    matrix = stages.factor(broken, None, None, 1.0, 1e-2, reference.CHOLESKY)[2]
    assert matrix[:2].isnan().all() and matrix[2].isfinite().all()


def test_there_is_something_to_mutate_and_nothing_to_find() -> None:
    assert len(MUTATIONS) > 15
    check(ROOT / "csrc")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_missing_call_is_caught(mutation: mutations.Mutation, tmp_path: Path) -> None:
    with pytest.raises((EmulationError, AssertionError)):
        check(mutations.apply(mutation, tmp_path))
