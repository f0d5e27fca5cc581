"""Compiles every CUDA kernel for sm_80 and sm_90, with warnings and spills as errors.

Usage:
    python tools/kernel_resources.py             compiles, and writes csrc/cuda/resources.csv
    python tools/kernel_resources.py --check     compiles, and compares with it
    python tools/kernel_resources.py --log FILE  the same from what a build printed:
        FASTWHITEN_NVCC_STRICT=1 pip install -v . >FILE

Needs an nvcc and no GPU; any torch gives the headers. The table holds the registers of every kernel
and the shared memory that it asks for, which together say how many blocks a multiprocessor takes.
Registers are compared for the nvcc that made the table only: another one may choose others.
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

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "csrc" / "cuda"
TABLE = KERNELS / "resources.csv"
ARCHS = ["8.0", "9.0"]
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


def parse(shown: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Return (kernel, arch) -> (registers, bytes of static shared memory) from ptxas's output."""
    entries = list(ENTRY.finditer(shown))
    names = demangle([entry["name"] for entry in entries])
    found = {}
    for entry, name in zip(entries, names, strict=True):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        found[name, entry["arch"]] = (int(entry["registers"]), int(shared[1]) if shared else 0)
    return found


def measure(log: Path | None) -> tuple[str, dict[tuple[str, str], tuple[int, int]]]:
    """Compile everything, or read a build's log; return nvcc's version and what kernels take."""
    toolkit = build_cuda.find_toolkit(os.environ)
    if toolkit is None:
        sys.exit("expected an nvcc (CUDA_HOME or PATH), found none")
    if log is not None:
        return ".".join(map(str, toolkit.version)), parse(log.read_text(encoding="utf-8"))
    from torch.utils import cpp_extension

    headers = cpp_extension.include_paths()
    found: dict[tuple[str, str], tuple[int, int]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shown in pool.map(
            lambda source: compile_source(toolkit, source, headers), sorted(KERNELS.glob("*.cu"))
        ):
            found.update(parse(shown))
    return ".".join(map(str, toolkit.version)), found


def table(version: str, found: dict[tuple[str, str], tuple[int, int]]) -> str:
    """Return the table: one row per kernel, registers for every architecture."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f"kernel (nvcc {version})", *[f"registers sm_{a[0]}{a[2]}" for a in ARCHS]])
    for name in sorted({kernel for kernel, _ in found}):
        writer.writerow([name, *[found[name, a.replace(".", "")][0] for a in ARCHS]])
    return text.getvalue()


def differences(before: str, after: str) -> list[str]:
    """Return the rows that changed; of tables by two nvccs only the kernels' names count."""
    old, new = (list(csv.reader(io.StringIO(text))) for text in (before, after))
    if old[:1] != new[:1]:
        old, new = ([row[:1] for row in rows[1:]] for rows in (old, new))
    return [f"- {','.join(row)}" for row in old if row not in new] + [
        f"+ {','.join(row)}" for row in new if row not in old
    ]


def main() -> None:
    """Write the table, or compare it with what it would be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the table, write nothing"
    )
    parser.add_argument("--log", type=Path, help="what a strict build printed")
    options = parser.parse_args()
    version, found = measure(options.log)
    static = sorted({name for (name, _), (_, shared) in found.items() if shared})
    if static:
        sys.exit(f"expected shared memory through FASTWHITEN_SHARED_MEMORY only, got {static}")
    text = table(version, found)
    if not options.check:
        TABLE.write_text(text, encoding="utf-8")
        return
    changed = differences(TABLE.read_text(encoding="utf-8"), text)
    if changed:
        sys.exit(
            "run tools/kernel_resources.py; csrc/cuda/resources.csv changed:\n" + "\n".join(changed)
        )
    print(f"{len(found)} kernels compiled without a warning, a spill or local memory")


if __name__ == "__main__":
    main()
