"""Compiles every CUDA kernel for sm_80 and sm_90, with warnings and spills as errors.

Usage:
    python tools/kernel_resources.py             compiles, and writes csrc/cuda/resources.csv
    python tools/kernel_resources.py --check     compiles, and compares with it
    python tools/kernel_resources.py --log FILE  the same from what a build printed:
        FASTWHITEN_NVCC_STRICT=1 pip install -v . >FILE
    python tools/kernel_resources.py --launches  the launchers only, without nvcc: registers stay

Needs g++ and an nvcc and no GPU; any torch gives the headers. The columns of the table, by kernel:

* registers of a thread, as ptxas says. Compared for the nvcc that made the table only: another one
  may choose others.
* threads of a block and bytes of its shared memory, the most that any launch asks for
  (tools/kernel_launches.py). On sm_80 a block may have 163 KiB, on sm_90 227. All of it is dynamic:
  static shared memory, which ptxas would print, is an error.
* blocks: how many of these largest blocks a multiprocessor takes at once. It is at least one, or
  the launch would fail: this is checked.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build_cuda
import kernel_launches
from kernel_launches import Launch, demangle

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "csrc" / "cuda"
TABLE = KERNELS / "resources.csv"
ARCHS = ["8.0", "9.0"]
SHORT = [arch.replace(".", "") for arch in ARCHS]
OF_NVCC = ("registers", "blocks")  # columns that another nvcc may change
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def compile_source(toolkit: build_cuda.Toolkit, source: Path, headers: list[str]) -> str:
    """Return what ptxas says about the kernels of one source.

    Raises:
        SystemExit: a warning, a spill or an error.
    """
    flags = build_cuda.nvcc_flags(ARCHS, [], headers, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        output = ["-I", str(ROOT / "csrc"), "-c", str(source), "-o", f"{folder}/object.o"]
        command = [f"{toolkit.home}/bin/nvcc", *flags, *output]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        lines = [x for x in result.stderr.splitlines() if "warning" in x or "error" in x]
        sys.exit(f"{source.name}: nvcc failed:\n" + "\n".join(lines or [result.stderr]))
    return result.stderr


def parse(shown: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Return (kernel, arch) -> (registers, bytes of static shared memory) from ptxas's output."""
    entries = list(ENTRY.finditer(shown))
    names = demangle([entry["name"] for entry in entries])
    found = {}
    for entry, name in zip(entries, names, strict=True):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        found[name, entry["arch"]] = (int(entry["registers"]), int(shared[1]) if shared else 0)
    return found


def measure(log: Path | None) -> tuple[str, dict[tuple[str, str], int]]:
    """Compile everything, or read a build's log; return nvcc's version and the registers.

    Raises:
        SystemExit: no nvcc, a warning or a spill, or a kernel with static shared memory.
    """
    toolkit = build_cuda.find_toolkit(os.environ)
    if toolkit is None:
        sys.exit("expected an nvcc (CUDA_HOME or PATH), found none")
    version = ".".join(map(str, toolkit.version))
    if log is not None:
        return version, registers_of(parse(log.read_text(encoding="utf-8")))
    from torch.utils import cpp_extension

    headers = cpp_extension.include_paths()
    found: dict[tuple[str, str], tuple[int, int]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shown in pool.map(
            lambda source: compile_source(toolkit, source, headers), sorted(KERNELS.glob("*.cu"))
        ):
            found.update(parse(shown))
    return version, registers_of(found)


def registers_of(found: dict[tuple[str, str], tuple[int, int]]) -> dict[tuple[str, str], int]:
    """Return the registers of what parse() found.

    Raises:
        SystemExit: a kernel has static shared memory.
    """
    static = sorted({name for (name, _), (_, shared) in found.items() if shared})
    if static:
        sys.exit(f"expected shared memory through FASTWHITEN_SHARED_MEMORY only, got {static}")
    return {key: registers for key, (registers, _) in found.items()}


def table(
    version: str, registers: dict[tuple[str, str], int], launches: dict[tuple[str, str], Launch]
) -> str:
    """Return the table: one row per kernel.

    Raises:
        SystemExit: a kernel is compiled and not launched, or the other way round, or no
            multiprocessor takes a block of it.
    """
    check_kernels(registers, launches)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{title} sm_{a}" for title in ("registers", "shared", "blocks") for a in SHORT]
    writer.writerow([f"kernel (nvcc {version})", *columns[:2], "threads", *columns[2:]])
    for name in sorted({kernel for kernel, _ in registers}):
        of = [launches[name, a] for a in SHORT]
        fit = [kernel_launches.blocks(a, registers[name, a], launches[name, a]) for a in SHORT]
        if 0 in fit:
            sys.exit(
                f"{name}: no multiprocessor takes a block of it: {max(of)}, "
                f"{max(registers[name, a] for a in SHORT)} registers a thread"
            )
        threads = max(launch.threads for launch in of)
        shared = [launch.shared for launch in of]
        writer.writerow([name, *(registers[name, a] for a in SHORT), threads, *shared, *fit])
    return text.getvalue()


def check_kernels(
    registers: dict[tuple[str, str], int], launches: dict[tuple[str, str], Launch]
) -> None:
    """Compare the kernels that ptxas knows with those that the launchers launch.

    Raises:
        SystemExit: they differ; the message names them.
    """
    for shown, these, others in (
        ("compiled, but not launched by tests/csrc/drivers/launches.cpp", registers, launches),
        ("launched there, but neither compiled nor in the table", launches, registers),
    ):
        lacking = sorted({name for name, _ in these.keys() - others.keys()})
        if lacking:
            sys.exit(f"kernels {shown}:\n" + "\n".join(lacking))


def read(text: str) -> tuple[str, dict[tuple[str, str], int]]:
    """Return nvcc's version and the registers from a table."""
    header, *rows = csv.reader(io.StringIO(text))
    columns = [header.index(f"registers sm_{arch}") for arch in SHORT]
    registers = {
        (row[0], arch): int(row[column])
        for row in rows
        for arch, column in zip(SHORT, columns, strict=True)
    }
    return header[0].removeprefix("kernel (nvcc ").removesuffix(")"), registers


def differences(before: str, after: str) -> list[str]:
    """Return the rows that changed; of tables by two nvccs only what does not depend on it."""
    same = before.split("\n", 1)[0] == after.split("\n", 1)[0]
    old, new = comparable(before, same), comparable(after, same)
    return [f"- {','.join(row)}" for row in old if row not in new] + [
        f"+ {','.join(row)}" for row in new if row not in old
    ]


def comparable(text: str, every_column: bool) -> list[list[str]]:
    """Return the rows of a table, with or without the columns that nvcc's version may change."""
    header, *rows = csv.reader(io.StringIO(text))
    if every_column:
        return [header, *rows]
    kept = [i for i, title in enumerate(header) if i > 0 and not title.startswith(OF_NVCC)]
    return [["kernel", *(header[i] for i in kept)]] + [
        [row[0], *(row[i] for i in kept)] for row in rows
    ]


def main(arguments: list[str] | None = None) -> None:
    """Write the table, or compare it with what it would be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the table, write nothing"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--log", type=Path, help="what a strict build printed")
    source.add_argument(
        "--launches", action="store_true", help="keep the table's registers: needs no nvcc"
    )
    options = parser.parse_args(arguments)
    before = TABLE.read_text(encoding="utf-8")
    version, registers = read(before) if options.launches else measure(options.log)
    text = table(version, registers, kernel_launches.record())
    if not options.check:
        TABLE.write_text(text, encoding="utf-8")
        return
    changed = differences(before, text)
    if changed:
        sys.exit(
            "run tools/kernel_resources.py; csrc/cuda/resources.csv changed:\n" + "\n".join(changed)
        )
    if not options.launches:
        print(f"{len(registers)} kernels compiled without a warning, a spill or local memory")
    print(f"{len(registers)} kernels are launched as the table says")


if __name__ == "__main__":
    main()
