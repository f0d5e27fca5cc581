"""Registers and shared memory of every Triton kernel, compiled for GPUs that need not be there.

    python tools/triton_resources.py            compile everything, compare with the table
    python tools/triton_resources.py --write    compile everything, write the table
    python tools/triton_resources.py --largest  the largest shape class only (what the tests do)
    python tools/triton_resources.py --candidates  what FASTWHITEN_AUTOTUNE=1 chooses from, with all
        options on, which need the most registers; local memory is looked for, nothing else
    --allow-stack BYTES  for other versions of Triton than the table's: spills up to so much pass

Launchers run on small CPU tensors with the launch itself replaced: what it would have compiled is
noted (kernel, types, constants, warps) and compiled to a cubin for sm_80 and sm_90. A kernel that
needs local memory or a stack is an error with any version of Triton; the numbers are those of the
version in the table, with line information, as kernels are launched by default. It is part of what
LLVM and ptxas see: the same computation inlined from one function more has moved a row of the table
from 88 registers to 102 (factor of order 64 in float32 for sm_90), and without line information
both compile to the same PTX and 88.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fastwhiten.backends import stages  # noqa: E402
from fastwhiten.kernels import (  # noqa: E402
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

TABLE = Path(__file__).with_suffix(".json")
ARCHITECTURES = (80, 90)
CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
NAMES = {
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
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
# One size per shape class: each block edge, and groups of two, three and four blocks.
WHOLE = (16, 32, 64)
BLOCKED = (128, 192, 255)


@dataclass(frozen=True)
class Configuration:
    """What one launch compiles."""

    kernel: str  # module and function
    types: tuple[tuple[str, str], ...]  # of the run-time arguments
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]  # warps and stages

    @property
    def key(self) -> str:
        """A readable name, the same on every machine."""
        pointers = ", ".join(f"{n} {t[1:]}" for n, t in self.types if t.startswith("*"))
        constants = ", ".join(f"{n}={v}" for n, v in self.constants)
        options = ", ".join(f"{n}={v}" for n, v in self.options)
        return f"{self.kernel.split('.')[-1]}({pointers}; {constants}; {options})"


def _type(value: Any) -> str | None:
    """Return Triton's type of an argument, None for one it would make a constant."""
    if isinstance(value, Tensor):
        return "*" + NAMES[value.dtype]
    if value == 1:
        return None
    return "i32" if -(2**31) <= value < 2**31 else "i64"


class Recorder:
    """Takes the place of every launch while it is entered."""

    def __init__(self) -> None:
        """Start with nothing noted."""
        self.found: dict[str, Configuration] = {}

    def __enter__(self) -> Recorder:
        """Replace launches."""
        self._run = JITFunction.run
        recorder = self

        def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            recorder.note(self, args, options)

        JITFunction.run = run
        return self

    def __exit__(self, *_: object) -> None:
        """Launch again."""
        JITFunction.run = self._run

    def note(self, kernel: JITFunction, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Note one launch."""
        values = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
        declared = {p.name for p in kernel.params if p.is_constexpr}
        general = {p.name for p in kernel.params if p.do_not_specialize}
        types, constants = [], []
        for name in kernel.arg_names:
            kind = None if name in declared else _type(values[name])
            kind = "i32" if kind is None and name in general else kind
            if kind is None:
                constants.append((name, values[name]))
            else:
                types.append((name, kind))
        module = kernel.fn.__module__
        found = Configuration(
            f"{module}.{kernel.fn.__name__}",
            tuple(types),
            tuple(constants),
            tuple((n, v) for n, v in options.items() if n not in kernel.arg_names),
        )
        self.found.setdefault(found.key, found)


def _rows_stages(size: int, dtype: torch.dtype, t: torch.dtype, options: bool) -> None:
    """Launch every pass over rows, with all options or with none."""
    # Long enough for several chunks of several steps with all options, one tile without.
    groups, rows = (3, 100_000) if options else (1, 20)
    channels = groups * size
    shape = (rows // 50, channels, 50) if options else (rows, channels)
    x = torch.empty(shape, dtype=dtype)
    vector, weight = torch.empty(channels, dtype=t), torch.empty(rows, dtype=t)
    matrix = torch.empty(groups, size, size, dtype=t)
    gamma, p = (vector, weight) if options else (None, None)
    statistics.launch_statistics(x, p, groups, t)
    running = matrix if options else None
    for method in (stages.OAS, stages.LEDOIT_WOLF):
        intensity.launch_intensity(x, vector, matrix, running, p, 0.5, method)
    apply.launch_apply(x, vector, matrix, gamma, gamma)
    backward.launch_backward_reduce(x, x, vector, groups)
    backward.launch_backward_apply(x, x, vector, vector, matrix, matrix, gamma, p)


def _matrix_stages(size: int, t: torch.dtype, options: bool) -> None:
    """Launch every stage on whole matrices."""
    groups = 3 if options else 1
    matrix, vector = torch.empty(groups, size, size, dtype=t), torch.empty(groups, size, dtype=t)
    rho, gamma = (vector[:, 0], vector.flatten()) if options else (None, None)
    eigh.launch_eigh(matrix)
    for kind in stages.KINDS:
        factor.launch_factor(matrix, matrix if options else None, rho, 0.5, 1e-3, kind)
        backward_matrix.launch_backward_matrix(
            matrix, vector, matrix, matrix, gamma, rho, 0.5, kind, 1e-4
        )


def _sample_stages(rows: int, dtype: torch.dtype, t: torch.dtype, options: bool) -> None:
    """Launch the sample side for a tile of ``rows`` rows."""
    groups, size = (3, 200) if options else (1, 64)
    x = torch.empty(rows, groups * size, dtype=dtype)
    p, rho = torch.empty(rows, dtype=t), torch.empty(groups, dtype=t)
    p, rho = (p, rho) if options else (None, None)
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
    blocked = BLOCKED[:1] if largest else BLOCKED
    mixed = [(torch.float16, torch.float64)]  # of these Triton's versions differ most
    pairs = mixed + [p for p in PAIRS if p[0] == p[1]] if largest else PAIRS
    with Recorder() as recorder:
        for options in (True,) if largest or candidates else (False, True):
            for size, (dtype, t) in itertools.product(whole + blocked, pairs):
                _rows_stages(size, dtype, t, options)
            for size, (dtype, t) in itertools.product(whole, pairs):
                _sample_stages(size, dtype, t, options)
            for size, t in itertools.product(whole, (torch.float32, torch.float64)):
                _matrix_stages(size, t, options)
    return list(recorder.found.values())


def _function(name: str) -> JITFunction:
    module, function = name.rsplit(".", 1)
    kernel: JITFunction = getattr(sys.modules[module], function)
    return kernel


def measure(job: tuple[Configuration, int]) -> dict[str, int]:
    """Compile for one architecture; return registers, shared memory, stack and local memory."""
    configuration, architecture = job
    kernel = _function(configuration.kernel)
    types, constants = dict(configuration.types), dict(configuration.constants)
    signature = {n: types.get(n, "constexpr") for n in kernel.arg_names}
    # PyTorch's allocations are aligned to 16 bytes, and Triton specialises on that.
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(kernel.arg_names)
        if signature[n].startswith("*")
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=dict(configuration.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return {
        "registers": int(usage["REG"]),
        "shared": int(compiled.metadata.shared),
        "stack": int(usage["STACK"]),
        "local": int(usage["LOCAL"]),
    }


def measure_all(found: list[Configuration], workers: int) -> dict[str, dict[str, dict[str, int]]]:
    """Return ``{key: {"sm_80": ..., "sm_90": ...}}``."""
    jobs = [(c, a) for c in found for a in ARCHITECTURES]
    if workers == 1:
        results: list[dict[str, int]] = [measure(job) for job in jobs]
    else:
        with concurrent.futures.ProcessPoolExecutor(workers) as pool:
            results = list(pool.map(measure, jobs, chunksize=4))
    table: dict[str, dict[str, dict[str, int]]] = {}
    for (configuration, architecture), result in zip(jobs, results, strict=True):
        table.setdefault(configuration.key, {})[f"sm_{architecture}"] = result
    return table


def complaints(
    table: dict[str, Any], expected: dict[str, Any] | None, allowed: int = 0
) -> Iterator[str]:
    """Yield what is wrong: local memory always, other numbers where there is something expected."""
    for key, row in table.items():
        for architecture, usage in row.items():
            if usage["stack"] > allowed or usage["local"]:
                yield f"{key} for {architecture} uses local memory: {usage}"
        if expected is not None and expected.get(key) != row:
            yield f"{key}: compiled {row}, the table has {expected.get(key)}"


def committed() -> dict[str, Any]:
    """Return the table in the repository: "triton" and "configurations"."""
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


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
    parser.add_argument("--allow-stack", type=int, default=0, metavar="BYTES")
    options = parser.parse_args(arguments)
    os.environ.pop("TRITON_DISABLE_LINE_INFO", None)  # the numbers would be others
    if options.write and (options.candidates or options.largest):
        parser.error("--write takes no other option: the table has every configuration")
    if options.allow_stack and triton.__version__ == committed()["triton"]:
        parser.error(f"--allow-stack is for other versions of Triton than {triton.__version__}")
    found = configurations(options.largest, options.candidates)
    table = measure_all(found, options.workers)
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
        rows = {"triton": triton.__version__, "configurations": table}
        TABLE.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
