"""Registers and shared memory of every Triton kernel, compiled for GPUs that need not be there.

    python tools/triton_resources.py            compile everything, compare with the table
    python tools/triton_resources.py --write    compile everything, write the table
    python tools/triton_resources.py --largest  the largest shape class only (what the tests do)
    python tools/triton_resources.py --candidates  what FASTWHITEN_AUTOTUNE=1 chooses from, with all
        options on, which need the most registers; spills are looked for, nothing else
    --allow-stack BYTES  for other versions of Triton than the table's: spills up to so much pass

Launchers run on tensors without memory with the launch itself replaced: what it would have compiled
is noted (``triton_launches.Recorder``) and compiled to a cubin for sm_80 and sm_90. A kernel that
spills more than ptxas does for occupancy (``triton_launches.FEW``) is an error. The numbers are
those of the version in the table, with line information, as kernels are launched by default. It is
part of what LLVM and ptxas see: the same computation inlined from one function more has moved a row
of the table from 88 registers to 102 (factor of order 64 in float32 for sm_90), and without line
information both compile to the same PTX and 88.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton_launches import FEW, TABLE, Configuration, Recorder, Usage, measure_all, spills

from fastwhiten.backends import stages
from fastwhiten.kernels import (
    apply,
    backward,
    backward_matrix,
    eigh,
    factor,
    intensity,
    sample,
    statistics,
    tuning,
)

ARCHITECTURES = (80, 90)
# Input dtype and accumulation dtype: every pair that the package uses.
PAIRS = [
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32),
    (torch.float16, torch.float64),
    (torch.bfloat16, torch.float64),
    (torch.float32, torch.float64),
    (torch.float64, torch.float64),
]
# One size per shape class that 16 divides, and one that it does not: each block edge, and groups of
# several blocks.
WHOLE = ((16, 11), (32, 27), (64, 50))
BLOCKED = (128, 200)
# M of one tile; N and L of planes in several chunks of several steps, whose L 16 divides or not.
ROWS = ((20,),)
PLANES = ((2000, 64), (2000, 49))


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def rows_stages(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, t: torch.dtype, options: bool
) -> None:
    """Launch every pass over rows ``[M, C]`` or planes ``[N, C, L]``, with all options or none."""
    x, channels = _empty(*shape, dtype=dtype), shape[1]
    vector, weight = _empty(channels, dtype=t), _empty(x.numel() // channels, dtype=t)
    matrix = _empty(groups, channels // groups, channels // groups, dtype=t)
    gamma, p = (vector, weight) if options else (None, None)
    statistics.launch_statistics(x, p, groups, t)
    running = matrix if options else None
    for method in (stages.OAS, stages.LEDOIT_WOLF):
        intensity.launch_intensity(x, vector, matrix, running, p, 0.5, method)
    apply.launch_apply(x, vector, matrix, gamma, gamma)
    backward.launch_backward_reduce(x, x, vector, groups)
    backward.launch_backward_apply(x, x, vector, vector, matrix, matrix, gamma, p)


def matrix_stages(groups: int, size: int, t: torch.dtype, options: bool, eps: float = 1e-3) -> None:
    """Launch every stage on whole matrices."""
    matrix, vector = _empty(groups, size, size, dtype=t), _empty(groups, size, dtype=t)
    rho, gamma = (vector[:, 0], vector.flatten()) if options else (None, None)
    eigh.launch_eigh(matrix)
    for kind in stages.KINDS:
        factor.launch_factor(matrix, matrix if options else None, rho, 0.5, eps, kind)
        backward_matrix.launch_backward_matrix(
            matrix, vector, matrix, matrix, gamma, rho, 0.5, kind, eps
        )


def sample_stages(
    rows: int, channels: int, groups: int, dtype: torch.dtype, t: torch.dtype, options: bool
) -> None:
    """Launch the sample side."""
    x = _empty(rows, channels, dtype=dtype)
    p, rho = (_empty(rows, dtype=t), _empty(groups, dtype=t)) if options else (None, None)
    _, scaled, gram = sample.launch_sample_statistics(x, p, groups, t)
    values = gram[:, 0].contiguous()
    _, projected = sample.launch_sample_apply(scaled, values, gram, p, rho, 1e-3, dtype)
    sample.launch_sample_backward(x, projected, values, gram, p, rho, 1e-3)


def configurations(largest: bool = False, candidates: bool = False) -> list[Configuration]:
    """Return what the launchers compile: every kernel, shape class and dtype.

    Each once with all options off and once with all on (those need the most registers). With
    ``candidates``: every configuration that autotuning may choose, with all options on.
    """
    if candidates:
        tuning.forget()
        os.environ["FASTWHITEN_AUTOTUNE"] = "1"  # a launcher then launches all of them
    whole = WHOLE[-1:] if largest else WHOLE
    mixed = [(torch.float16, torch.float64)]  # of these Triton's versions differ most
    pairs = mixed + [p for p in PAIRS if p[0] == p[1]] if largest else PAIRS
    with Recorder() as recorder:
        for options in (True,) if largest or candidates else (False, True):
            groups = 3 if options else 1
            for sizes, (dtype, t) in itertools.product((*whole, BLOCKED), pairs):
                for size, layout in itertools.product(sizes, PLANES if options else ROWS):
                    if size % 16 == 0 or layout != PLANES[0]:
                        shape = (layout[0], groups * size, *layout[1:])
                        rows_stages(shape, groups, dtype, t, options)
            for (rows, _), size, (dtype, t) in itertools.product(whole, BLOCKED, pairs):
                sample_stages(rows, groups * size, groups, dtype, t, options)
            for sizes, t in itertools.product(whole, (torch.float32, torch.float64)):
                for size in sizes:
                    matrix_stages(groups, size, t, options)
    return list(recorder.found)


def complaints(
    table: dict[str, dict[str, Usage]], expected: dict[str, Any] | None, allowed: int = FEW
) -> Iterator[str]:
    """Yield what is wrong: local memory always, other numbers where there is something expected."""
    yield from spills(table, allowed)
    for key, row in table.items():
        if expected is not None and expected.get(key) != row:
            yield f"{key}: compiled {row}, the table has {expected.get(key)}"


def committed() -> dict[str, Any]:
    """Return the table in the repository: "triton" and "configurations"."""
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def written(table: dict[str, Any], version: str) -> str:
    """Return the table as JSON, a line a configuration."""
    rows = (f"{json.dumps(key)}: {json.dumps(table[key], sort_keys=True)}" for key in sorted(table))
    head = json.dumps({"triton": version, "configurations": {}}).removesuffix("}}")
    return head + "\n" + ",\n".join(rows) + "\n}}\n"


def summary(table: dict[str, Any]) -> str:
    """Return one line per kernel: configurations, most registers and shared memory."""
    kernels: dict[str, list[dict[str, int]]] = {}
    for key, row in table.items():
        kernels.setdefault(key.split("(")[0], []).extend(row.values())
    lines = [f"{'kernel':28} {'cubins':>6} {'registers':>9} {'shared':>7}"]
    for kernel, rows in sorted(kernels.items()):
        most = [max(r[name] for r in rows) for name in ("registers", "shared")]
        lines.append(f"{kernel:28} {len(rows):6} {most[0]:9} {most[1]:7}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--largest", action="store_true", help="the largest shape class only")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--candidates", action="store_true", help="what autotuning chooses from")
    parser.add_argument("--allow-stack", type=int, default=FEW, metavar="BYTES")
    options = parser.parse_args(arguments)
    os.environ.pop("TRITON_DISABLE_LINE_INFO", None)  # the numbers would be others
    if options.write and (options.candidates or options.largest):
        parser.error("--write takes no other option: the table has every configuration")
    if options.allow_stack != FEW and triton.__version__ == committed()["triton"]:
        parser.error(f"--allow-stack is for other versions of Triton than {triton.__version__}")
    found = configurations(options.largest, options.candidates)
    table = measure_all(found, ARCHITECTURES, options.workers)
    expected = None
    if not options.write and not options.candidates:
        stored = committed()
        if stored["triton"] == triton.__version__:
            expected = stored["configurations"]
        else:
            print(f"triton {triton.__version__}: numbers are compared for {stored['triton']} only")
    problems = list(complaints(table, expected, options.allow_stack))
    print(summary(table))
    print("\n".join(problems))
    if options.write and not problems:
        TABLE.write_text(written(table, triton.__version__), encoding="utf-8")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
