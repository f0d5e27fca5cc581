"""What Nsight Compute counts of our CUDA kernels: python -m benchmarks.kernel_counters.

The headline, a map, and the eigensolver alone, at orders 64 and 128: for every kernel cycles,
instructions, sectors of global memory for a request (4 where all of them are wanted, up to 32) and
conflicts of shared memory; of an eigensolver cycles for a round of rotations. Kernels are what they
are when a program runs them: after warming up, at the clock that the GPU has, caches cold.

Exit status 77, after a line that says why, where counting is not possible.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastwhiten

from . import bench_eigh, bench_whiten, providers
from .scenes import SCENES

SKIPPED = 77
ORDERS = (64, 128)
CASES = ("(128, 64)", "map (64, 64, 32, 32)", *(f"eigh {order}" for order in ORDERS))
GLOBAL = "l1tex__t_{}_pipe_lsu_mem_global_op_{}.sum"
CYCLES, TIME = "sm__cycles_elapsed.max", "gpu__time_duration.sum"
INSTRUCTIONS = "smsp__inst_executed.sum"
ISSUING = "smsp__issue_active.avg.pct_of_peak_sustained_active"
CONFLICTS = "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"
METRICS = [CYCLES, TIME, INSTRUCTIONS, ISSUING, CONFLICTS]
METRICS += [GLOBAL.format(what, op) for op in ("ld", "st") for what in ("requests", "sectors")]
# What it says where counters are not to be had: by permission, or in some virtual machines.
REFUSALS = ("ERR_NVGPUCTRPERM", "Failed to initialize the profiler")

Kernel = dict[str, Any]


def make(case: str, device: str) -> Callable[[], object]:
    """Return what is counted: a forward + backward, or one eigensolver."""
    if case.startswith("eigh"):
        a = bench_eigh.covariances(1, int(case.split()[1]), device)
        return lambda: bench_eigh.SOLVERS["native"](a)
    scene = next(scene for scene in SCENES if scene.name == case)
    whiten, grad = providers.fused(scene), bench_whiten.gradient(scene, device)
    x = scene.input(device=device).requires_grad_()
    return lambda: torch.autograd.grad(whiten(x), x, grad)


def perform(case: str, device: str) -> None:
    """Run a case, and once more under the profiler."""
    run = make(case, device)
    for _ in range(3):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        run()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def find() -> str | None:
    """Return Nsight Compute's program, or None."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = [
        f"{home}/bin/ncu",
        *map(str, sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu"))),
    ]
    return shutil.which("ncu") or next(
        (place for place in places if os.access(place, os.X_OK)), None
    )


def count(ncu: str, case: str) -> str:
    """Return what the profiler writes about a case, messages and CSV."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        options = ["--profile-from-start", "off", "--clock-control", "none", "--csv"]
        options += ["--kernel-name-base", "demangled", "--kernel-name", "regex:fastwhiten"]
        options += ["--print-kernel-base", "function", "--print-units", "base"]
        options += ["--metrics", ",".join(METRICS), "--log-file", str(log)]
        command = [sys.executable, "-m", "benchmarks.kernel_counters", "--case", case]
        subprocess.run([ncu, *options, *command])  # how it went is in what it writes
        return log.read_text(encoding="utf-8") if log.exists() else ""


def parse(text: str) -> list[Kernel]:
    """Return the kernels in what the profiler wrote, with their metrics by name.

    Example:
        >>> head = '"ID","Kernel Name","Block Size","Grid Size","Metric Name","Metric Value"'
        >>> row = '"0","eigh_kernel","(64, 1, 1)","(1, 1, 1)","gpu__time_duration.sum","1,024"'
        >>> parse(chr(10).join(("==PROF== Connected", head, row)))[0]["gpu__time_duration.sum"]
        1024.0
    """
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels: dict[str, Kernel] = {}
    for row in csv.DictReader(lines[begin:]):
        title = f"{row['Kernel Name']} {row['Grid Size']} x {row['Block Size']}"
        kernel = kernels.setdefault(row["ID"], {"title": title})
        with_commas = row["Metric Value"]
        try:
            kernel[row["Metric Name"]] = float(with_commas.replace(",", ""))
        except ValueError:  # "n/a"
            continue
    return list(kernels.values())


def line(kernel: Kernel) -> str:
    """Return what is shown of a kernel; "?" for what this GPU does not count."""

    def ratio(op: str) -> str:
        sectors, requests = (kernel.get(GLOBAL.format(w, op)) for w in ("sectors", "requests"))
        if sectors is None or requests is None:
            return "?"
        return f"{sectors / requests:.1f}" if requests else "none"

    def number(metric: str, scale: float = 1.0, digits: int = 0) -> str:
        return f"{scale * kernel[metric]:,.{digits}f}" if metric in kernel else "?"

    return (
        f"{kernel['title']}: {number(CYCLES)} cycles, {number(TIME, 1e-3, 1)} us, "
        f"{number(INSTRUCTIONS)} instructions, issuing {number(ISSUING, digits=1)} %, sectors a "
        f"request {ratio('ld')} loaded, {ratio('st')} stored, {number(CONFLICTS)} bank conflicts"
    )


def round_cycles(kernels: list[Kernel], order: int) -> str:
    """Return the cycles of the longest kernel for a round, in which every row meets another one."""
    a = bench_eigh.covariances(1, order, "cuda")
    sweeps = int(fastwhiten.symmetric_eigh_sweeps(a, backend="native"))
    cycles = max(kernel[CYCLES] for kernel in kernels)
    return (
        f"{sweeps} sweeps of {order - 1} rounds: {cycles / sweeps / (order - 1):,.0f} cycles each"
    )


def skip(reason: str) -> None:
    """End the program with the exit status that stands for a reason."""
    print(f"nothing is counted: {reason}")
    sys.exit(SKIPPED)


def main() -> None:
    """Count all cases, or be the program that is looked at in one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--case", choices=CASES, help="run it, once under the profiler")
    options = parser.parse_args()
    if options.case is not None:
        return perform(options.case, options.device)
    if options.device == "cpu":
        for case in CASES:
            perform(case, "cpu")
        skip("the CPU runs other kernels")
    ncu = find()
    if ncu is None:
        skip("Nsight Compute (ncu) is not installed")
    shown = []
    for case in CASES:
        text = count(str(ncu), case)
        refusal = [x for x in text.splitlines() if any(words in x for words in REFUSALS)]
        if refusal:
            skip(refusal[0])
        kernels = parse(text)
        if not any(CYCLES in kernel for kernel in kernels):
            sys.exit(f"{text}\n{case}: {ncu} counted no cycles of any kernel")
        print(text)  # all of it, for the log
        shown += [f"{case}: {line(kernel)}" for kernel in kernels]
        if case.startswith("eigh"):
            shown.append(f"{case}: {round_cycles(kernels, int(case.split()[1]))}")
    print("\n".join(shown))


if __name__ == "__main__":
    main()
