"""How long CUDA kernels take on an H100, from their SASS, without a GPU.

Usage:
    python tools/kernel_model.py run FILE.cu KERNEL --grid 1 --block 512 --shared 36480 --arguments ...
        one kernel of any source; KERNEL is a part of its name; arguments as in
        tests/csrc/drivers/kernel.cpp: i64:64 "a=f32[4096]:spd(64)" null u8:1
        --lines 20 shows where the time goes, by lines of the source

Needs nvcc, nvdisasm and g++. tests/csrc/machine/ runs the compiled kernel, instruction by
instruction: exactly what it computes, and when one multiprocessor would (h100.h has every constant).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import build_cuda
import sass
from kernel_launches import demangle

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "csrc"
FLAGS = "-std=c++17 -O2 -march=native -ffp-contract=off -Wall -Wextra -Werror"
REASONS = ("stall", "short", "long", "pipe", "barrier", "branch", "other")


def build(driver: str, folder: Path, *options: str) -> Path:
    """Compile a driver of the machine; return the program.

    Raises:
        SystemExit: it does not compile.
    """
    program = folder / driver
    command = ["g++", *FLAGS.split(), *options, "-I", str(TESTS)]
    source = TESTS / "drivers" / f"{driver}.cpp"
    result = subprocess.run(
        [*command, str(source), "-o", str(program)], capture_output=True, text=True
    )
    if result.returncode != 0:
        sys.exit(f"{source.name}: g++ failed:\n{result.stderr}")
    return program


def compiled(source: Path, folders: list[Path], folder: Path) -> list[sass.Kernel]:
    """Return the kernels of a source.

    Raises:
        SystemExit: no nvcc, no nvdisasm, or the source does not compile.
    """
    toolkit = build_cuda.find_toolkit(os.environ)
    if toolkit is None:
        sys.exit("expected an nvcc (CUDA_HOME or PATH), found none")
    cubin = folder / "kernels.cubin"
    shown = sass.compile_cubin(toolkit, source, folders, cubin)
    return sass.kernels(sass.disassemble(sass.find_disassembler(toolkit), cubin), shown)


def run(options: argparse.Namespace) -> None:
    """Print the time of one kernel of a source."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kernels = compiled(options.source, [*options.include, ROOT / "csrc"], folder)
        names = dict(zip(demangle([k.name for k in kernels]), kernels, strict=True))
        found = [k for shown, k in names.items() if options.kernel in (shown, k.name)] or [
            k for shown, k in names.items() if options.kernel in shown
        ]
        if len(found) != 1:
            sys.exit(f"expected the name of one kernel of {list(names)}, got {options.kernel}")
        program = folder / "program"
        program.write_text(sass.program(found), encoding="utf-8")
        command = [build("kernel", folder), program, found[0].name, options.grid, options.block]
        command += [options.shared, *options.arguments]
        result = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False
        )
    if result.returncode != 0:
        sys.exit(result.stderr)
    show(result.stdout, options.lines)


def show(report: str, lines: int) -> None:
    """Print a report, and the lines of the source that take longest."""
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0] * (2 + len(REASONS)))
    for text in report.splitlines():
        if not text.startswith("place "):
            print(text)
            continue
        _, _, line, _, issued, _, *waited = text.split()
        row = spent[line]
        row[0] += int(issued)
        row[1] += sum(map(int, waited))
        for i, cycles in enumerate(waited):
            row[2 + i] += int(cycles)
    total = sum(row[1] for row in spent.values())
    if not lines:
        return
    print(f"\n{'line':36}{'issued':>10}{'warp time':>10}", *(f"{r:>8}" for r in REASONS))
    for line, (issued, cycles, *waited) in sorted(spent.items(), key=lambda x: -x[1][1])[:lines]:
        parts = (f"{100 * w / total:7.1f}%" for w in waited)
        print(f"{line:36}{issued:10.0f}{100 * cycles / total:9.1f}%", *parts)


def main() -> None:
    """Carry out a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="one kernel of any source")
    one.add_argument("source", type=Path)
    one.add_argument("kernel")
    one.add_argument("--grid", default="1")
    one.add_argument("--block", default="128")
    one.add_argument("--shared", type=int, default=0, help="bytes of dynamic shared memory")
    one.add_argument("--include", type=Path, action="append", default=[])
    one.add_argument("--lines", type=int, default=0)
    one.add_argument("--arguments", nargs="*", default=[])
    run(parser.parse_args())


if __name__ == "__main__":
    main()
