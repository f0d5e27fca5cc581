"""What CUDA kernels are launched with, and how many blocks of them a multiprocessor takes.

The launchers of csrc/cuda are code of the host. tests/csrc/drivers/launches.cpp runs them as they
are, with the emulator in place of CUDA's headers, over every path and its limits, and keeps what
each kernel would be launched with; no kernel runs. Needs g++, but neither nvcc nor a GPU.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
EMULATOR = ROOT / "tests" / "csrc"  # its folder emulator/
DRIVER = EMULATOR / "drivers" / "launches.cpp"
# Without optimisation: nothing is run, and no two kernels are made one.
FLAGS = "-std=c++17 -O0 -rdynamic -DFASTWHITEN_EMULATE -Wall -Wextra -Werror -Wno-unknown-pragmas"

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": the same for
# compute capabilities 8.0 and 9.0, but for shared memory.
WARP, WARPS, BLOCKS, REGISTERS = 32, 64, 32, 65536
SCHEDULERS = 4  # each has a quarter of the registers, and warps of its own
REGISTER_UNIT = 256  # of a warp's registers
SHARED_UNIT = 128
SHARED_RESERVED = 1024  # the driver's, of every block
SHARED_OF_MULTIPROCESSOR = {"80": 164 << 10, "90": 228 << 10}
SHARED_LIMIT = {arch: size - SHARED_RESERVED for arch, size in SHARED_OF_MULTIPROCESSOR.items()}


class Launch(NamedTuple):
    """Threads of a block and bytes of its dynamic shared memory, the most of all launches."""

    threads: int
    shared: int


def build(folder: Path, csrc: Path, defines: tuple[str, ...] = ()) -> Path:
    """Compile the program that runs the launchers of ``csrc``; return it."""
    program = folder / "launches"
    options = [
        *FLAGS.split(),
        *(f"-D{name}" for name in defines),
        "-I",
        str(csrc),
        "-I",
        str(EMULATOR),
    ]
    result = subprocess.run(
        ["g++", *options, str(DRIVER), "-o", str(program), "-ldl"], capture_output=True, text=True
    )
    if result.returncode != 0:
        sys.exit(f"{DRIVER.name}: g++ failed:\n{result.stderr}")
    return program


def record(
    csrc: Path = ROOT / "csrc", defines: tuple[str, ...] = ()
) -> dict[tuple[str, str], Launch]:
    """Return (kernel, arch) -> what it is launched with on a device of that architecture.

    Args:
        csrc: where the launchers lie.
        defines: macros that the program knows: ``FLOAT_ONLY`` for a third of the time.

    Raises:
        SystemExit: if they do not compile, or a launch asks for more than a block may have.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), csrc, defines)
        for arch, limit in SHARED_LIMIT.items():
            result = subprocess.run([program, str(limit)], capture_output=True, text=True)
            if result.returncode != 0:
                sys.exit(f"sm_{arch}: {result.stderr.strip()}")
            rows = [line.split() for line in result.stdout.splitlines()]
            for name, (_, threads, shared) in zip(
                demangle([row[0] for row in rows]), rows, strict=True
            ):
                found[name, arch] = Launch(int(threads), int(shared))
    return found


def blocks(arch: str, registers: int, launch: Launch) -> int:
    """Return how many such blocks a multiprocessor takes at once; 0 if the launch fails.

    The least of what warps, registers and shared memory allow, as in NVIDIA's cuda_occupancy.h,
    with as much of the L1 cache made shared memory as that needs.

    >>> blocks("90", 128, Launch(threads=256, shared=0))  # 2 x 256 x 128 registers are all
    2
    """
    warps = -(-launch.threads // WARP)
    of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    resident = REGISTERS // SCHEDULERS // of_warp * SCHEDULERS
    # A launch is checked as if each scheduler had as many of the block's warps as any other.
    if -(-warps // SCHEDULERS) * SCHEDULERS > resident:
        return 0
    shared = -(-(launch.shared + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT
    return min(BLOCKS, WARPS // warps, resident // warps, SHARED_OF_MULTIPROCESSOR[arch] // shared)


def demangle(names: list[str]) -> list[str]:
    """Return C++ names without namespaces and parameters: "apply_kernel<true, float, float>"."""
    shown = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [short_name(name) for name in shown]


def short_name(name: str) -> str:
    """Drop the return type, the namespaces and the parameters of a demangled kernel."""
    depth = 0
    for i, letter in enumerate(name):  # the parameters begin at the first ( outside of <>
        depth += (letter == "<") - (letter == ">")
        # "(bool)1" and "(int)4" stand for template arguments inside <>
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    return name.removeprefix("void ").replace("fastwhiten::cuda::", "").replace("(anonymous)", "")
