"""How long CUDA kernels take on an H100, from what nvcc makes of them, without a GPU.

Usage:
    python tools/kernel_model.py                 runs all scenes, and writes csrc/cuda/model.csv
    python tools/kernel_model.py --check         runs them, and compares with it
    python tools/kernel_model.py scene "(128, 64)"
        one scene in detail; --lines 20: where each launch spends its time, by lines of the source
    python tools/kernel_model.py run FILE.cu KERNEL --block 512 --shared 36480 --arguments ...
        one kernel of any source; KERNEL is a part of its name; arguments as in
        tests/csrc/drivers/kernel.cpp: i64:64 "a=f32[4096]:spd(64)" null u8:1

Needs nvcc, nvdisasm and g++. tests/csrc/machine/ runs compiled kernels instruction by instruction,
on the inputs of benchmarks/: results are those of a device, and are checked; a multiprocessor's
cycles are estimated with the constants of h100.h. See CONTRIBUTING.md for how far to trust them.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks and tests, which are not installed

import compiled_kernels  # noqa: E402
import sass  # noqa: E402
from kernel_launches import demangle  # noqa: E402

if TYPE_CHECKING:
    from tests.csrc.compiled import CompiledStages, Report

TABLE = ROOT / "csrc" / "cuda" / "model.csv"
# (batch, order) of eigenproblems: one matrix, and enough to fill a GPU.
EIGENPROBLEMS = ((1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (512, 16), (512, 32), (512, 64))
SIZES = ("blocks", "threads", "shared")
COLUMNS = (*SIZES, "resident", "us", "floor us", "bound by", "of", "rounds")
TOLERANCE = 0.02  # of a time: inputs differ in the last bit from one processor to another
TOTAL = "all launches but the library's"


class Launch(NamedTuple):
    """A launch of a scene: what the table says of it."""

    scene: str
    step: str  # forward, backward or eigh
    report: Report

    def row(self) -> list[str]:
        """Return the row of the table, kernel excepted."""
        n = self.report.numbers
        if "us" not in n:
            return [self.scene, self.step, *[""] * len(COLUMNS)]
        sizes = (f"{n[name]:.0f}" for name in (*SIZES, "resident"))
        floor = max(n["floor_bytes_us"], n["floor_arithmetic_us"])
        by, share = bound(self.report)
        return [
            self.scene,
            self.step,
            *sizes,
            f"{n['us']:.1f}",
            f"{floor:.1f}",
            by,
            f"{share:.0%}",
            rounds(self.report),
        ]


def bound(report: Report) -> tuple[str, float]:
    """Return what limits a launch, and by how much.

    The unit that is busiest, if it is for most of the time, with its share of all cycles; else what
    warps wait for longest, with its share of their time.
    """
    n = report.numbers
    units = ("issue", "fma", "imad", "alu", "fp64", "special", "memory", "shared")
    busiest = max(units, key=lambda unit: n[f"{unit}_share"])
    if n[f"{busiest}_share"] > 0.6:
        return busiest, n[f"{busiest}_share"]
    waited = {name[7:]: n[name] for name in n if name.startswith("waited_")}
    longest = max(waited, key=lambda reason: waited[reason])
    return f"latency: {longest}", waited[longest] / sum(waited.values())


def rounds(report: Report) -> str:
    """Return the innermost barrier in whose rounds time passes: place, how many, cycles of one."""
    if not report.rounds:
        return ""
    cycles = report.numbers["cycles"]
    often = [r for r in report.rounds if r[1] * r[2] > cycles / 4] or report.rounds
    place, count, gap = max(often, key=lambda r: r[1])
    return f"{place}: {count} x {gap}"


def scenes() -> dict[str, Callable[[CompiledStages], Iterator[tuple[str, int]]]]:
    """Return the scenes: each runs on stages, and yields its steps and launches so far."""
    from benchmarks.scenes import GPU_SCENES, SCENES

    def whiten(scene: Any) -> Callable[[CompiledStages], Iterator[tuple[str, int]]]:
        return lambda stages: _whiten(scene, stages)

    def solve(batch: int, size: int) -> Callable[[CompiledStages], Iterator[tuple[str, int]]]:
        return lambda stages: _solve(batch, size, stages)

    found = {scene.name: whiten(scene) for scene in (*SCENES, *GPU_SCENES)}
    return found | {f"eigh {b} x {size}": solve(b, size) for b, size in EIGENPROBLEMS}


def _whiten(scene: Any, stages: CompiledStages) -> Iterator[tuple[str, int]]:
    import torch

    import fastwhiten
    from benchmarks import bench_whiten, providers
    from fastwhiten import backends

    x, grad = scene.input().requires_grad_(), bench_whiten.gradient(scene, "cpu")
    with mock.patch.dict(backends.BACKENDS, reference=stages):
        y = fastwhiten.whiten(x, groups=scene.groups, eps=providers.EPS, backend="reference")
        yield "forward", len(stages.launches)
        (dx,) = torch.autograd.grad(y, x, grad)
        yield "backward", len(stages.launches)
    if not stages.only_sizes:
        bench_whiten.verify("fused", scene, y, dx)


def _solve(batch: int, size: int, stages: CompiledStages) -> Iterator[tuple[str, int]]:
    from benchmarks import bench_eigh

    a = bench_eigh.covariances(batch, size, "cpu")
    values, vectors = stages.eigh(a)
    yield "eigh", len(stages.launches)
    if not stages.only_sizes:  # of a batch one multiprocessor's share is computed
        bench_eigh.verified(a[:1], values[:1], vectors[:1])


def launches(name: str, only_sizes: bool = False) -> list[Launch]:
    """Return what a scene launches; ``only_sizes``: nothing runs, nvcc is not needed."""
    from tests.csrc.compiled import CompiledStages

    # Nothing follows an eigensolver alone that would need what other multiprocessors compute.
    stages = CompiledStages(only_sizes=only_sizes, alone=name.startswith("eigh"))
    found: list[Launch] = []
    for step, count in scenes()[name](stages):
        found += [Launch(name, step, report) for report in stages.launches[len(found) : count]]
    return found


def table(found: list[Launch], version: str) -> str:
    """Return the table: a row for every launch, and one for the sum of a scene's step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scene", "step", f"kernel (nvcc {version})", *COLUMNS])
    names = demangle([launch.report.kernel for launch in found])
    for i, (launch, name) in enumerate(zip(found, names, strict=True)):
        row = launch.row()
        writer.writerow([*row[:2], name, *row[2:]])
        if [x[:2] for x in found[i + 1 : i + 2]] != [launch[:2]]:
            reports = [x.report for x in found if x[:2] == launch[:2]]
            total = [*row[:2], TOTAL, str(len(reports)), "", "", "", f"{time(reports):.1f}"]
            writer.writerow(total + [""] * (len(COLUMNS) - 5))
    return text.getvalue()


def time(reports: list[Report]) -> float:
    """Return how long launches take one after another, in microseconds; the library's are zero."""
    return sum(n["us"] + n["launch_us"] for n in (r.numbers for r in reports) if "us" in n)


def differences(before: str, after: str) -> list[str]:
    """Return the rows that changed by more than the tolerance; of another nvcc only the sizes."""
    old, new = ([*csv.reader(io.StringIO(text))] for text in (before, after))
    same_nvcc = old[0] == new[0]
    told = []
    for i in range(max(len(old), len(new)) - 1):
        a, b = (rows[i + 1] if i + 1 < len(rows) else [] for rows in (old, new))
        if not _equal(a, b, same_nvcc):
            told += [f"- {','.join(a)}"] if a else []
            told += [f"+ {','.join(b)}"] if b else []
    return told


def _equal(a: list[str], b: list[str], same_nvcc: bool) -> bool:
    sizes, time = 3 + len(SIZES), 3 + COLUMNS.index("us")
    if a[:sizes] != b[:sizes]:
        return False
    if not same_nvcc or a[time] == b[time]:
        return True
    if "" in (a[time], b[time]):
        return False
    return abs(float(a[time]) - float(b[time])) <= max(0.1, TOLERANCE * float(a[time]))


def make(check: bool) -> None:
    """Write the table, or compare it with what it would be."""
    found: list[Launch] = []
    for name in scenes():
        of_scene = launches(name)
        found += of_scene
        print(f"{name}: {time([launch.report for launch in of_scene]):.0f} us", flush=True)
    text = table(found, compiled_kernels.nvcc_version())
    if not check:
        TABLE.write_text(text, encoding="utf-8")
        return
    changed = differences(TABLE.read_text(encoding="utf-8"), text)
    if changed:
        sys.exit("run tools/kernel_model.py; csrc/cuda/model.csv changed:\n" + "\n".join(changed))
    print(f"{len(found)} launches take as long as the table says")


def show(reports: list[Report], lines: int) -> None:
    """Print launches, and the lines of the source where warps spend their time."""
    from tests.csrc.compiled import REASONS

    for name, report in zip(demangle([r.kernel for r in reports]), reports, strict=True):
        print(f"\n{name}")
        for key, value in report.numbers.items():
            print(f"  {key:20}{value:14,.3f}".rstrip("0").rstrip("."))
        for place, count, gap in report.rounds:
            print(f"  barrier {place}: {count} releases, {gap} cycles from one to the next")
        if not lines or not report.lines:
            continue
        total = sum(sum(counts[1:]) for counts in report.lines.values())
        print(f"  {'line':36}{'issued':>10}{'time':>8}", *(f"{r:>8}" for r in REASONS))
        by_time = sorted(report.lines.items(), key=lambda item: -sum(item[1][1:]))
        for line, (issued, *waited) in by_time[:lines]:
            shares = (f"{100 * cycles / total:7.1f}%" for cycles in waited)
            print(f"  {line:36}{issued:10}{100 * sum(waited) / total:7.1f}%", *shares)


def run(options: argparse.Namespace) -> None:
    """Print the time of one kernel of any source."""
    from tests.csrc import compiled, emulation

    folders = [*options.include, compiled_kernels.CSRC]
    kernels = compiled_kernels.kernels_of(options.source, folders)
    names = dict(zip(demangle([k.name for k in kernels]), kernels, strict=True))
    found = [k for name, k in names.items() if options.kernel in (name, k.name)] or [
        k for name, k in names.items() if options.kernel in name
    ]
    if len(found) != 1:
        sys.exit(f"expected the name of one kernel of {list(names)}, got {options.kernel}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "program").write_text(sass.program(found), encoding="utf-8")
        command = [emulation.build("kernel", sanitize="machine"), found[0].name, options.grid]
        command += [options.block, options.shared, *options.arguments]
        result = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            env={**os.environ, "FASTWHITEN_MACHINE": folder},
        )
        if result.returncode != 0:
            sys.exit(result.stderr)
        show(compiled.parse(Path(folder, "report").read_text()), options.lines)


def main() -> None:
    """Carry out a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the table")
    commands = parser.add_subparsers(dest="command")
    scene = commands.add_parser("scene", help="one scene in detail")
    scene.add_argument("scene")
    one = commands.add_parser("run", help="one kernel of any source")
    one.add_argument("source", type=Path)
    one.add_argument("kernel")
    one.add_argument("--grid", default="1")
    one.add_argument("--block", default="128")
    one.add_argument("--shared", type=int, default=0, help="bytes of dynamic shared memory")
    one.add_argument("--include", type=Path, action="append", default=[])
    one.add_argument("--arguments", nargs="*", default=[])
    for command in (scene, one):
        command.add_argument("--lines", type=int, default=0, help="of the source, by time")
    options = parser.parse_args()
    if options.command == "run":
        run(options)
    elif options.command == "scene":
        if options.scene not in scenes():
            sys.exit(f"expected one of {list(scenes())}, got {options.scene}")
        show([launch.report for launch in launches(options.scene)], options.lines)
    else:
        make(options.check)


if __name__ == "__main__":
    main()
