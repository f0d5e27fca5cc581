"""Every barrier of the one-launch kernels is needed, and the checks see it missing."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from fastwhiten.backends import reference
from tests.csrc import mutations
from tests.csrc.emulated_stages import EmulatedStages
from tests.csrc.emulation import ROOT, Probe
from tests.csrc.test_small import batch, forward, options, wide

pytestmark = [pytest.mark.emulated, pytest.mark.full]

FILES = ["block_whitening", "small_forward", "small_backward", "reduce", "cholesky"]
# The kernels around the library's factorisation belong to test_stage_mutations.py.
LIBRARY = (
    (ROOT / "csrc/cuda/cholesky.cuh").read_text().split("struct ShiftArguments")[0].count("\n")
)
MUTATIONS = [
    m
    for m in mutations.find(f"cuda/{name}.cuh" for name in FILES)
    if m.file != "cuda/cholesky.cuh" or m.line < LIBRARY
]
OTHER = (reference.CHOLESKY, reference.LEDOIT_WOLF)  # beside zca with a fixed intensity


@functools.cache
def problem() -> tuple[Tensor, int, dict[str, object], tuple[Tensor, ...]]:
    """Return x of three groups, every option, and the forward in float64."""
    x, groups = batch("odd, groups")
    o = options(x, groups, True, torch.float32)
    truth = forward(reference, x.float().double(), groups, wide(o), reference.ZCA)
    return x.float(), groups, o, truth


def check_forward(order: str, probe: Probe) -> None:
    x, groups, o, truth = problem()
    ours = forward(EmulatedStages(order, probe=probe), x, groups, o, reference.ZCA)
    for at in (0, 1, 2, 3, 5, 6):  # the basis has its own test
        torch.testing.assert_close(ours[at].double(), truth[at], rtol=1e-3, atol=1e-4)


def check_other_forward(order: str, probe: Probe) -> None:
    x, groups, o, _ = problem()
    truth = forward(reference, x.double(), groups, wide(o), *OTHER)
    ours = forward(EmulatedStages(order, probe=probe), x, groups, o, *OTHER)
    for value, ref in zip(ours, truth, strict=True):
        torch.testing.assert_close(value.double(), ref, rtol=1e-3, atol=1e-4)


def check_fixed_cholesky(order: str, probe: Probe) -> None:
    """Nothing waits between a covariance and its shrunk trace but for what is between them."""
    x, groups, o, _ = problem()
    truth = forward(reference, x.double(), groups, wide(o), reference.CHOLESKY)
    ours = forward(EmulatedStages(order, probe=probe), x, groups, o, reference.CHOLESKY)
    for value, ref in zip(ours, truth, strict=True):
        torch.testing.assert_close(value.double(), ref, rtol=1e-3, atol=1e-4)


def check_backward_of_planes(order: str, probe: Probe) -> None:
    """Other threads load a channel there than add it up."""
    x, groups = batch("planes")
    x, grad = x.float(), batch("planes", 5)[0].float()
    o = options(x, groups, False, torch.float32)
    truth = forward(reference, x.double(), groups, wide(o), reference.ZCA)
    rest = [v.float() for v in (truth[1], *truth[3:6])]
    none = (None, None, None, 1.0, reference.ZCA)
    expected = reference.whiten_backward(
        grad.double(), x.double(), *(v.double() for v in rest), *none
    )
    ours = EmulatedStages(order, probe=probe).whiten_backward(grad, x, *rest, *none)
    for value, ref in zip(ours, expected, strict=True):
        torch.testing.assert_close(value.double(), ref, rtol=1e-3, atol=1e-3)


def check_backward(order: str, kind: int, probe: Probe) -> None:
    x, _, o, truth = problem()
    grad = batch("odd, groups", 5)[0].float()
    _, mean, _, *factors, rho = [v.float() for v in truth]
    rest = (mean, *factors, o["gamma"], rho, o["p"], o["weight"], kind)
    double = [v.double() if isinstance(v, Tensor) else v for v in rest]
    expected = reference.whiten_backward(grad.double(), x.double(), *double)
    ours = EmulatedStages(order, probe=probe).whiten_backward(grad, x, *rest)
    for value, ref in zip(ours, expected, strict=True):
        torch.testing.assert_close(value.double(), ref, rtol=1e-3, atol=1e-3)


CHECKS = mutations.Checks(
    check
    for order in ("forward", "reversed")
    for check in (
        functools.partial(check_forward, order),
        functools.partial(check_other_forward, order),
        functools.partial(check_fixed_cholesky, order),
        functools.partial(check_backward_of_planes, order),
        functools.partial(check_backward, order, reference.ZCA),
        functools.partial(check_backward, order, reference.CHOLESKY),
    )
)


def test_there_is_something_to_mutate_and_nothing_to_find() -> None:
    assert len(MUTATIONS) >= 18
    assert CHECKS.reached


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_missing_call_is_caught(mutation: mutations.Mutation) -> None:
    CHECKS.assert_catch(mutation)
