"""The machine on small kernels written by hand: what they compute, and in how many cycles."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import kernel_launches
import numpy as np
import pytest
import sass
from kernel_launches import Launch

from tests.csrc import compiled, emulation

# One program: the tests with the marker run in one process.
pytestmark = [pytest.mark.emulated, pytest.mark.xdist_group("machine")]

SHARED_BASE = 0x400  # where a block's own shared memory begins
CONSTANTS = {
    name: float(value)
    for name, value in re.findall(
        r"constexpr (?:int|double) (\w+) = ([\d.]+);",
        (emulation.HERE / "machine" / "h100.h").read_text(),
    )
}


def assemble(text: str, registers: int = 32) -> sass.Kernel:
    """Return a kernel: lines of "stall write read wait | instruction", "-" for none, or labels."""
    lines, labels = list[str](), dict[str, int]()
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.endswith(":"):
            labels[line[:-1]] = 16 * len(lines)
        else:
            lines.append(line)
    code = []
    for i, line in enumerate(lines):
        control, _, shown = line.partition("|")
        stall, write, read, wait = control.split()
        boards = [sass.Control(0, 7, 7, 0).write if b == "-" else int(b) for b in (write, read)]
        mask = sum(1 << int(b) for b in wait.replace("-", ""))
        told = sass.Control(int(stall), *boards, mask)
        code.append(sass.decode(16 * i, shown.strip(), told, labels, f"line:{i}"))
    return sass.Kernel("kernel", registers, 0, code)


def run(
    folder: Path, text: str, *arguments: str, block: str = "32", shared: int = 0, **more: int
) -> compiled.Report:
    """Run a kernel; arrays that have names are files of the folder then.

    Raises:
        EmulationError: the machine stopped it.
    """
    (folder / "program").write_text(sass.program([assemble(text, **more)]))
    (folder / "report").unlink(missing_ok=True)
    program = emulation.build("kernel", sanitize="machine")
    command = [str(program), "kernel", "1", block, str(shared), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={"FASTWHITEN_MACHINE": str(folder)}
    )
    if done.returncode != 0:
        raise emulation.EmulationError(done.stderr)
    (report,) = compiled.parse((folder / "report").read_text())
    return report


# R0 = thread, R2:R3 = the first parameter, an array of 32 bits, + 4 thread
BEGIN = """
    1 0 - - | S2R R0, SR_TID.X
    1 1 - - | LDC.64 R2, c[0x0][0x210]
    5 - - 01| IMAD.WIDE.U32 R2, R0, 0x4, R2
"""
END = """
    1 - 0 - | STG.E desc[UR4][R2.64], R4
    5 - - - | EXIT
"""


def result(folder: Path) -> list[int]:
    return np.fromfile(folder / "out", dtype=np.uint32).tolist()


def test_a_loop_takes_its_stalls(tmp_path: Path) -> None:
    loop = f"""{BEGIN}
        4 - - - | MOV R4, RZ
        4 - - - | MOV R5, c[0x0][0x218]
      L:
        5 - - - | IADD3 R4, R4, R5, RZ
        4 - - - | IADD3 R5, R5, -0x1, RZ
        13 - - - | ISETP.NE.AND P0, PT, R5, RZ, PT
        5 - - - | @P0 BRA `(L)
        {END}"""
    cycles = []
    for n in (100, 300):
        cycles.append(run(tmp_path, loop, "out=i32[32]", f"i32:{n}").numbers["cycles"])
        assert result(tmp_path) == [n * (n + 1) // 2] * 32
    assert cycles[1] - cycles[0] == 200 * (5 + 4 + 13 + 5 + CONSTANTS["branch"])


@pytest.mark.parametrize(
    ("stride", "width", "wavefronts"),
    [(0, "", 1), (4, "", 1), (8, "", 2), (128, "", 32), (16, ".128", 4)],
)
def test_bank_conflicts(tmp_path: Path, stride: int, width: str, wavefronts: int) -> None:
    def cycles(loads: int) -> compiled.Report:
        load = f"4 2 - - | LDS{width} R8, [R5+{SHARED_BASE:#x}]\n 5 - - 2 | IADD3 R4, R4, R8, RZ\n"
        body = f"4 - - - | IMAD R5, R0, {stride:#x}, RZ\n 4 - - - | MOV R4, RZ\n" + loads * load
        return run(tmp_path, BEGIN + body + END, "out=i32[32]", shared=4096)

    few, many = cycles(10), cycles(30)
    assert many.numbers["wavefronts"] == 30 * wavefronts
    assert many.numbers["conflicts"] == 30 * (wavefronts - (4 if width else 1))
    of_one = CONSTANTS["lds"] + (wavefronts - 1) + 5
    assert many.numbers["cycles"] - few.numbers["cycles"] == 20 * of_one


def test_a_barrier_waits_for_the_last_warp(tmp_path: Path) -> None:
    # Warp 1 is late by 15 x 8 cycles, then hands a number over; both meet twice.
    late = "15 - - - | @P0 MOV R6, 0x7\n" * 8
    report = run(
        tmp_path,
        f"""{BEGIN}
        13 - - - | ISETP.GE.U32.AND P0, PT, R0, 0x20, PT
        5 - - - | BAR.SYNC.DEFER_BLOCKING 0x0
        13 - - - | ISETP.GE.U32.AND P0, PT, R0, 0x20, PT
        5 - - - | @!P0 BRA `(MEET)
        {late}
        1 - 2 - | @P0 STS [RZ+{SHARED_BASE:#x}], R6
      MEET:
        5 - - 2 | BAR.SYNC.DEFER_BLOCKING 0x0
        1 3 - - | LDS R4, [RZ+{SHARED_BASE:#x}]
        1 - 0 3 | STG.E desc[UR4][R2.64], R4
        5 - - - | EXIT
        """,
        "out=i32[64]",
        block="64",
        shared=16,
    )
    assert result(tmp_path) == [7] * 64
    assert [count for _, count, _ in report.rounds] == []  # each barrier was left once
    waited = report.lines["line:17"][1 + compiled.REASONS.index("barrier")]
    # The first warp was there long before; both then take the barrier's own time.
    assert 15 * 8 - 24 < waited - 2 * CONSTANTS["barrier"] < 15 * 8 + 24


def test_votes_at_barriers(tmp_path: Path) -> None:
    def voted(kind: str, limit: int) -> list[int]:
        run(
            tmp_path,
            f"""{BEGIN}
            13 - - - | ISETP.LT.U32.AND P0, PT, R0, {limit:#x}, PT
            5 - - - | BAR.RED.{kind}.DEFER_BLOCKING 0x0, P0
            1 2 - - | B2R.RESULT RZ, P1
            5 - - 2 | SEL R4, RZ, 0x1, !P1
            {END}""",
            "out=i32[64]",
            block="64",
        )
        return result(tmp_path)

    assert voted("OR", 1) == voted("AND", 64) == [1] * 64
    assert voted("OR", 0) == voted("AND", 63) == [0] * 64


def test_lanes_go_apart_and_meet(tmp_path: Path) -> None:
    report = run(
        tmp_path,
        f"""{BEGIN}
        4 - - - | MOV R4, RZ
        5 - - - | MOV R5, R0
        5 - - - | BSSY B0, `(MEET)
      L:
        13 - - - | ISETP.GT.AND P0, PT, R5, 0x0, PT
        5 - - - | @!P0 BRA `(MEET)
        5 - - - | IADD3 R4, R4, R5, RZ
        5 - - - | IADD3 R5, R5, -0x1, RZ
        5 - - - | BRA `(L)
      MEET:
        5 - - - | BSYNC B0
        5 - - - | WARPSYNC.ALL
        1 2 - - | SHFL.BFLY PT, R4, R4, 0x1, 0x1f
        5 - - 2 | MOV R4, R4
        {END}""",
        "out=i32[32]",
    )
    sums = [n * (n + 1) // 2 for n in range(32)]
    assert result(tmp_path) == [sums[lane ^ 1] for lane in range(32)]
    assert report.lines["line:8"][0] == 31  # as often as the longest lane needs it


def test_where_global_memory_answers(tmp_path: Path) -> None:
    def cycles(loads: str) -> float:
        report = run(tmp_path, BEGIN + "4 - - - | MOV R4, RZ\n" + loads + END, "out=i32[64]")
        return report.numbers["cycles"]

    first = "4 2 - - | LDG.E R5, desc[UR4][R2.64]\n 5 - - 2 | IADD3 R4, R4, R5, RZ\n"
    ahead = "4 2 - - | LDG.E R5, desc[UR4][R2.64+0x80]\n 5 - - 2 | IADD3 R4, R4, R5, RZ\n"
    none, cold, cached, both = map(cycles, ("", first, first + first, first + ahead))
    assert 0 <= cold - none - CONSTANTS["dram"] - 5 < 12
    assert cached - cold == CONSTANTS["l1_hit"] + 5
    assert both - cold == cold - none


def test_a_copy_that_is_not_asked_for_reads_nothing_and_brings_zeros(tmp_path: Path) -> None:
    text = f"""{BEGIN}
        4 - - - | MOV R5, {SHARED_BASE:#x}
        4 - - - | IMAD R5, R0, 0x4, R5
        4 - - - | MOV R6, 0x7
        13 - - - | ISETP.LT.U32.AND P0, PT, R0, 0x10, PT
        4 - 0 - | STG.E desc[UR4][R2.64], R6
        4 - 0 0 | STS [R5], R6
        4 - 0 0 | LDGSTS.E [R5], desc[UR4][R2.64+-0x40], !P0
        1 0 - 0 | LDGDEPBAR
        9 - - 0 | DEPBAR.LE SB0, 0x0
        1 1 - - | LDS R4, [R5]
        4 - - 1 | IADD3 R4, R4, R0, RZ
        {END}"""
    run(tmp_path, text, "out=i32[32]", shared=128)
    # Half of the lanes ask for what is before the array.
    assert result(tmp_path) == [*range(16), *range(16 + 7, 32 + 7)]


@pytest.mark.parametrize(
    ("instruction", "rate"),
    [("FFMA R5, R6, R7, R5", 1.0), ("IMAD R5, R6, R7, R5", 0.5), ("IADD3 R5, R6, R7, R5", 0.5),
     ("DFMA R8, R10, R12, R8", 0.5), ("MUFU.RCP R5, R6", 0.125)],
)  # fmt: skip
def test_throughput_of_full_schedulers(tmp_path: Path, instruction: str, rate: float) -> None:
    def numbers(count: int) -> dict[str, float]:
        body = f"1 - - - | {instruction}\n" * count
        return run(tmp_path, BEGIN + body + END, "out=i32[1024]", block="1024").numbers

    few, many = numbers(100), numbers(300)
    issued = many["issued"] - few["issued"]
    assert issued == 200 * 32
    assert issued / 4 / (many["cycles"] - few["cycles"]) == pytest.approx(rate, rel=0.02)


def test_what_stops_a_kernel(tmp_path: Path) -> None:
    with pytest.raises(emulation.EmulationError, match=r"HMMA\.1688\.F32.*is not known"):
        run(tmp_path, BEGIN + "1 - - - | HMMA.1688.F32 R4, R4, R6, R8\n" + END, "out=i32[32]")
    with pytest.raises(emulation.EmulationError, match=r"STG\.E .*lies in no array"):
        run(tmp_path, BEGIN + END, "out=i32[31]")
    with pytest.raises(emulation.EmulationError, match=r"LDS .*shared address 1040 of 1040"):
        run(tmp_path, BEGIN + f"1 2 - - | LDS R4, [RZ+{SHARED_BASE + 16:#x}]\n" + END,
            "out=i32[32]", shared=16)  # fmt: skip
    half = """13 - - - | ISETP.LT.U32.AND P0, PT, R0, 0x10, PT
        5 - - - | BSSY B0, `(MEET)
        5 - - - | @P0 BRA `(MEET)
        5 - - - | WARPSYNC.ALL
      MEET:
        5 - - - | BSYNC B0
    """
    with pytest.raises(emulation.EmulationError, match="nothing goes on"):
        run(tmp_path, BEGIN + half + END, "out=i32[32]")


def test_as_many_blocks_as_the_table_of_resources_says(tmp_path: Path) -> None:
    for registers, threads, shared in itertools.product(
        (32, 96, 128), (128, 512), (0, 36480, 171648)
    ):
        if registers == 128 and threads == 512 and shared == 171648:
            continue
        report = run(
            tmp_path, BEGIN + END, f"out=i32[{threads}]", block=str(threads), shared=shared,
            registers=registers,
        )  # fmt: skip
        fit = kernel_launches.blocks("90", registers, Launch(threads, shared))
        assert report.numbers["resident"] == fit, (registers, threads, shared)


def test_every_constant_says_where_it_is_from() -> None:
    text = (emulation.HERE / "machine" / "h100.h").read_text()
    lines = [line for line in text.splitlines() if " constexpr " in line]
    sources = re.compile(r"//.*(\[(guide|paper|luo|huerta)\]|assumed)")
    assert [line for line in lines if not sources.search(line)] == []
    assert len(lines) >= 40
