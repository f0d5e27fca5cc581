"""Every barrier of the one-launch kernels is needed, and the checks see it missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastwhiten.backends import reference
from tests.csrc import mutations
from tests.csrc.emulated_stages import EmulatedStages
from tests.csrc.emulation import ROOT, EmulationError
from tests.csrc.test_small import batch, forward, options, wide

pytestmark = [pytest.mark.emulated, pytest.mark.slow]

FILES = ["small_forward", "small_backward", "reduce", "cholesky"]
# Kernels around the library's Cholesky factorisation, which is not emulated.
LIBRARY = (
    (ROOT / "csrc/cuda/cholesky.cuh").read_text().split("struct ShiftArguments")[0].count("\n")
)
MUTATIONS = [
    m
    for m in mutations.find(f"cuda/{name}.cuh" for name in FILES)
    if m.file != "cuda/cholesky.cuh" or m.line < LIBRARY
]
OTHER = (reference.CHOLESKY, reference.LEDOIT_WOLF)  # beside zca with a fixed intensity


def check(csrc: Path) -> None:
    """Raise what is wrong with a forward and a backward of three groups, with every option."""
    x, groups = batch("odd, groups")
    grad, o = batch("odd, groups", 5)[0].float(), options(x, groups, True, torch.float32)
    truth = forward(reference, x.float().double(), groups, wide(o), reference.ZCA)
    other = forward(reference, x.float().double(), groups, wide(o), *OTHER)
    _, mean, _, *factors, rho = [v.float() for v in truth]
    for order in ("forward", "reversed"):
        stages = EmulatedStages(order, csrc=csrc, defines=("FLOAT_ONLY",))
        ours = forward(stages, x.float(), groups, o, reference.ZCA)
        for at in (0, 1, 2, 3, 5, 6):  # the basis has its own test
            torch.testing.assert_close(ours[at].double(), truth[at], rtol=1e-3, atol=1e-4)
        ours = forward(stages, x.float(), groups, o, *OTHER)
        for value, ref in zip(ours, other, strict=True):
            torch.testing.assert_close(value.double(), ref, rtol=1e-3, atol=1e-4)
        for kind in (reference.ZCA, reference.CHOLESKY):
            rest = (mean, *factors, o["gamma"], rho, o["p"], o["weight"], kind)
            double = [v.double() if isinstance(v, torch.Tensor) else v for v in rest]
            expected = reference.whiten_backward(grad.double(), x.float().double(), *double)
            for value, ref in zip(
                stages.whiten_backward(grad, x.float(), *rest), expected, strict=True
            ):
                torch.testing.assert_close(value.double(), ref, rtol=1e-3, atol=1e-3)


def test_there_is_something_to_mutate_and_nothing_to_find() -> None:
    assert len(MUTATIONS) > 10
    check(ROOT / "csrc")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_missing_call_is_caught(mutation: mutations.Mutation, tmp_path: Path) -> None:
    with pytest.raises((EmulationError, AssertionError)):
        check(mutations.apply(mutation, tmp_path))
