"""Races on global memory: planted ones are found, and the kernels have none.

Every access of global memory is recorded (``emulator/global_memory.h``). One run of a kernel is
enough: what is unordered is found in whatever order the threads ran.
"""

from __future__ import annotations

import re

import pytest
import torch

from fastwhiten.backends import reference
from tests.csrc import test_mutations as eigensolvers
from tests.csrc import test_small_mutations as small
from tests.csrc import test_stage_mutations as stages
from tests.csrc.eigensystems import solve, stack
from tests.csrc.emulated_stages import EmulatedStages
from tests.csrc.emulation import ORDERS, EmulationError, Probe, run
from tests.helpers import spectra

pytestmark = pytest.mark.emulated

EVERY_ORDER = pytest.mark.parametrize("order", ORDERS)
FAULTS = {
    "read too early": (1, r"race on byte \d+ of x: thread \d+ (wrote|read) it"),
    "written too early": (2, r"race on byte \d+ of x: thread \d+ (wrote|read) it"),
    "no __syncwarp": (3, r"race on byte \d+ of x: thread \d+ (wrote|read) it"),
    "half a __syncwarp": (4, r"race on byte \d+ of x: thread \d+ (wrote|read) it"),
    "read by another block": (5, r"race on byte \d+ of x: block \d in the order of running"),
    "written by two blocks": (6, r"race on byte 28 of out: block \d in the order of running wrote"),
    "read before it is written": (7, r"thread 3 reads byte \d+ of out, which nobody wrote"),
    "what all read is written": (8, r"race on byte 20 of x: thread \d+ read it .* 40 writes it"),
}


@EVERY_ORDER
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_races_are_found(fault: str, order: str) -> None:
    number, message = FAULTS[fault]
    if number == 8 and order != "forward":  # thread 40 may come first
        message = r"race on byte \d+ of x: thread \d+ (read it .* writes|wrote it .* reads) it"
    x = torch.zeros(3 * 64, dtype=torch.int32)
    with pytest.raises(EmulationError, match=message) as caught:
        run("planted", which=3, fault=number, x=x, order=order, sanitize="races")
    assert re.search(r"at planted\.cpp:\d+", str(caught.value)), "no line of the source"


@EVERY_ORDER
@pytest.mark.parametrize("sanitize", ["", "memory", "races"])
def test_their_twin_without_a_fault_passes(sanitize: str, order: str) -> None:
    x = torch.zeros(3 * 64, dtype=torch.int32)
    result = run("planted", which=3, x=x, order=order, sanitize=sanitize)
    handed_on = (63 - (torch.arange(64) ^ 31)).int().repeat(3)
    assert torch.equal(result["out"], handed_on)
    assert torch.equal(result["sum"], handed_on.reshape(-1, 32).sum(0).int())


@EVERY_ORDER
def test_other_planted_kernels_pass(order: str) -> None:
    x = torch.randint(-100, 100, (3, 64)).float()
    result = run("planted", which=0, x=x, grid=3, order=order, sanitize="races")
    assert torch.equal(result["sum"], x.sum(1))
    run("planted", which=1, order=order, sanitize="races")
    run("planted", which=2, x=x.double(), order=order, sanitize="races")


@pytest.mark.parametrize("size", [3, 7, 13, 24, 40, 68])
def test_eigensolvers_have_none(size: int) -> None:
    of = slice(0, 2) if size < 64 else slice(1, 2)  # of the large ones the indefinite one alone
    a, start = stack(size, torch.float32)[of], eigensolvers.rotations(size)[of]
    for given in (None, start):
        solve(a, start=given, sanitize="races")


@pytest.mark.parametrize(
    ("case", "arguments"), stages.cases(), ids=[case for case, _ in stages.cases()]
)
def test_stages_have_none(case: str, arguments: tuple) -> None:
    stages.stage_of(case, sanitize="races")(*arguments)


@pytest.mark.parametrize("kind", [reference.ZCA, reference.PCA, reference.CHOLESKY])
def test_whole_passes_in_several_launches_have_none(kind: int) -> None:
    """Every option; shrinkage by Ledoit and Wolf is not for the one-launch kernel."""
    x, emulated = spectra.random(150, 60).float(), EmulatedStages(sanitize="races")
    p = torch.full((150,), 1 / 150)
    gamma, running = torch.linspace(0.5, 1.5, 60), torch.eye(20).repeat(3, 1, 1)
    out = emulated.whiten_forward(
        x, gamma, gamma, p, running, 3, 0.3, 1e-3, kind, False, reference.LEDOIT_WOLF, 0.0
    )
    _, mean, _, *factors, rho = out
    arguments = (mean, *factors, gamma, rho, p, 0.3, kind)
    emulated.whiten_backward(spectra.random(150, 60, 5).float(), x, *arguments)


@pytest.mark.parametrize("kind", [reference.ZCA, reference.PCA, reference.CHOLESKY])
@pytest.mark.parametrize("every", [False, True], ids=["plain", "every option"])
def test_one_launch_kernels_have_none(every: bool, kind: int) -> None:
    x, groups = small.batch("odd, groups")
    x, o = x.float(), small.options(x, groups, every, torch.float32)
    emulated = EmulatedStages(sanitize="races")
    method = kind if kind != reference.CHOLESKY else reference.ZCA  # Cholesky: a backward only
    _, mean, _, *factors, rho = small.forward(emulated, x, groups, o, method)
    rest = (mean, *factors, o["gamma"], rho if every else None, o["p"], o["weight"], kind)
    emulated.whiten_backward(small.batch("odd, groups", 5)[0].float(), x, *rest)


def test_barriers_that_order_global_memory_are_missed() -> None:
    """Above order 64 the finish works in global memory: without its barriers there are races."""
    a, found = torch.diag(torch.linspace(1.0, 2.0, 66))[None], []
    for mutation in eigensolvers.MUTATIONS:
        if "one_sided" in mutation.file or "block" in mutation.file:
            try:
                solve(a, sanitize="races", probe=Probe(omit=mutation.place))
            except EmulationError as error:
                found.append(str(error))
    races = [message for message in found if re.search(r"race on byte \d+ of vectors", message)]
    assert len(races) >= 2, found


def test_sample_side_has_none() -> None:
    x, emulated = spectra.random(70, 160).float(), EmulatedStages(sanitize="races")
    p, rho = torch.full((70,), 1 / 70), torch.full((2,), 0.2)
    _, scaled, gram = emulated.sample_statistics(x, p, 2, False)
    eigensystem = reference.eigh(gram)
    _, projected = emulated.sample_apply(scaled, *eigensystem, p, rho, 1e-2, torch.float32)
    emulated.sample_backward(x, projected, *eigensystem, p, rho, 1e-2)


def test_kernels_around_the_library_have_none() -> None:
    options = {"batch": 3, "width": 37, "sanitize": "races"}
    a = stages.rows((3 * 37, 37)).reshape(3, 37, 37)
    guarded = run("library", kernel=0, a=a, **options)
    values = torch.zeros(3 * 37)
    run("library", kernel=1, a=a, values=values, finite=guarded["finite"], **options)
    run("library", kernel=2, a=a, rho=torch.full((3,), 0.2), eps=1e-3, **options)
    strides = {"stride_batch": 37 * 37, "stride_row": 37, "stride_column": 1}
    run("library", kernel=3, a=a, info=torch.zeros(3, dtype=torch.int32), **strides, **options)
