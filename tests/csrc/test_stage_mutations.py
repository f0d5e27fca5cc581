"""Every barrier and every shuffle of the stages is needed, and the checks see it missing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastwhiten.backends import reference
from tests.csrc import mutations
from tests.csrc.emulated_stages import MANY_ROWS, EmulatedStages
from tests.csrc.emulation import Probe, run
from tests.helpers import spectra

pytestmark = [pytest.mark.emulated, pytest.mark.full]

NAMES = """
    tiles heaviest statistics apply backward_reduce backward_matrix reduce intensity sample cholesky
    library chunks matrices narrow panels products row_products statistics_chunk
"""
MUTATIONS = list(mutations.find(f"cuda/{name}.cuh" for name in NAMES.split()))


def rows(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return spectra.random(*shape, seed).float()


def expected(stage: str, arguments: tuple) -> tuple[Tensor, ...]:
    doubled = [
        a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments
    ]
    if stage == "sample_apply":
        doubled[-1] = torch.float64
    results = getattr(reference, stage)(*doubled)
    return (results,) if isinstance(results, Tensor) else results


def cases() -> list[tuple[str, tuple]]:
    """Return stages with arguments that reach every line: several slabs, tiles, chunks, groups.

    Those that end in ``, many`` are run as if they had many rows.
    """
    found: list[tuple[str, tuple]] = []
    for shape, groups in (((150, 80), 1), ((150, 24), 3)):
        x, grad = rows(shape), rows(shape, 5)
        size = shape[1] // groups
        mean, covariance = reference.statistics(x, None, groups, False)
        matrix = rows((groups * size, size), 7).reshape(groups, size, size)
        found += [
            ("statistics", (x, None, groups, False)),
            ("apply", (x, mean, matrix, None, None)),
            ("backward_reduce", (x, grad, mean, groups)),
            ("backward_apply", (x, grad, mean, mean, matrix, covariance, None, None)),
            ("intensity", (x, mean, covariance, None, None, 1.0, reference.LEDOIT_WOLF, 0.0)),
            ("apply, many", (x, mean, matrix, None, None)),
            ("backward_apply, many", (x, grad, mean, mean, matrix, covariance, None, None)),
        ]
    # Chunks that several warps add up; those that one block sums in several runs.
    x, grad = rows((2500, 80)), rows((2500, 80), 5)
    found.append(("statistics", (x, None, 1, False)))
    found.append(("backward_reduce", (x, grad, x.mean(0), 1)))
    for channels in (24, 80):
        part, of_grad = x[:2100, :channels].contiguous(), grad[:2100, :channels].contiguous()
        found.append(("statistics, many", (part, None, 1, False)))
        found.append(("backward_reduce, many", (part, of_grad, part.mean(0), 1)))
    # The heaviest row, which differences are taken from, is none of a first warp's, nor of a warp's
    # first thread: theirs have no weight and lie far away.
    x, p = rows((150, 80)), torch.linspace(1.0, 2.0, 150)
    for far in (slice(40), slice(None, None, 32)):
        x[far], p[far] = 1e6, 0.0
    found.append(("statistics", (x, p / p.sum(), 1, False)))
    covariance = reference.statistics(rows((90, 40)), None, 2, False)[1]
    rho = torch.tensor([0.2, 0.4])
    found.append(("factor", (covariance, None, rho, 1.0, 1e-2, reference.CHOLESKY)))
    factors = reference.factor(covariance, None, rho, 1.0, 1e-2, reference.ZCA)
    cross = rows((40, 20), 8).reshape(2, 20, 20)
    found.append(("backward_matrix", (cross, *factors, None, rho, 1.0, reference.ZCA)))
    found.append(("sample_statistics", (rows((20, 70)), None, 1, False)))
    return found


def stage_of(case: str, **settings: Any) -> Callable[..., Any]:
    """Return the stage that a case of :func:`cases` is of."""
    name, _, many = case.partition(", ")
    return getattr(EmulatedStages(**settings, limits=MANY_ROWS if many else ()), name)


def check(case: str, arguments: tuple, order: str, probe: Probe) -> None:
    """Raise what is wrong with a stage."""
    stage = case.partition(",")[0]
    ours = stage_of(case, order=order, probe=probe)(*arguments)
    ours = (ours,) if isinstance(ours, Tensor) else ours
    for value, truth in zip(ours, expected(stage, arguments), strict=True):
        # Conditions of 100 and a few hundred terms: 1e-7 becomes 1e-5, a fault is larger.
        torch.testing.assert_close(value.double(), truth.double(), rtol=1e-3, atol=1e-4)


def check_broken_groups(probe: Probe) -> None:
    """Raise if a group that has no Cholesky factor is not NaN, or another is."""
    broken = torch.eye(20).repeat(3, 1, 1)
    broken[0, 19, 19] = float("nan")
    broken[1, 3, 3] = -5.0
    stages = EmulatedStages(probe=probe)
    matrix = stages.factor(broken, None, None, 1.0, 1e-2, reference.CHOLESKY)[2]
    assert matrix[:2].isnan().all() and matrix[2].isfinite().all()


def check_library(order: str, probe: Probe) -> None:
    """Raise what is wrong around the library's solvers: its part is given, or not needed here."""
    a = rows((5 * 37, 37), 3).reshape(5, 37, 37)[:2].contiguous()
    a[1, 36, 0] = float("nan")
    options = {"order": order, "probe": probe, "batch": 2, "width": 37}
    guarded = run("library", kernel=0, a=a, **options)
    assert guarded["finite"].tolist() == [1, 0]
    assert torch.equal(guarded["guarded"].reshape(a.shape)[1], torch.eye(37))
    values, finite = torch.zeros(2 * 37), torch.ones(2, dtype=torch.int32)
    signed = a[:1].repeat(2, 1, 1)  # [2, D, D], columns one after another
    vectors = run("library", kernel=1, a=signed, values=values, finite=finite, **options)["vectors"]
    pivots = signed.gather(2, signed.abs().argmax(2, keepdim=True))
    assert torch.equal(vectors.reshape(a.shape), (signed * pivots.sign()).mT)
    shifted = run("library", kernel=2, a=a, rho=torch.full((2,), 0.2), eps=1e-3, **options)
    first, second = shifted["shifted"].reshape(a.shape)
    shift = 0.2 * a[0].trace() / 37 + 1e-3
    torch.testing.assert_close(first, 0.8 * a[0] + shift * torch.eye(37))
    assert torch.equal(second, -torch.eye(37))


CHECKS = mutations.Checks(
    [
        *(
            functools.partial(check, *case, order)
            for case in cases()
            for order in ("forward", "reversed")
        ),
        check_broken_groups,
        *(functools.partial(check_library, order) for order in ("forward", "reversed")),
    ]
)


def test_there_is_something_to_mutate_and_nothing_to_find() -> None:
    assert len(MUTATIONS) >= 25
    assert CHECKS.reached


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_missing_call_is_caught(mutation: mutations.Mutation) -> None:
    CHECKS.assert_catch(mutation)
