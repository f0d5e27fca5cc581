"""Compiles programs that run the CUDA kernels on the CPU, and runs them on tensors.

``run("eigh", a=matrix, ...)`` compiles ``tests/csrc/drivers/eigh.cpp`` (once, until a
source changes), hands it the arguments by name and returns the arrays that come back. A program of
its own, not a library in this process: AddressSanitizer needs no preloading then, and a kernel
that goes wrong takes no test run with it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastwhiten.backends import extension

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
DRIVERS = HERE / "drivers"
PROGRAMS = ROOT / "build" / "emulation"
ORDERS = {"forward": 0, "reversed": 1, "random": 2}
# Flags to compile and to link. tests/csrc/emulator/global_memory.h stands in for the library of
# -fsanitize=thread, so that is not linked.
BUILDS = {
    "": ([], []),
    # -Og: most of the time goes into compiling, a minute at -O2
    "memory": (["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Og"],) * 2,
    "races": (["-fsanitize=thread", "-fno-threadsafe-statics"], []),
    # a * b + c rounded once, as nvcc does unless told otherwise
    "contracted": (["-O2", "-mfma", "-mavx2", "-ffp-contract=fast"], []),
    # The compiled kernels on tests/csrc/machine (tests/csrc/machine.py), which is optimised
    "machine": (["-O0", "-DFASTWHITEN_MACHINE"], []),
}
MACHINE = HERE / "machine" / "host.cpp"
MACHINE_FLAGS = "-std=c++17 -O2 -ffp-contract=off -Wall -Wextra -Werror".split()
_WARNINGS = "-Wall -Wextra -Werror -Wno-unknown-pragmas"  # #pragma unroll is nvcc's
_FLAGS = f"-std=c++17 -O1 -g1 {_WARNINGS} -rdynamic -DFASTWHITEN_EMULATE".split()
_TYPES = {
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.int32: "i32",
    torch.int64: "i64",
}
_DTYPES = {name: dtype for dtype, name in _TYPES.items()}


class EmulationError(AssertionError):
    """The emulator or a sanitizer stopped the kernel; the message says why."""


@dataclass
class Probe:
    """Which barriers and warp operations kernels reach, and what they do without one of them.

    Attributes:
        omit: the place of a call that is left out, such as ``jacobi.cuh:139``; empty for none.
        reached: the places of all calls that the runs with this probe reached, if they ended well.
    """

    omit: str = ""
    reached: set[str] = field(default_factory=set)


@functools.cache
def build(driver: str, *, sanitize: bool | str = False) -> Path:
    """Compile ``drivers/<driver>.cpp`` against the kernels in ``csrc``; return the program.

    It stays in build/emulation, under a name with the fingerprint of all sources: the next run
    compiles what has changed since.
    """
    kind = {False: "", True: "memory"}.get(sanitize, sanitize)
    compiled, linked = BUILDS[kind]
    source, base = DRIVERS / f"{driver}.cpp", f"{driver}-{kind}" if kind else driver
    command = [
        "g++",
        *_FLAGS,
        *compiled,
        "-I",
        str(ROOT / "csrc"),
        "-I",
        str(HERE),
        "-c",
        str(source),
        "-o",
    ]
    known = hashlib.sha256(f"{_sources(kind == 'machine')} {command}".encode()).hexdigest()[:16]
    program = PROGRAMS / f"{base}.{known}"
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    with (PROGRAMS / f"{base}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be at it
        if program.exists():
            return program
        for older in PROGRAMS.glob(f"{base}.*[!k]"):
            older.unlink()
        built, unfinished = program.with_suffix(".o"), program.with_suffix(".unfinished")
        steps, objects = [[*command, str(built)]], [built]
        if kind == "machine":
            objects.append(program.with_suffix(".machine.o"))
            flags = [*MACHINE_FLAGS, "-I", str(HERE), "-c", str(MACHINE)]
            steps.append(["g++", *flags, "-o", str(objects[1])])
        link = ["g++", "-rdynamic", *linked, *map(str, objects), "-o", str(unfinished), "-ldl"]
        for step in (*steps, link):
            result = subprocess.run(step, capture_output=True, text=True)
            if result.returncode != 0:  # no EmulationError: a kernel that is no C++ is not caught
                raise RuntimeError(f"{driver}: g++ failed:\n{result.stderr}")
        for made in objects:
            made.unlink()
        unfinished.rename(program)
    return program


@functools.cache
def _sources(with_machine: bool) -> str:
    folders = ["csrc", "tests/csrc/emulator", "tests/csrc/drivers"]
    folders += ["tests/csrc/machine"] if with_machine else []
    return extension.fingerprint(ROOT, extension.files(ROOT, folders))


def _with_lines(program: Path, message: str) -> str:
    """Put lines of sources in place of addresses ``[0x1234]``: innermost, and who called it."""

    def lines(address: re.Match[str]) -> str:
        command = ["addr2line", "-i", "-s", "-e", str(program), address[1]]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
        return " in ".join(line.split(" ")[0] for line in found[:3] if line)

    return re.sub(r"\[(0x[0-9a-f]+)\]", lines, message)


def run(
    driver: str,
    *,
    order: str = "forward",
    sanitize: bool | str = False,
    seed: int = 1,
    probe: Probe | None = None,
    environment: dict[str, str] | None = None,
    **arguments: Tensor | int | float | None,
) -> dict[str, Tensor]:
    """Run a driver on named tensors (any device layout, made contiguous) and numbers.

    Args:
        driver: name of a file in ``tests/csrc/drivers``.
        order: order of threads and blocks: ``forward``, ``reversed`` or ``random`` (by ``seed``).
        sanitize: True or ``"memory"`` for AddressSanitizer and UndefinedBehaviorSanitizer,
            ``"races"`` to record every access of global memory as well; ``"contracted"`` is no
            sanitizer but has products and sums fused, ``"machine"`` has the compiled kernels run.
        seed: of the random order.
        probe: says which call to leave out, and takes what was reached.
        environment: variables that are set for the program.
        **arguments: what the driver asks for by name; None is left out.

    Returns:
        The flat arrays that the driver wrote, and those that it was given, as it left them.

    Raises:
        EmulationError: if the program failed; the message is what it printed.
        RuntimeError: if it does not compile, or the probe names no place.
    """
    program = build(driver, sanitize=sanitize)
    with tempfile.TemporaryDirectory() as folder:
        given, results = Path(folder) / "arguments", Path(folder) / "results"
        with given.open("wb") as file:
            for name, value in {**arguments, "order": ORDERS[order], "seed": seed}.items():
                if value is not None:
                    _write(file, name, value)
        asked = [] if probe is None else [f"--omit={probe.omit}"]
        # No deadline: the emulator finds threads that wait for each other, and what only takes
        # long, on a busy machine, must not count as caught.
        done = subprocess.run(
            [program, given, results, *asked],
            capture_output=True,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        if done.returncode == 2:  # a wrong call: no kernel ran
            raise RuntimeError(done.stderr)
        if done.returncode != 0:
            message = _with_lines(program, done.stderr[:4000])
            raise EmulationError(f"{driver}: exit code {done.returncode}: {message}")
        if probe is not None:
            probe.reached.update(done.stdout.split())
        return _read(results)


def _write(file, name: str, value: Tensor | int | float) -> None:
    if isinstance(value, int):
        value = torch.tensor([value], dtype=torch.int64)
    elif isinstance(value, float):
        value = torch.tensor([value], dtype=torch.float64)
    flat = value.detach().cpu().contiguous().reshape(-1)
    file.write(f"{name} {_TYPES[flat.dtype]} {flat.numel()}\n".encode())
    file.write(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")


def _read(path: Path) -> dict[str, Tensor]:
    content, at, arrays = path.read_bytes(), 0, {}
    while at < len(content):
        end = content.index(b"\n", at)
        name, kind, count = content[at:end].decode().split()
        dtype = _DTYPES[kind]
        size = int(count) * dtype.itemsize
        raw = np.frombuffer(content[end + 1 : end + 1 + size], dtype=np.uint8).copy()
        arrays[name] = torch.from_numpy(raw).view(dtype) if size else torch.empty(0, dtype=dtype)
        at = end + 1 + size
    return arrays
