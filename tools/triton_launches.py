"""What Triton compiles for the launches of tests/gpu, compiled for a GPU that need not be there.

    python tools/triton_launches.py                  run the tests, compile what they launch
    python tools/triton_launches.py --write FILE     run the tests, write what they launch
    python tools/triton_launches.py --read FILE      compile it, with another version of Triton too
    --allow-stack BYTES                              spills up to so much pass

The tests run on the CPU with every launch noted instead of carried out (tests/gpu/launches.py):
thousands of launches are a few hundred configurations. Those in the table of another tool,
tools/triton_resources.json, are left to that where it is of the same version.

``Recorder`` notes launches for that tool too. Triton itself says what a launch compiles: its hook
is called with the specialised types, before it would compile them for the device of a driver that
is a stand-in.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TABLE = ROOT / "tools" / "triton_resources.json"
CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
ARCHITECTURE = 90  # of the GPU that tests/gpu have run on
# Bytes of a thread's stack that pass: ptxas spills up to three numbers where that lets one block
# more onto a multiprocessor. (Launched with maxnreg it would not, with fewer blocks.)
FEW = 24
Usage = dict[str, int]


@dataclass(frozen=True)
class Configuration:
    """What one launch compiles."""

    kernel: str  # module and function
    types: tuple[tuple[str, str], ...]  # of all arguments, "constexpr" for constants
    constants: tuple[tuple[str, Any], ...]
    multiples: tuple[str, ...]  # arguments that 16 divides: addresses and sizes
    options: tuple[tuple[str, int], ...]  # warps and stages

    @property
    def key(self) -> str:
        """A readable name, the same on every machine.

        It leaves out what does not vary: the types of integers, and that 16 divides an address.
        """
        pointers = [(n, t[1:]) for n, t in self.types if t.startswith("*")]
        parts = [
            ", ".join(f"{n} {t}" + " odd" * (n not in self.multiples) for n, t in pointers),
            ", ".join(f"{n} % 16" for n in self.multiples if n not in dict(pointers)),
            ", ".join(f"{n}={v}" for n, v in self.constants),
            ", ".join(f"{n}={v}" for n, v in self.options),
        ]
        return f"{self.kernel.split('.')[-1]}({'; '.join(part for part in parts if part)})"


class Recorder:
    """Takes the place of every launch while it is entered."""

    def __init__(self) -> None:
        """Start with nothing noted."""
        self.found: dict[Configuration, None] = {}  # in order

    def __enter__(self) -> Recorder:
        """Replace the driver, and what Triton asks before it compiles."""
        target = GPUTarget("cuda", ARCHITECTURE, 32)
        self._hook = triton.knobs.runtime.jit_cache_hook
        driver.set_active(
            SimpleNamespace(
                get_current_device=lambda: 0,
                get_current_stream=lambda device: 0,
                get_current_target=lambda: target,
            )
        )
        triton.knobs.runtime.jit_cache_hook = self._note
        return self

    def __exit__(self, *_: object) -> None:
        """Launch again."""
        driver.set_active(None)  # the next launch looks for a GPU
        triton.knobs.runtime.jit_cache_hook = self._hook

    def _note(self, *, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        """Note one launch; True keeps Triton from compiling it."""
        names = list(compile["signature"])
        (attributes,) = compile["configs"]
        found = Configuration(
            f"{fn.module}.{fn.name}",
            tuple(compile["signature"].items()),
            tuple((names[i], value) for (i,), value in compile["constants"].items()),
            tuple(names[i] for (i,), values in attributes.items() if values),
            tuple((name, compile[name]) for name in ("num_warps", "num_stages")),
        )
        self.found[found] = None
        return True


def measure(job: tuple[Configuration, int]) -> Usage:
    """Compile for one architecture; return registers, shared memory, stack and local memory."""
    configuration, architecture = job
    module, name = configuration.kernel.rsplit(".", 1)
    kernel = getattr(importlib.import_module(module), name)
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name in configuration.multiples
    }
    signature, constants = dict(configuration.types), dict(configuration.constants)
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


def measure_all(
    found: Sequence[Configuration], architectures: Sequence[int], workers: int
) -> dict[str, dict[str, Usage]]:
    """Return ``{key: {"sm_80": ..., "sm_90": ...}}``.

    Raises:
        RuntimeError: one does not compile; the message says which.
    """
    jobs = [(c, a) for c in found for a in architectures]
    table: dict[str, dict[str, Usage]] = {}
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        results = [pool.submit(measure, job) for job in jobs]
        for (configuration, architecture), result in zip(jobs, results, strict=True):
            target = f"sm_{architecture}"
            try:
                table.setdefault(configuration.key, {})[target] = result.result()
            except Exception as error:
                pool.shutdown(cancel_futures=True)
                raise RuntimeError(f"{configuration.key} for {target}") from error
    return table


def spills(table: dict[str, dict[str, Usage]], allowed: int = FEW) -> Iterator[str]:
    """Yield what uses local memory, or more stack than ``allowed``."""
    for key, row in table.items():
        for architecture, usage in row.items():
            if usage["stack"] > allowed or usage["local"]:
                yield f"{key} for {architecture} uses local memory: {usage}"


def launched(workers: int) -> list[Configuration]:
    """Run tests/gpu; return what they launch.

    Raises:
        SystemExit: a test failed, which shows its output.
    """
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    tests += ["--tier", "all", "-m", "interpret", "-n", str(workers), "--dist", "loadgroup"]
    found: dict[Configuration, None] = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {"FASTWHITEN_TEST_DEVICE": "cpu", "FASTWHITEN_TEST_LAUNCHES": folder}
        done = subprocess.run([*tests, "tests/gpu"], cwd=ROOT, env={**os.environ, **environment})
        if done.returncode:
            sys.exit(done.returncode)
        for file in sorted(Path(folder).iterdir()):
            found |= dict.fromkeys(read(file))
    return list(found)


def read(file: Path) -> list[Configuration]:
    """Return the configurations of :func:`write`."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    pairs = ("types", "constants", "options")
    return [
        Configuration(
            row["kernel"],
            multiples=tuple(row["multiples"]),
            **{name: tuple(map(tuple, row[name])) for name in pairs},
        )
        for row in rows
    ]


def write(file: Path, found: Sequence[Configuration]) -> None:
    """Write configurations to a file."""
    file.write_text(json.dumps([vars(c) for c in found]), encoding="utf-8")


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--read", type=Path, metavar="FILE")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--allow-stack", type=int, default=FEW, metavar="BYTES")
    options = parser.parse_args()
    found = read(options.read) if options.read else launched(options.workers)
    if options.write:
        write(options.write, found)
        return 0
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    known = table["configurations"] if table["triton"] == triton.__version__ else {}
    rest = [c for c in found if c.key not in known]
    problems = list(spills(measure_all(rest, [ARCHITECTURE], options.workers), options.allow_stack))
    print(f"triton {triton.__version__}: {len(found)} configurations, {len(rest)} not in the table")
    print("\n".join(problems))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
