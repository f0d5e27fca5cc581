"""Calls that the emulator leaves out, and what the mutation tests make of the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.csrc import mutations
from tests.csrc import test_mutations as eigensolvers
from tests.csrc import test_small_mutations as small
from tests.csrc import test_stage_mutations as stages
from tests.csrc.emulation import DRIVERS, ROOT, EmulationError, Probe, run
from tests.csrc.test_emulation import expected_of_warps

pytestmark = pytest.mark.emulated

SOURCE = (DRIVERS / "planted.cpp").read_text(encoding="utf-8").splitlines()
OWN = torch.arange(64, dtype=torch.int32)
# What every thread has where the call is left out: its own value or predicate.
WARP_OPERATIONS = {
    "row[0] = __shfl_sync": (0, OWN),
    "row[1] = __shfl_xor_sync": (1, OWN),
    "row[2] = __shfl_down_sync": (2, OWN),
    "row[3] = __shfl_up_sync": (3, OWN),
    "row[4] = __shfl_xor_sync": (4, OWN),
    "__ballot_sync(all": (5, (OWN % 32 % 3 == 0).int()),
    "row[10] =": (10, OWN),
    "(__reduce_max_sync": (12, torch.where(OWN % 32 == 9, -16, OWN).int()),
}


def line(text: str) -> int:
    """Return the number of the one line that has ``text``."""
    found = [number for number, content in enumerate(SOURCE, 1) if text in content]
    assert len(found) == 1
    return found[0]


def mutation(text: str, after: int = 0) -> mutations.Mutation:
    return mutations.Mutation("planted.cpp", line(text) + after, text, "")


@pytest.mark.parametrize("text", WARP_OPERATIONS)
def test_a_thread_goes_on_with_what_it_knows(text: str) -> None:
    column, own = WARP_OPERATIONS[text]
    expected = expected_of_warps()
    expected[:, column] = own
    probe = Probe(omit=mutation(text).place)
    assert torch.equal(run("planted", which=1, probe=probe)["out"].reshape(64, 13), expected)


def test_a_barrier_that_is_left_out_is_a_race() -> None:
    probe = Probe(omit=mutation("} else if (fault != kNoBarrier) {", after=1).place)
    with pytest.raises(EmulationError, match=r"race on the shared word|which nobody wrote"):
        run("planted", which=0, x=torch.ones(64), probe=probe)


def test_calls_that_are_reached() -> None:
    probe = Probe()
    run("planted", which=0, x=torch.ones(64), probe=probe)
    barriers = [mutation("} else if (fault != kNoBarrier) {", 1), mutation("if (fault != kNoLoopB")]
    assert probe.reached == {barrier.place for barrier in barriers}


@pytest.mark.parametrize("place", ["planted.cpp", "planted.cpp:", "planted.cpp:x"])
def test_what_is_no_place_is_no_caught_mutation(place: str) -> None:
    with pytest.raises(RuntimeError, match="usage"):
        run("planted", which=0, x=torch.ones(64), probe=Probe(omit=place))


def check(probe: Probe) -> None:
    result = run("planted", which=1, probe=probe)["out"].reshape(64, 13)
    assert torch.equal(result, expected_of_warps())


def test_a_mutation_that_survives_is_named() -> None:
    checks = mutations.Checks([check])
    checks.assert_catch(mutation("row[1] = __shfl_xor_sync"))
    checks.assert_catch(mutation("if (fault < kNoSyncwarp) __syncwarp()"))
    needless = mutation("a[t] = 0;", after=1)  # every thread writes a word of its own, twice
    with pytest.raises(AssertionError, match=rf"{needless.place} .* survives: 1 checks reach it"):
        checks.assert_catch(needless)
    with pytest.raises(AssertionError, match=r"no check reaches planted\.cpp"):
        checks.assert_catch(mutation("row[11] = __shfl_xor_sync(all, t, 2)"))


def test_checks_that_fail_on_the_kernels_as_they_are_catch_nothing() -> None:
    def wrong(probe: Probe) -> None:
        check(probe)
        raise AssertionError("always")

    with pytest.raises(AssertionError, match="always"):
        mutations.Checks([wrong]).assert_catch(mutation("row[1] = __shfl_xor_sync"))


def test_what_stands_in_the_place_of_a_call(tmp_path: Path) -> None:
    calls = {
        "__shfl_xor_sync(mask, f(a, b), 1)": "(f(a, b))",
        "__reduce_max_sync(mask, key)": "(key)",
        "__any_sync(mask, x > 0)": "int(x > 0)",
        "__syncthreads_or(far)": "int(far)",
        "__syncthreads()": "(void)0",
        "__syncwarp(mask)": "(void)0",
    }
    (tmp_path / "calls.cuh").write_text("".join(f"y = {call};\n" for call in calls))
    assert {m.call: m.instead for m in mutations.find(["calls.cuh"], tmp_path)} == calls


def test_every_call_of_the_kernels_is_left_out_by_a_mutation_test() -> None:
    files = [f"cuda/{path.name}" for path in (ROOT / "csrc/cuda").glob("*.cuh")]
    tried = {*eigensolvers.MUTATIONS, *small.MUTATIONS, *stages.MUTATIONS}
    assert set(mutations.find(files)) == tried


def test_two_calls_on_one_line_are_refused() -> None:
    with pytest.raises(ValueError, match="has two calls: put them on lines of their own"):
        list(mutations.find(["planted.cpp"], DRIVERS))
